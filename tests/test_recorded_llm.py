"""Recorded replies: batch output files as the OpenAI Batch API and `vllm run-batch` write them."""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataset_builder.asking import generate, journal_path
from dataset_builder.config import PlanArguments
from dataset_builder.errors import InputError, RunError
from dataset_builder.llm_config import LLMArguments
from dataset_builder.plan import brainstorm_requests, generate_requests
from dataset_builder.recorded_llm import DEFAULT_REPLIES, read_batch_lines, read_batch_output
from embedsmith import RECIPES_DIR
from tests.replies import answer, ask_recorded, batch_line, completion, write_batch_output

REQUESTS = list(generate_requests(PlanArguments("unused", 6, subgroups=["sts"])))
IDS = [request.id for request in REQUESTS]
GOOD = {request.id: answer(request) for request in REQUESTS}


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "replies.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def play(run: Path, path: Path, num_examples: int = 6, **settings: Any) -> str:
    """Ask a file for the examples of a small plan; return what `generate` says."""
    plan = PlanArguments(str(run), num_examples, subgroups=["sts"])
    return generate(plan, LLMArguments(recorded_replies=str(path), **settings))


def kept(run: Path) -> list[tuple[str, Any]]:
    """Return (request id, chat completion) of every reply in the journal, in the order in which they were committed."""
    with contextlib.closing(sqlite3.connect(journal_path(PlanArguments(str(run))))) as db:
        rows = db.execute("SELECT request_id, body FROM replies ORDER BY rowid").fetchall()
    return [(id_, json.loads(body)) for id_, body in rows]


@pytest.mark.parametrize("name", ["replies.jsonl", "replies.jsonl.gz"])
def test_plain_and_gzipped_files(tmp_path: Path, name: str) -> None:
    path = write_batch_output(tmp_path / name, GOOD)
    assert play(tmp_path / "run", path) == "6 of 6 replies usable"
    assert kept(tmp_path / "run") == list(GOOD.items())


def test_replies_come_in_the_order_of_the_file_and_only_those_that_are_pending(tmp_path: Path) -> None:
    path = file_of(tmp_path, *(batch_line(id_, GOOD.get(id_, {})) for id_ in ("other", *reversed(IDS))))
    play(tmp_path / "run", path, 3)
    assert kept(tmp_path / "run") == [(id_, GOOD[id_]) for id_ in reversed(IDS[:3])]
    play(tmp_path / "run", path, 3)
    assert len(kept(tmp_path / "run")) == 3
    play(tmp_path / "run", path, 6)
    assert kept(tmp_path / "run")[3:] == [(id_, GOOD[id_]) for id_ in reversed(IDS[3:])]


@pytest.mark.parametrize("first", ["good", "bad"])
def test_of_several_replies_to_a_request_the_first_one_counts(tmp_path: Path, first: str) -> None:
    """A reply that cannot be used is a reply too: a recording is not asked again."""
    body = GOOD[IDS[0]] if first == "good" else completion("bad")
    path = file_of(
        tmp_path,
        batch_line(IDS[0], None, status_code=500),
        batch_line(IDS[0], completion("refused"), error={"code": "expired"}),
        batch_line(IDS[0], body),
        batch_line(IDS[0], completion("second")),
        *(batch_line(id_, GOOD[id_]) for id_ in IDS[1:]),
        batch_line(IDS[0], GOOD[IDS[0]]),
    )
    for _ in range(2):
        assert play(tmp_path / "run", path) == f"{6 if first == 'good' else 5} of 6 replies usable"
        assert [reply for id_, reply in kept(tmp_path / "run") if id_ == IDS[0]] == [body]


@pytest.mark.parametrize("num_lines", [499, 500, 501, 1203])
def test_a_file_of_any_length(tmp_path: Path, num_lines: int) -> None:
    others = [batch_line(f"other-{n}", completion("other")) for n in range(num_lines - 1)]
    path = file_of(tmp_path, *others, batch_line(IDS[0], GOOD[IDS[0]]))
    assert play(tmp_path / "run", path, 1) == "1 of 1 replies usable"


def test_blank_lines_and_other_alphabets(tmp_path: Path) -> None:
    text = "三 😀 \u2028 é"
    path = file_of(
        tmp_path, "", batch_line(IDS[0], completion(text)), "  ", batch_line(IDS[1], completion("\ud83d")), ""
    )
    with pytest.raises(RunError, match="No reply could be used"):
        play(tmp_path / "run", path, 2)
    assert kept(tmp_path / "run") == [(IDS[0], completion(text)), (IDS[1], completion("\ud83d"))]


@pytest.mark.parametrize(
    "line",
    [
        batch_line(IDS[2], None, status_code=400, error={"message": "too long"}),
        batch_line(IDS[2], {"error": "server"}, status_code=500),
        batch_line(IDS[2], completion("late"), error={"code": "batch_expired"}),
        batch_line(IDS[2], None),
        f'{{"custom_id": "{IDS[2]}", "response": null, "error": {{"code": "batch_expired"}}}}',
    ],
)
def test_a_missing_reply_is_refused_before_any_is_played(tmp_path: Path, line: str) -> None:
    path = file_of(tmp_path, *(batch_line(id_, GOOD[id_]) for id_ in IDS if id_ != IDS[2]), line)
    with pytest.raises(InputError, match=rf"no reply to 1 of the 6 requests .* '{IDS[2]}'"):
        play(tmp_path / "run", path)
    assert not journal_path(PlanArguments(str(tmp_path / "run"))).exists()
    assert play(tmp_path / "run", path, 2) == "2 of 2 replies usable"
    with pytest.raises(InputError, match=rf"no reply to 1 of the 4 requests .* '{IDS[2]}'"):
        play(tmp_path / "run", path)
    assert kept(tmp_path / "run") == [(id_, GOOD[id_]) for id_ in IDS[:2]]


