"""Batch files out and results in: the OpenAI Batch API's format, in any order, with errors and duplicates."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dataset_builder import batch_llm
from dataset_builder.recorded_llm import DEFAULT_REPLIES, read_batch_output
from tests.batch_server import BatchServer
from tests.runs import embedsmith, folder_bytes

RECORDED = dict(read_batch_output(DEFAULT_REPLIES))

DEMO = ("--config", "demo", "--num_examples", 192)


def demo(run: Path) -> tuple[object, ...]:
    return (*DEMO, "--output_dir", run, "--llm_model", "claude")


def requests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def answer(batch: list[dict[str, Any]], path: Path, failed: int = 0) -> Path:
    """Write what a batch endpoint would return: shuffled, the first ones failed, one of them twice."""
    lines = []
    for number, request in enumerate(batch):
        body = RECORDED[request["custom_id"]]
        response = {"status_code": 200, "request_id": f"r{number}", "body": body}
        error = None if number >= failed else {"code": "batch_expired", "message": "This request expired."}
        lines.append({"custom_id": request["custom_id"], "response": None if error else response, "error": error})
    lines.append(lines[-1])
    random.Random(0).shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def num_replies(run: Path) -> int:
    with sqlite3.connect(run / "journal.sqlite") as db:
        return int(db.execute("SELECT COUNT(*) FROM replies").fetchone()[0])


def test_batches_give_the_bytes_of_the_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert embedsmith("brainstorm", *demo(run), "--batch_out", out / "b") == 0
    assert "8 requests in" in capsys.readouterr().out
    results = answer(requests(out / "b"), tmp_path / "b.jsonl")
    assert embedsmith("brainstorm", *demo(run), "--batch_in", results) == 0

    assert embedsmith("generate", *demo(run), "--batch_out", out / "g") == 0
    first = answer(requests(out / "g"), tmp_path / "g1.jsonl", failed=70)
    assert embedsmith("generate", *demo(run), "--batch_in", first) == 0
    assert "122 of 192 replies usable, 70 unanswered" in capsys.readouterr().out
    assert embedsmith("generate", *demo(run), "--batch_out", out / "g") == 0
    missing = requests(out / "g")
    assert len(missing) == 70  # only what is missing is written again
    second = answer(missing, tmp_path / "g2.jsonl")
    assert embedsmith("generate", *demo(run), "--batch_in", first, second) == 0
    assert num_replies(run) == 8 + 192
    assert embedsmith("generate", *demo(run), "--batch_in", second, first) == 0
    assert num_replies(run) == 8 + 192

    recorded = tmp_path / "recorded"
    for verb in ("brainstorm", "generate"):
        assert embedsmith(verb, *DEMO, "--output_dir", recorded) == 0
    for folder in (run, recorded):
        assert embedsmith("curate", *DEMO, "--output_dir", folder) == 0
    ours, theirs = folder_bytes(run / "dataset"), folder_bytes(recorded / "dataset")
    del ours["README.md"], theirs["README.md"]  # the folder's own path stands in its loading example
    assert ours == theirs


def test_a_request_is_a_line_of_the_batch_api(tmp_path: Path) -> None:
    assert embedsmith("brainstorm", *demo(tmp_path), "--batch_out", tmp_path, "--batch_format", "json_object") == 0
    for line in requests(tmp_path):
        assert set(line) == {"custom_id", "method", "url", "body"}
        assert len(line["custom_id"]) <= 64
        assert line["url"] == "/v1/chat/completions"
        assert line["body"]["model"] == "claude"
        assert line["body"]["messages"][0]["content"]
        assert line["body"]["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(("limit", "value"), [("MAX_REQUESTS", 3), ("MAX_BYTES", 4_000)])
def test_files_stay_under_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(batch_llm, limit, value)
    assert embedsmith("brainstorm", *demo(tmp_path), "--batch_out", tmp_path / "out") == 0
    paths = sorted((tmp_path / "out").glob("brainstorm-*.jsonl"))
    assert len(paths) > 2
    assert all(len(path.read_text().splitlines()) <= batch_llm.MAX_REQUESTS for path in paths)
    assert all(path.stat().st_size <= batch_llm.MAX_BYTES for path in paths)
    assert len(requests(tmp_path / "out")) == 8
    monkeypatch.undo()
    assert embedsmith("brainstorm", *demo(tmp_path), "--batch_out", tmp_path / "out") == 0
    assert len(requests(tmp_path / "out")) == 8  # no line of the earlier files is left


def test_a_bad_reply_given_twice_is_one_attempt(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert embedsmith("brainstorm", *demo(run), "--batch_out", tmp_path / "out") == 0
    bad = {"choices": [{"message": {"content": "no JSON"}, "finish_reason": "stop"}]}
    id_ = requests(tmp_path / "out")[0]["custom_id"]
    results = tmp_path / "bad.jsonl"
    results.write_text(json.dumps({"custom_id": id_, "response": {"status_code": 200, "body": bad}, "error": None}))
    for _ in range(3):
        assert embedsmith("brainstorm", *demo(run), "--batch_in", results) == 1  # no reply can be used
    assert num_replies(run) == 1


@pytest.mark.parametrize("num_between", [0, 600])
def test_a_good_reply_counts_however_near_it_is_to_a_bad_one(tmp_path: Path, num_between: int) -> None:
    run = tmp_path / "run"
    assert embedsmith("brainstorm", *demo(run), "--batch_out", tmp_path / "out") == 0
    id_ = requests(tmp_path / "out")[0]["custom_id"]
    bad = {"choices": [{"message": {"content": "no JSON"}, "finish_reason": "stop"}]}
    bodies = [(id_, bad), *((f"other-{n}", bad) for n in range(num_between)), (id_, bad), (id_, RECORDED[id_])]
    results = tmp_path / "both.jsonl"
    lines = [{"custom_id": i, "response": {"status_code": 200, "body": b}, "error": None} for i, b in bodies]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert embedsmith("brainstorm", *demo(run), "--batch_in", results) == 0
    assert num_replies(run) == 2  # the bad one once, and the good one


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_out", "out", "--batch_in", "x.jsonl"), "both given"),
        (("--batch_in", "nowhere.jsonl"), "is no file"),
        (("--batch_in", "foreign.jsonl"), "no reply to any of the 8 requests"),
    ],
)
def test_bad_batches(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign.jsonl").write_text(
        json.dumps({"custom_id": "x", "response": {"status_code": 200, "body": {}}})
    )
    assert embedsmith("brainstorm", *demo(tmp_path / "run"), *flags) == 2
    assert message in capsys.readouterr().err


def test_a_batch_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embedsmith("brainstorm", "--config", "demo", "--output_dir", tmp_path, "--batch_out", tmp_path / "o") == 2
    assert "`llm_model` is not given" in capsys.readouterr().err


def test_submitted_batches_give_the_bytes_of_the_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both verbs through the Batch API, whose first batches expire when half of them is answered."""
    monkeypatch.setattr(batch_llm, "MAX_REQUESTS", 100)
    texts = {id_: str(body["choices"][0]["message"]["content"]) for id_, body in RECORDED.items()}
    ends = {0: ("expired", 0.5), 1: ("expired", 0.5), 2: ("expired", 0.5)}
    run, recorded = tmp_path / "run", tmp_path / "recorded"
    with BatchServer(lambda id_, prompt: texts[id_], model="claude", ends=ends) as server:
        flags = ("--batch_submit", "--batch_poll_s", 0.01, "--base_url", server.base_url)
        for verb in ("brainstorm", "generate"):
            assert embedsmith(verb, *demo(run), *flags) == 0
        assert set(server.answered.values()) == {1}  # what expired was submitted again, and nothing else
        num_batches = sum(server.created.values())
        assert num_batches > 3
        assert embedsmith("generate", *demo(run), *flags) == 0
        assert sum(server.created.values()) == num_batches
    assert "192 of 192 replies usable" in capsys.readouterr().out
    for verb in ("brainstorm", "generate"):
        assert embedsmith(verb, *DEMO, "--output_dir", recorded) == 0
    for folder in (run, recorded):
        assert embedsmith("curate", *DEMO, "--output_dir", folder) == 0
    ours, theirs = folder_bytes(run / "dataset"), folder_bytes(recorded / "dataset")
    del ours["README.md"], theirs["README.md"]  # it tells the tokens of the replies, and the recording has none
    assert ours == theirs
