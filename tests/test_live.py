"""The live path: the real `openai` client against a server that is polite, rude, or broken."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.llm_server import LLMServer
from tests.replies import recorded_texts
from tests.runs import embedsmith, folder_bytes

RECORDED = recorded_texts()
SMALL = ("--num_examples", 12, "--languages", "en", "fr", "--examples_per_task", 1, "--tasks_per_brainstorm", 3)
POLITE = ("--test_size", 0.25, "--check_language", "false")

DEMO = ("--config", "demo", "--num_examples", 192)


def live(server: LLMServer, output_dir: Path, *flags: object, model: str = "tiny-llm") -> tuple[object, ...]:
    return ("--output_dir", output_dir, "--llm", "live", "--base_url", server.base_url, "--llm_model", model, *flags)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's dataset, from the recorded replies."""
    folder = tmp_path_factory.mktemp("recorded")
    for verb in ("brainstorm", "generate", "curate"):
        assert embedsmith(verb, *DEMO, "--output_dir", folder) == 0
    return folder


def recorded_reply(request_id: str, prompt: str) -> str:
    return RECORDED[request_id]


RUDE = {"429": 0.2, "500": 0.1, "slow": 0.1, "truncated": 0.1, "chatty": 0.2, "drop": 0.1, "cut": 0.1, "empty": 0.05}


@pytest.mark.parametrize(
    ("rude", "num_workers"), [({}, 1), ({}, 2), (RUDE, 1)], ids=["polite", "polite to two workers", "rude"]
)
def test_live_gives_the_bytes_of_the_recording(
    recorded: Path, tmp_path: Path, rude: dict[str, float], num_workers: int
) -> None:
    with LLMServer(recorded_reply, rude=rude, model="claude", usage=False) as server:
        flags = live(server, tmp_path / "run", *DEMO, "--num_workers", num_workers, model="claude")
        for verb in ("brainstorm", "generate", "curate"):
            assert embedsmith(verb, *flags) == 0
        assert len(server.asked) == 192 + 8
        assert set(server.kinds) == set(rude)  # each kind of rudeness did happen
        rejected = pq.read_table(next((tmp_path / "run" / "rejected").glob("*.parquet")))
        assert len(rejected) == server.kinds["truncated"] + server.kinds["empty"]  # every reply that was of no use
        asked = server.asked.total()
        assert embedsmith("generate", *flags) == 0
        assert server.asked.total() == asked, "a committed reply was asked for again"
    ours, theirs = folder_bytes(tmp_path / "run" / "dataset"), folder_bytes(recorded / "dataset")
    card = ours.pop("README.md"), theirs.pop("README.md")
    assert ours == theirs
    assert card[0] != card[1]  # the folder's own path stands in its loading example, and nothing else differs
    texts = [(folder / "dataset" / "README.md").read_text() for folder in (tmp_path / "run", recorded)]
    assert texts[0].replace(str(tmp_path / "run"), "X") == texts[1].replace(str(recorded), "X")


def test_tokens_and_dollars_are_counted_and_the_limit_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLMServer() as server:
        flags = live(server, tmp_path, *SMALL, "--input_price", 1000, "--output_price", 1000, "--max_concurrency", 2)
        assert embedsmith("brainstorm", *flags) == 0
        assert "$" in capsys.readouterr().err
        spent = sqlite3.connect(tmp_path / "journal.sqlite").execute("SELECT SUM(cost_usd) FROM replies").fetchone()[0]
        assert spent > 0
        asked = server.asked.total()
        assert embedsmith("generate", *flags, "--max_cost_usd", spent / 2) == 1
        assert server.asked.total() == asked
        assert "max_cost_usd" in capsys.readouterr().err


def test_at_most_max_concurrency_requests_are_in_flight(tmp_path: Path) -> None:
    with LLMServer(latency_s=0.05) as server:
        flags = live(server, tmp_path, *SMALL, "--max_concurrency", 3)
        assert embedsmith("brainstorm", *flags) == 0
        assert embedsmith("generate", *flags) == 0
        assert server.max_in_flight == 3


@pytest.mark.parametrize(("formats", "last"), [(("json_object", "text"), "json_object"), (("text",), None)])
def test_json_is_asked_for_in_the_strictest_way_that_works(
    tmp_path: Path, formats: tuple[str, ...], last: str | None
) -> None:
    with LLMServer(formats=formats) as server:
        assert embedsmith("brainstorm", *live(server, tmp_path, *SMALL, "--max_concurrency", 1)) == 0
        kinds = [body.get("response_format", {}).get("type") for body in server.bodies]
        assert kinds[0] == "json_schema"
        assert kinds[-1] == last
        assert len(kinds) - kinds.count(last) == (1 if last else 2)  # each was tried once, then remembered


def test_a_json_schema_is_what_strict_endpoints_accept(tmp_path: Path) -> None:
    with LLMServer() as server:
        flags = live(server, tmp_path, *SMALL)
        assert embedsmith("brainstorm", *flags) == 0
        assert embedsmith("generate", *flags) == 0
        for body in server.bodies:
            schema = body["response_format"]["json_schema"]["schema"]
            assert schema["additionalProperties"] is False
            assert schema["required"] == list(schema["properties"])


def test_one_refused_request_costs_one_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused: list[str] = []

    def refuse(request_id: str) -> bool:
        if not refused and "generate" in request_id:
            refused.append(request_id)
        return request_id in refused

    with LLMServer(refuse=refuse) as server:
        flags = live(server, tmp_path, *SMALL, "--max_concurrency", 1)
        assert embedsmith("brainstorm", *flags) == 0
        assert embedsmith("generate", *flags) == 0
        assert "11 of 12 replies usable, 1 unanswered (1 refused)" in capsys.readouterr().out
        tries = server.asked[refused[0]]
        assert embedsmith("generate", *flags) == 0
        assert server.asked[refused[0]] == tries, "a refused request was asked again"
    assert embedsmith("curate", *live(server, tmp_path, *SMALL, *POLITE)) == 0