def test_what_a_line_tells_of_a_request_without_reply(tmp_path: Path) -> None:
    """OpenAI tells a refusal in the body, vLLM in `error`, flat or nested; what expired has no response at all."""
    path = file_of(
        tmp_path,
        batch_line("openai", {"error": {"message": "too long"}}, status_code=400),
        batch_line("vllm", None, status_code=400, error={"message": "too long"}),
        batch_line("new vllm", None, status_code=422, error={"error": {"message": "too long"}}),
        '{"custom_id": "expired", "response": null, "error": {"code": "batch_expired", "message": "too late"}}',
        batch_line("silent", None, status_code=500),
        batch_line("odd", "text"),
        batch_line("good", {"choices": []}),
    )
    assert dict(read_batch_lines(path)) == {
        "openai": (400, "too long"),
        "vllm": (400, "too long"),
        "new vllm": (422, "too long"),
        "expired": (0, "too late"),
        "silent": (500, "no reason given"),
        "odd": (200, "the answer is no chat completion"),
        "good": {"choices": []},
    }
    assert list(read_batch_output(path)) == [("good", {"choices": []})]


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        '{"custom_id": "a", "response": {"status_code": 200, "body": {"choi',
        "null",
        "[]",
        '"text"',
        '{"response": {"status_code": 200, "body": {}}}',
        '{"custom_id": "a", "response": {"status_code": 200}}',
        '{"custom_id": "a", "response": "OK"}',
        '{"custom_id": ["a"], "response": {"status_code": 200, "body": {}}}',
        '{"custom_id": "a", "choices": [' + "[" * 100_000,
    ],
    ids=lambda line: line[:50],
)
def test_a_broken_line_is_told_by_its_number(tmp_path: Path, line: str) -> None:
    path = file_of(tmp_path, batch_line(IDS[0], GOOD[IDS[0]]), "", line)
    with pytest.raises(InputError, match=r"Line 3 of .* is no line of a batch output file"):
        play(tmp_path / "run", path, 1)


GZIPPED = gzip.compress("".join(batch_line(f"{n}", completion(f"{n * n}")) + "\n" for n in range(500)).encode())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("replies.jsonl.gz", GZIPPED[: len(GZIPPED) // 2]),
        ("replies.jsonl.gz", GZIPPED[:200] + bytes(byte ^ 255 for byte in GZIPPED[200:300]) + GZIPPED[300:]),
        ("replies.jsonl.gz", GZIPPED[:-8] + b"checksum"),
        ("replies.jsonl.gz", b"plain text"),
        ("replies.jsonl", GZIPPED),
        ("replies.jsonl", b'{"custom_id": "\xff"}'),
    ],
    ids=[
        "half a file",
        "broken in the middle",
        "broken checksum",
        "not gzipped",
        "gzipped without saying",
        "not UTF-8",
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a batch output file"):
        list(read_batch_output(tmp_path / name))


@pytest.mark.parametrize("name", ["", "missing.jsonl"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="which is no file"):
        list(read_batch_output(tmp_path / name))


def test_the_shipped_replies_answer_the_demo_exactly() -> None:
    recipe = yaml.safe_load((RECIPES_DIR / "demo" / "dataset.yaml").read_text(encoding="utf-8"))
    fields = {key: recipe[key] for key in recipe.keys() & PlanArguments.__dataclass_fields__.keys()}
    fields["languages"] = [f"{code}={weight}" for code, weight in recipe["languages"].items()]
    plan = PlanArguments(**fields)
    planned = [request.id for step in (brainstorm_requests, generate_requests) for request in step(plan)]
    assert sorted(custom_id for custom_id, _ in read_batch_output(DEFAULT_REPLIES)) == sorted(planned)


def test_replies_that_were_recorded_for_other_tasks_are_refused(tmp_path: Path) -> None:
    """With two examples a task, example 1 is about task 0; a reply recorded for task 1 answers another request."""
    one, two = (
        PlanArguments(
            str(tmp_path / name), 8, subgroups=["long-short"], examples_per_task=per_task, tasks_per_brainstorm=8
        )
        for name, per_task in (("one", 1.0), ("two", 2.0))
    )
    replies = {r.id: answer(r) for step in (brainstorm_requests, generate_requests) for r in step(one)}
    ask_recorded(one, replies)
    with pytest.raises(InputError, match="no reply to"):
        ask_recorded(two, replies)


def test_settings_of_the_llm_are_checked() -> None:
    assert LLMArguments().llm == "recorded"
    with pytest.raises(InputError, match="`max_attempts` is 0"):
        LLMArguments(max_attempts=0)
    with pytest.raises(InputError, match="the price of a token is unknown"):
        LLMArguments(max_cost_usd=5.0, input_price=[1.0])
