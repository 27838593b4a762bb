"""Several endpoints share the requests of one plan, by weight, each with a price, a key and a way to ask of its own."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.llm_rudeness import Hold
from tests.llm_server import LLMServer
from tests.processes import wait_until
from tests.replies import read_parquet
from tests.runs import embedsmith

USAGE = {"prompt_tokens": 1000, "completion_tokens": 1000}


@contextlib.contextmanager
def two_servers() -> Iterator[tuple[LLMServer, LLMServer]]:
    """Start a server with the model `big` and one with `small`, which has another key and knows no JSON schema."""
    big = LLMServer(model="big", key="sk-big", usage=USAGE)
    small = LLMServer(model="small", key="sk-small", usage=USAGE, formats=("json_object", "text"))
    with big, small:
        yield big, small


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("big", "small"):
        monkeypatch.setenv(f"{name.upper()}_KEY", f"sk-{name}")


def both(big: LLMServer, small: LLMServer, output_dir: Path, num_examples: int, *flags: object) -> list[object]:
    """Return the flags of a plan that asks three requests in four of `big`, at five times the price."""
    return [
        *("--output_dir", output_dir, "--subgroups", "sts", "--languages", "en", "--num_examples", num_examples),
        *("--llm", "live", "--llm_model", "big=75", "small=25", "--base_url", big.base_url, small.base_url),
        *("--api_key_env", "BIG_KEY", "SMALL_KEY", "--input_price", 5, 1, "--output_price", 5, 1, *flags),
    ]


def rows(output_dir: Path) -> list[tuple[str, float]]:
    """Return request and cost of each reply in the journal."""
    with contextlib.closing(sqlite3.connect(output_dir / "journal.sqlite")) as db:
        return db.execute("SELECT request_id, cost_usd FROM replies").fetchall()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_endpoint_has_its_share_its_key_its_price_and_its_way_to_be_asked(
    tmp_path: Path, num_workers: int
) -> None:
    with two_servers() as (big, small):
        flags = both(big, small, tmp_path, 400, "--num_workers", num_workers, "--max_concurrency", 8)
        assert embedsmith("generate", *flags) == 0
        assert not set(big.asked) & set(small.asked)
        assert big.asked.total() + small.asked.total() == 400
        assert 300 - 35 <= big.asked.total() <= 300 + 35  # four standard deviations
        assert (set(big.keys), set(small.keys)) == ({"sk-big"}, {"sk-small"})
        kinds = Counter((b["model"], b["response_format"]["type"]) for b in [*big.bodies, *small.bodies])
        assert kinds.pop(("small", "json_schema")) <= 8 * num_workers  # until the first one was refused
        assert kinds == {("big", "json_schema"): big.asked.total(), ("small", "json_object"): small.asked.total()}
        assert {id_: round(cost, 6) for id_, cost in rows(tmp_path)} == {
            **dict.fromkeys(big.asked, 0.01),
            **dict.fromkeys(small.asked, 0.002),
        }
        assert embedsmith("curate", *flags, "--check_language", "false") == 0
        examples = read_parquet(*(tmp_path / "dataset" / "sts").glob("*.parquet"))
        models = {row["id"]: row["model"] for row in examples}
        assert {id_ for id_, model in models.items() if model == "big"} <= set(big.asked)
        assert {id_ for id_, model in models.items() if model == "small"} <= set(small.asked)
        assert set(models.values()) == {"big", "small"}
        assert len(models) >= 390  # made-up replies may be alike


def test_a_request_goes_to_the_same_endpoint_in_every_run(tmp_path: Path) -> None:
    with two_servers() as (big, small):
        assert embedsmith("generate", *both(big, small, tmp_path / "whole", 120)) == 0
        shares = set(big.asked), set(small.asked)
    with two_servers() as (big, small):
        flags = both(big, small, tmp_path / "parts", 120, "--max_concurrency", 4)
        for limit in (0.2, 0.5):
            assert embedsmith("generate", *flags, "--max_cost_usd", limit) == 1
        assert 0 < len(rows(tmp_path / "parts")) < 100
        assert embedsmith("generate", *flags) == 0
        assert (set(big.asked), set(small.asked)) == shares
        assert set((big.asked + small.asked).values()) == {1}
    assert len(rows(tmp_path / "parts")) == 120


def test_a_slow_endpoint_does_not_hold_up_a_fast_one(tmp_path: Path) -> None:
    """The fast one has answered all of its requests before the slow one answers its first."""
    with two_servers() as (big, small):
        small.limits = hold = Hold(0)
        flags = both(big, small, tmp_path, 60, "--max_concurrency", 16)
        thread = threading.Thread(target=embedsmith, args=("generate", *flags))
        thread.start()
        wait_until(lambda: big.answered.total() + hold.entered == 60)
        assert not small.answered
        hold.go.set()
        thread.join(timeout=60)
        assert big.answered.total() + small.answered.total() == 60


def test_an_endpoint_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with two_servers() as (big, small):
        small.server_close()
        flags = both(big, small, tmp_path, 200, "--max_retries", 1, "--max_attempts", 1)
        assert embedsmith("generate", *flags) == 1
        assert "The endpoint of small stopped answering" in capsys.readouterr().err
        assert {id_ for id_, _ in rows(tmp_path)} <= set(big.answered)


def test_each_endpoint_needs_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_servers() as (big, small):
        monkeypatch.setenv("SMALL_KEY", "sk-big")
        assert embedsmith("generate", *both(big, small, tmp_path, 20)) == 2
        assert "refused the key in SMALL_KEY" in (error := capsys.readouterr().err)
        assert "sk-" not in error


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_one_endpoint_answers_is_kept_when_another_refuses_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    big = LLMServer(model="big", usage=USAGE, latency_s=1.0)
    small = LLMServer(model="small", key="another")
    with big, small:
        flags = both(big, small, tmp_path, 40, "--num_workers", num_workers, "--max_concurrency", 8)
        assert embedsmith("generate", *flags) == 2
        assert "refused the key in SMALL_KEY" in capsys.readouterr().err
        assert 0 < len(big.answered) == len(rows(tmp_path))
