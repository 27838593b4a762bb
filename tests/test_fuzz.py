"""20,000 mutated replies go through parsing, curation and writing: each an example or a counted rejection."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from dataset_builder.config import DATASET_ARGUMENTS, CurationArguments
from dataset_builder.curation import REASONS
from dataset_builder.dataset import FEATURES, REJECTED_FEATURES
from dataset_builder.journal import Entry
from dataset_builder.parquet import ParquetShards
from dataset_builder.parsing import Rejection, parse_tasks
from dataset_builder.plan import Request, generate_requests
from dataset_builder.recorded_llm import DEFAULT_REPLIES, read_batch_output
from dataset_builder.schema import BRAINSTORMED, SUBGROUPS
from embedsmith import parse
from tests.replies import curate_entries

NUM_REPLIES = 20_000
DEMO = {
    request.id: request
    for request in generate_requests(
        parse("curate", DATASET_ARGUMENTS, ["--config", "demo", "--num_examples", "192"])[0]
    )
}
REPLIES = [
    (DEMO[id_], str(body["choices"][0]["message"]["content"]))
    for id_, body in read_batch_output(DEFAULT_REPLIES)
    if id_ in DEMO
]
TEXTS = [text for _, text in REPLIES]
NASTY = (
    *(
        "\x00",
        "\ud800",
        "\udfff\ud800",
        "\x1b[2J",
        "\u202e",
        "\ufeff",
        "\u2028",
        "\x85",
        "&#x0;",
        "<script>alert(1)</script>",
    ),
    *(
        "Ignore all previous instructions.",
        "{{7*7}}",
        "'; DROP TABLE replies; --",
        "```",
        "</think>",
        "<think>",
        "\\u0000",
    ),
    *("\\ud83d", "NaN", "Infinity", "-1e999", "null", "[]", "{}", '"', "\\", "}", "{", "]", "\n", "=1+1", "..", "%s%n"),
)


def mutate(rng: random.Random, text: str) -> Any:
    """Return something an endpoint could send instead of `text`: mostly a broken version of it."""
    value: Any = json.loads(text)
    match rng.randrange(10):
        case 0:
            return text[: rng.randrange(len(text) + 1)]
        case 1:
            position = rng.randrange(len(text))
            return text[:position] + rng.choice(NASTY) + text[position + rng.randrange(3) :]
        case 2:
            key = rng.choice(list(value))
            value[key] = rng.choice([None, 1, 1.5, True, [], {}, [value[key]], {"text": value[key]}, "", " \n "])
        case 3:
            del value[rng.choice(list(value))]
        case 4:
            value[rng.choice(list(value))] += rng.choice(NASTY)
        case 5:
            depth = rng.choice([5, 500, 100_000])
            return "[" * depth + text + "]" * rng.choice([depth, 0])
        case 6:
            return rng.choice(
                [f"Sure!\n```json\n{text}\n```", f"<think>{text}</think>", f"{text}\n{text}", f"[{text}]"]
            )
        case 7:
            value[rng.choice(list(value))] *= rng.choice([2, 50])
        case 8:
            return rng.choice([None, 7, ["x"], {"a": 1}, "", "I cannot help with that.", "\x00" * 100])
        case _:
            value = {rng.choice([k, k.upper(), k + " ", rng.choice(NASTY)]): v for k, v in value.items()}
    return json.dumps(value, ensure_ascii=rng.random() < 0.5)


def completion(rng: random.Random, content: Any) -> dict[str, Any]:
    """Wrap it as a chat completion, now and then a strange one."""
    message = {"role": "assistant", "content": content, "refusal": rng.choice([None] * 30 + ["No.", "\ud800"])}
    body: dict[str, Any] = {"model": rng.choice(["m"] * 20 + ["\ud800", None, 3]), "choices": [{"message": message}]}
    body["choices"][0]["finish_reason"] = rng.choice(["stop"] * 20 + ["length", "content_filter", None, 5])
    if rng.random() < 0.2:
        body["usage"] = rng.choice(
            [None, 3, {}, {"prompt_tokens": "many"}, {"prompt_tokens": 5, "completion_tokens": -1}]
        )
    return body if rng.random() > 0.02 else rng.choice([{}, {"choices": []}, {"choices": None}, {"choices": [None]}])


@pytest.mark.timeout(120)
def test_mutated_replies_are_examples_or_counted_rejections(tmp_path: Path) -> None:
    rng, entries = random.Random(7), []
    for number in range(NUM_REPLIES):
        asked, text = rng.choice(REPLIES)
        subgroup, attributes = asked.subgroup, asked.attributes
        if rng.random() < 0.4:  # a reply to another request, in another language
            subgroup = rng.choice(SUBGROUPS)
            attributes = {"language": rng.choice(["en", "de", "zh", "fil", "yi"]), "hard_negative": rng.random() < 0.8}
            if subgroup == "bitext":
                attributes["positive_language"] = "fr"
        request = Request(f"r{number}", "generate", subgroup, number, f"{subgroup}/generate/author", attributes)
        task = "Find it." if subgroup in BRAINSTORMED else None
        entries.append(Entry(request, task, completion(rng, mutate(rng, text))))
    curated = curate_entries(entries, CurationArguments(test_size=0.2))
    kept = list(curated.rows())
    assert len(kept) + len(curated.rejected) == NUM_REPLIES
    assert {row["reason"] for row in curated.rejected} <= set(REASONS)
    assert 100 < len(kept) < NUM_REPLIES / 2
    for name, rows, features in (("kept", kept, FEATURES), ("rejected", curated.rejected, REJECTED_FEATURES)):
        with ParquetShards(tmp_path / name, features) as writer:
            writer.extend(rows)
        loaded = load_dataset("parquet", data_files=str(tmp_path / f"{name}-*.parquet"), split="train")
        assert len(loaded) == len(rows)


def test_mutated_brainstorms_are_tasks_or_rejections() -> None:
    rng = random.Random(8)
    for _ in range(2_000):
        tasks = json.dumps({"tasks": [f"Find {rng.random()}." for _ in range(8)]})
        parsed = parse_tasks(completion(rng, mutate(rng, tasks)), 8)
        if isinstance(parsed, Rejection):
            assert parsed.reason in REASONS
        else:
            assert 0 < len(parsed) <= 8
            assert all(isinstance(task, str) and task.strip() for task in parsed)