def test_refused_requests_are_asked_again_when_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--subgroups", "sts", "--max_concurrency", 1)
    with LLMServer(refuse=lambda request_id: "000003" in request_id) as server:
        assert embedsmith("generate", *live(server, tmp_path, *SMALL, *flags)) == 0
        assert "refused with HTTP 400: This prompt was flagged; --retry_refused" in capsys.readouterr().err
        assert embedsmith("generate", *live(server, tmp_path, *SMALL, *flags)) == 0
        assert "1 of 12 requests were refused" in capsys.readouterr().err
    with LLMServer() as server:
        assert embedsmith("generate", *live(server, tmp_path, *SMALL, *flags, "--retry_refused")) == 0
        assert server.asked.total() == 1
    assert "12 of 12 replies usable" in capsys.readouterr().out


def test_an_endpoint_that_refuses_everything_is_asked_twenty_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LLMServer(refuse=lambda request_id: True) as server:
        flags = live(server, tmp_path, "--num_examples", 60, "--subgroups", "sts", "--max_concurrency", 1)
        assert embedsmith("generate", *flags) == 1
        assert server.asked.total() <= 20 + 2 + 1  # two looser ways to ask for JSON, and one in flight
    assert "refused the first 20 requests, the last one with HTTP 400" in capsys.readouterr().err


def test_a_cost_limit_needs_token_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLMServer(usage=False) as server:
        prices = ("--input_price", 1, "--output_price", 1, "--max_cost_usd", 5, "--max_concurrency", 1)
        assert embedsmith("brainstorm", *live(server, tmp_path, *SMALL, *prices)) == 1
        assert server.asked.total() <= 2
    assert "reports no token counts" in capsys.readouterr().err
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:  # what was paid for is kept all the same
        assert db.execute("SELECT COUNT(*) FROM replies").fetchone()[0] == 1


def test_hopeless_replies_are_kept_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLMServer(lambda request_id, prompt: "I'd rather not.") as server:
        flags = live(server, tmp_path, *SMALL, "--subgroups", "sts", "--max_attempts", 2)
        assert embedsmith("generate", *flags) == 1
        assert "No reply could be used" in capsys.readouterr().err
        assert set(server.asked.values()) == {2}
        assert embedsmith("curate", *flags) == 1
        assert "json 12" in capsys.readouterr().err
    assert not (tmp_path / "dataset").exists()
    assert len(list((tmp_path / "rejected").glob("train-00000-of-00001-*.parquet"))) == 1


def test_an_endpoint_that_knows_the_older_name_of_the_limit_is_asked_by_it(tmp_path: Path) -> None:
    with LLMServer(unknown_field="max_completion_tokens", formats=("json_object", "text")) as server:
        assert embedsmith("brainstorm", *live(server, tmp_path, *SMALL, "--max_completion_tokens", 77)) == 0
        assert server.bodies[-1]["max_tokens"] == 77
        assert server.bodies[-1]["response_format"] == {"type": "json_object"}


def test_one_refused_prompt_does_not_loosen_the_format_of_the_others(tmp_path: Path) -> None:
    refused: list[str] = []

    def refuse(request_id: str) -> bool:
        refused[:] = refused or [request_id]  # the first that is asked
        return request_id in refused

    with LLMServer(refuse=refuse) as server:
        flags = live(server, tmp_path, *SMALL, "--subgroups", "sts", "--max_concurrency", 1)
        assert embedsmith("generate", *flags) == 0
        kinds = [body["response_format"]["type"] for body in server.bodies if "response_format" in body]
        assert kinds[:2] == ["json_schema", "json_object"]
        assert kinds[2:] == ["json_schema"] * 10  # one reply in plain text, ten by the schema, and the refused one


def test_a_dead_endpoint_ends_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLMServer() as server:
        flags = live(server, tmp_path, *SMALL, "--subgroups", "sts", "--max_retries", 1)
    assert embedsmith("generate", *flags) == 1
    error = capsys.readouterr().err
    assert "No reply could be used" in error or "gave no answer" in error
    assert "Traceback" not in error


def test_keys_stay_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with LLMServer(key="another") as server:
        assert embedsmith("brainstorm", *live(server, tmp_path, *SMALL)) == 2
    output = capsys.readouterr()
    assert "refused the key in OPENAI_API_KEY" in output.err
    assert "sk-very-secret" not in output.err + output.out
    journal = b"".join(path.read_bytes() for path in tmp_path.glob("journal*"))
    assert b"sk-very-secret" not in journal


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--base_url", "https://llm.example.org/v1", "--llm_model", "m"), "OPENAI_API_KEY is not set"),
        (("--base_url", "http://127.0.0.1:1/v1"), "`llm_model` is not given"),
        (("--max_cost_usd", 1), "price of a token is unknown"),
    ],
)
def test_a_live_endpoint_needs_key_model_and_prices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[object, ...], message: str
) -> None:
    assert embedsmith("brainstorm", "--output_dir", tmp_path, "--llm", "live", *SMALL, *flags) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_model_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLMServer() as server:
        assert embedsmith("brainstorm", *live(server, tmp_path, *SMALL, model="gpt-9")) == 2
    assert "does not know model 'gpt-9'" in capsys.readouterr().err
