"""Replies as an endpoint or a batch output file gives them, made for the requests of small plans.

`sentences.tsv` has one text in each of the 93 languages: article 1 of the Universal Declaration of Human Rights, or
words near to it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataset_builder.asking import brainstorm, generate
from dataset_builder.config import PlanArguments
from dataset_builder.llm_config import LLMArguments
from dataset_builder.plan import Request, brainstorm_requests, generate_requests
from dataset_builder.schema import example_reply

Body = dict[str, Any]

_TABLE = Path(__file__).with_name("sentences.tsv").read_text(encoding="utf-8")
SENTENCES: dict[str, str] = dict(line.split("\t") for line in _TABLE.splitlines())


def completion(text: object, finish_reason: str = "stop", **more: Any) -> Body:
    """Return a chat completion with `text` as its message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return {"object": "chat.completion", "model": "test-llm", "choices": [choice], **more}


def answer(request: Request) -> Body:
    """Return a good reply to a request, in the languages that it asks for, unlike the reply to any other request."""
    if request.step == "brainstorm":
        numbers = range(request.attributes["num_tasks"])
        tasks = [f"Find match {n} of kind {request.index} for {request.subgroup}." for n in numbers]
        return completion(json.dumps({"tasks": tasks}))
    languages = [request.attributes["language"]]
    languages += [request.attributes.get("positive_language", languages[0])] * 2
    model = example_reply(request.subgroup, hard_negative=request.attributes.get("hard_negative", True))
    letters = zip("QPN", languages, strict=True)
    texts = [f"{letter}{request.index}. {SENTENCES[language]}" for letter, language in letters]
    return completion(json.dumps(dict(zip(model.model_fields, texts, strict=False)), ensure_ascii=False))


def answers(plan: PlanArguments) -> dict[str, Body]:
    """Return good replies to all requests of a plan, by request id."""
    return {request.id: answer(request) for step in (brainstorm_requests, generate_requests) for request in step(plan)}


def batch_line(custom_id: Any, body: Any, *, status_code: int = 200, error: Any = None) -> str:
    """Return one line of a batch output file."""
    response = {"status_code": status_code, "request_id": "r", "body": body}
    return json.dumps({"id": "b", "custom_id": custom_id, "response": response, "error": error})


def write_batch_output(path: Path, replies: Mapping[str, Body]) -> Path:
    """Write a batch output file, gzipped if its name ends in .gz; return its path."""
    text = "".join(batch_line(custom_id, body) + "\n" for custom_id, body in replies.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def ask_recorded(plan: PlanArguments, replies: Mapping[str, Body], **settings: Any) -> None:
    """Brainstorm and generate with `replies` as the LLM."""
    path = write_batch_output(plan.run_dir / "replies.jsonl", replies)
    llm = LLMArguments(recorded_replies=str(path), **settings)
    brainstorm(plan, llm)
    generate(plan, llm)


def read_parquet(*paths: Path) -> list[dict[str, Any]]:
    """Return the rows of parquet files."""
    return [row for path in paths for row in pq.read_table(path).to_pylist()]
