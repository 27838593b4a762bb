"""Limits of an endpoint, and limits of ours: how hard it is asked, and when the asking ends."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from tests.llm_rudeness import AtMost, Never, Polite, RateLimit
from tests.llm_server import LLMServer
from tests.runs import embedsmith


def sts(server: LLMServer, output_dir: Path, num_examples: int, **settings: Any) -> list[object]:
    """Return the flags of a plan that needs no brainstorming."""
    flags = {"output_dir": output_dir, "llm": "live", "base_url": server.base_url, "llm_model": "tiny-llm"}
    flags |= {"subgroups": "sts", "languages": "en", "num_examples": num_examples} | settings
    return [text for name, value in flags.items() for text in (f"--{name}", value)]


def journal(output_dir: Path, sql: str) -> Any:
    """Return the first value that a query on the journal gives."""
    with contextlib.closing(sqlite3.connect(output_dir / "journal.sqlite")) as db:
        return db.execute(sql).fetchone()[0]


WORKERS = pytest.mark.parametrize("num_workers", [1, 2])


@WORKERS
def test_few_requests_are_in_vain_where_only_some_are_served_at_once(tmp_path: Path, num_workers: int) -> None:
    """From a window of 64, 8 is found by halving it: 56 are sent away, then 24, then 8; later one in some dozens."""
    limits = AtMost(8)
    with LLMServer(latency_s=0.05, limits=limits) as server:
        assert embedsmith("generate", *sts(server, tmp_path, 300, num_workers=num_workers, max_attempts=1)) == 0
    assert server.answered.total() == 300
    assert journal(tmp_path, "SELECT COUNT(*) FROM replies") == 300
    assert limits.num_refused < 160


def test_a_server_that_says_nothing_is_left_is_not_asked_until_the_time_it_tells(tmp_path: Path) -> None:
    limits = RateLimit(10, 0.5)
    with LLMServer(limits=limits) as server:
        assert embedsmith("generate", *sts(server, tmp_path, 30, max_concurrency=4)) == 0
    assert server.answered.total() == 30
    assert max(limits.early, default=0.0) < 0.3  # what had been sent before the last answer came
    assert len(limits.early) <= 2 * 3
    assert server.arrived_at[-1] - server.arrived_at[0] >= 2 * 0.5


@WORKERS
def test_an_endpoint_that_sends_everybody_away_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    limits = AtMost(0, retry_after_s=0.02)
    with LLMServer(limits=limits) as server:
        flags = sts(server, tmp_path, 500, max_retries=8, max_concurrency=1000, num_workers=num_workers)
        assert embedsmith("generate", *flags) == 1
    assert "stopped answering" in (error := capsys.readouterr().err)
    assert "HTTP 429: Too many requests" in error
    assert limits.num_refused < 300  # 64 + 32 + 16 + 8 + 4 + 2 + 1, and a few by one; not 8 times each


@pytest.mark.parametrize("status", [429, 500])
def test_one_request_that_is_never_answered_holds_up_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    with LLMServer(limits=Never("000003", status)) as server:
        assert embedsmith("generate", *sts(server, tmp_path, 30, max_retries=2)) == 0
        assert "1 requests got no answer; run again to ask them" in (captured := capsys.readouterr()).err
        assert "29 of 30 replies usable, 1 unanswered" in captured.out
        server.limits = Polite()
        assert embedsmith("generate", *sts(server, tmp_path, 30)) == 0
        assert "30 of 30 replies usable" in capsys.readouterr().out
        assert set(server.answered.values()) == {1}


@WORKERS
@pytest.mark.parametrize("num_examples", [1, 3])
def test_small_plans_end(tmp_path: Path, num_workers: int, num_examples: int) -> None:
    """A worker that has nothing to do when the others end must end too."""
    with LLMServer() as server:
        flags = sts(server, tmp_path, num_examples, num_workers=num_workers, max_concurrency=2)
        assert embedsmith("generate", *flags) == 0
    assert sum(server.answered.values()) == num_examples


PRICE = 0.01  # US dollars a reply, at 1,000 tokens each way
MONEY = {"input_price": 5, "output_price": 5}


@WORKERS
def test_a_cost_limit_is_exceeded_by_no_more_than_what_was_in_flight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 1000}
    with LLMServer(usage=usage, latency_s=0.02) as server:
        for limit, num_least in ((0.2, 20), (0.4, 40)):
            flags = sts(server, tmp_path, 500, max_cost_usd=limit, max_concurrency=8, num_workers=num_workers, **MONEY)
            assert embedsmith("generate", *flags) == 1
            assert f"Stopped at max_cost_usd {limit}" in capsys.readouterr().err
            asked, spent = server.answered.total(), journal(tmp_path, "SELECT SUM(cost_usd) FROM replies")
            assert num_least <= asked <= max(num_least, 28) + 8
            assert spent == pytest.approx(asked * PRICE)  # all that the server answered is in the journal
        assert embedsmith("generate", *flags) == 1
        assert server.answered.total() == asked  # nothing more is asked


def test_at_the_cost_limit_nothing_that_waits_is_sent_or_waited_for(tmp_path: Path) -> None:
    """The first two are answered and reach the limit; the others were sent away for ten minutes."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 1000}
    with LLMServer(usage=usage, latency_s=0.3, limits=AtMost(2, retry_after_s=600)) as server:
        flags = sts(server, tmp_path, 50, max_cost_usd=2 * PRICE, max_concurrency=16, **MONEY)
        started = time.monotonic()
        assert embedsmith("generate", *flags) == 1
        assert time.monotonic() - started < 60
        assert server.answered.total() == 2
        assert len(server.arrived_at) == 16
    assert journal(tmp_path, "SELECT COUNT(*) FROM replies") == 2
