"""Recorded replies: batch output files as the OpenAI Batch API and `vllm run-batch` write them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import yaml

from dataset_builder.config import PlanArguments
from dataset_builder.errors import InputError
from dataset_builder.llm_config import LLMArguments
from dataset_builder.plan import Request, brainstorm_requests, generate_requests
from dataset_builder.recorded_llm import DEFAULT_REPLIES, read_batch_lines, read_batch_output, recorded_replies
from embedsmith import RECIPES_DIR
from tests.replies import answer, ask_recorded, batch_line, completion, write_batch_output

REQUESTS = list(generate_requests(PlanArguments("unused", 6, subgroups=["sts"])))
IDS = [request.id for request in REQUESTS]


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "replies.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def played(path: Path, requests: list[Request] = REQUESTS) -> list[tuple[str, str]]:
    """Return (request id, text of the reply) in the order in which they come."""
    return [(r.id, body["choices"][0]["message"]["content"]) for r, body in recorded_replies(path, requests)]


@pytest.mark.parametrize("name", ["replies.jsonl", "replies.jsonl.gz"])
def test_plain_and_gzipped_files(tmp_path: Path, name: str) -> None:
    path = write_batch_output(tmp_path / name, {request.id: answer(request) for request in REQUESTS})
    assert list(recorded_replies(path, REQUESTS)) == [(request, answer(request)) for request in REQUESTS]


def test_replies_come_in_the_order_of_the_file_and_only_those_that_are_pending(tmp_path: Path) -> None:
    path = file_of(tmp_path, *(batch_line(id_, completion(id_)) for id_ in ("other", *reversed(IDS))))
    assert played(path, REQUESTS[:3]) == [(id_, id_) for id_ in reversed(IDS[:3])]
    assert played(path, []) == []


def test_of_several_replies_to_a_request_the_first_good_one_counts(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        batch_line(IDS[0], None, status_code=500),
        batch_line(IDS[0], completion("refused"), error={"code": "expired"}),
        batch_line(IDS[0], completion("first")),
        batch_line(IDS[0], completion("second")),
    )
    assert played(path, REQUESTS[:1]) == [(IDS[0], "first")]


def test_blank_lines_and_other_alphabets(tmp_path: Path) -> None:
    text = "三 😀 \u2028 é"
    path = file_of(
        tmp_path, "", batch_line(IDS[0], completion(text)), "  ", batch_line(IDS[1], completion("\ud83d")), ""
    )
    assert played(path, REQUESTS[:2]) == [(IDS[0], text), (IDS[1], "\ud83d")]


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
    path = file_of(tmp_path, *(batch_line(id_, completion(id_)) for id_ in IDS if id_ != IDS[2]), line)
    replies = recorded_replies(path, REQUESTS)
    with pytest.raises(InputError, match=rf"no reply to 1 of the 6 requests .* '{IDS[2]}'"):
        next(replies)


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
    path = file_of(tmp_path, batch_line(IDS[0], completion("good")), "", line)
    with pytest.raises(InputError, match=r"Line 3 of .* is no line of a batch output file"):
        played(path, REQUESTS[:1])


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
