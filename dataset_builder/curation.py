"""From the journal's replies to examples, each rejection with a reason.

Curation is a pure function of journal and recipe: requests are read in the order of the plan, whatever the order in which
their replies arrived, and in pieces whose borders depend on nothing else, so that the same replies always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dataset_builder.checks import Row, check_row, normalize, normals
from dataset_builder.config import CurationArguments
from dataset_builder.contamination import Overlap, TestSets
from dataset_builder.duplicates import NUM_HASHES, Keys, Signatures, exact_key, signature
from dataset_builder.journal import Entry
from dataset_builder.outcome import token_counts
from dataset_builder.parsing import Rejection, check_reply, parse_example, parse_tasks, reply_text
from dataset_builder.schema import BRAINSTORMED, COLUMNS, FIXED_INSTRUCTIONS, TEXT_COLUMNS, Subgroup
from dataset_builder.words import num_words

REASONS = {
    "empty": "no text",
    "refusal": "the LLM refused",
    "length": "cut off at the longest reply allowed",
    "json": "no complete JSON",
    "schema": "a key missing or of the wrong type",
    "characters": "control characters or broken Unicode",
    "boilerplate": "the LLM speaks of itself or of its order, or left a placeholder",
    "copy": "two of the texts are the same, or positive or negative holds the whole query",
    "leak": "the label stands in the text",
    "num_words": "far longer or shorter than asked",
    "language": "surely another language or script than the one asked for",
    "contamination": "overlaps with the test set of an evaluation task",
    "duplicate": "query or positive occurred before, in nearly the same words",
    "inconsistent": "an embedding model does not find the positive, or finds the hard negative nearer",
}
"""All reasons for which a reply becomes no example, with what they mean."""

SCHEMA = pa.schema([(name, pa.string()) for name in (*COLUMNS, "reply")])
"""Of the rows on their way to the dataset: its columns, and the LLM's own words, in case they are rejected later."""

Split = str


def task_id(subgroup: Subgroup, task: str) -> str:
    """Return the id of a task: the same sentence is the same task, however it is spaced or punctuated."""
    return f"{subgroup}-{hashlib.sha256(normalize(task).encode()).hexdigest()[:12]}"


def split_of(row: Row, subgroup: Subgroup, test_size: float, kinds: Mapping[str, str] | None = None) -> Split:
    """Return 'test' or 'train', by a hash of the task; sts and bitext, with one task each, are split by example.

    Args:
        row: the example.
        subgroup: its subgroup.
        test_size: share of the tasks that goes to the test split.
        kinds: {task id: id of the task that it nearly repeats}: both go to the same split.
    """
    key = row["task_id"] if subgroup in BRAINSTORMED else row["id"]
    key = (kinds or {}).get(key, key)
    share = int.from_bytes(hashlib.sha256(f"split/{key}".encode()).digest()[:8]) / 2**64
    return "test" if share < test_size else "train"


def example_row(entry: Entry) -> Row | Rejection:
    """Return the dataset row of one answered generate request, or why there is none."""
    request = entry.request
    reply = parse_example(entry.body or {}, request.subgroup, request.attributes)
    if isinstance(reply, Rejection):
        return reply
    texts = reply.texts()
    instruction = entry.task or FIXED_INSTRUCTIONS[request.subgroup]
    attributes = {k: v for k, v in request.attributes.items() if k not in ("language", "positive_language")}
    language = request.attributes["language"]
    wants_negative = request.attributes.get("hard_negative", True)
    return {
        "query": texts.query,
        "positive": texts.positive,
        "negative": texts.negative if wants_negative else None,
        "instruction": instruction,
        "language": language,
        "positive_language": request.attributes.get("positive_language", language),
        "id": request.id,
        "task_id": task_id(request.subgroup, instruction),
        "model": model_name(entry),
        "prompt": request.prompt,
        "attributes": json.dumps(attributes, ensure_ascii=False, sort_keys=True),
    }


@dataclass
class Judged:
    """What became of some consecutive requests of one subgroup, judged one by one.

    Attributes:
        rows: the examples that passed so far, as `SCHEMA` says.
        keys: for `query` and, but for long-short, `positive`: the `exact_key` of each row, (rows,).
        signatures: for the same columns, the `signature` of each row, (rows, NUM_HASHES); None: not wanted.
        num_words: for each text column, the number of words of each row, (rows,); 0 where there is no text.
        rejected: rows for `rejected/`.
        overlaps: what was found of the test sets of evaluation tasks.
        num_unanswered: requests without a reply.
        prompt_tokens, completion_tokens, cost_usd: of the replies; None where none tells.
    """

    rows: pa.Table
    keys: list[Keys] = field(default_factory=list)
    signatures: list[Signatures] | None = None
    num_words: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    rejected: list[Row] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    num_unanswered: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None


def judge(
    entries: Iterable[Entry], subgroup: Subgroup, arguments: CurationArguments, test_sets: TestSets | None
) -> Judged:
    """Judge the entries of generate requests of one subgroup, each by itself."""
    judged, rows = Judged(SCHEMA.empty_table()), []
    compared = ("query",) if subgroup == "long-short" else ("query", "positive")  # labels may recur
    wants_signatures = arguments.near_duplicate_threshold < 1
    keys: list[list[int]] = [[] for _ in compared]
    signatures: list[list[Signatures]] = [[] for _ in compared]
    lengths: dict[str, list[int]] = {name: [] for name in TEXT_COLUMNS}
    for entry in entries:
        if entry.body is None:
            judged.num_unanswered += 1
            continue
        _count_usage(judged, entry)
        row = example_row(entry)
        if isinstance(row, Rejection):
            judged.rejected.append(rejected_row(entry, row))
            continue
        texts = normals(row)
        rejection = check_row(row, texts, subgroup, entry.request.attributes, arguments)
        if rejection is None and test_sets is not None:
            for name, text in texts.items():
                if found := test_sets.find(text.words):
                    judged.overlaps.append(Overlap(found[0], subgroup, name, found[1], row["id"]))
                    rejection = Rejection("contamination", f"{name} has of {found[0]}: '{found[1]}'")
                    break
        if rejection is not None:
            judged.rejected.append(rejected_row(entry, rejection))
            continue
        rows.append(row | {"reply": _raw(entry)})
        for column, name in enumerate(compared):
            keys[column].append(exact_key(texts[name].text))
            if wants_signatures:
                signatures[column].append(signature(texts[name].words))
        for name in TEXT_COLUMNS:
            lengths[name].append(max(1, round(num_words(texts[name].text))) if name in texts else 0)
    judged.rows = pa.Table.from_pylist(rows, SCHEMA)
    judged.keys = [np.array(column, dtype=np.uint64) for column in keys]
    if wants_signatures:
        empty = np.empty((0, NUM_HASHES), np.uint32)
        judged.signatures = [np.stack(column) if column else empty for column in signatures]
    judged.num_words = {name: np.array(column, dtype=np.int32) for name, column in lengths.items()}
    return judged


def later_rejection(row: Row, subgroup: Subgroup, rejection: Rejection) -> Row:
    """Return the row for `rejected/` of an example that passed alone, but not beside the others."""
    attributes = json.loads(row["attributes"]) | {"language": row["language"]}
    if row["positive_language"] != row["language"]:
        attributes["positive_language"] = row["positive_language"]
    return {
        "id": row["id"],
        "subgroup": subgroup,
        "reason": rejection.reason,
        "detail": rejection.detail,
        "task": row["instruction"],
        "prompt": row["prompt"],
        "attributes": json.dumps(attributes, ensure_ascii=False, sort_keys=True),
        "model": row["model"],
        "reply": row["reply"],
    }


def rejected_brainstorms(entries: Iterable[Entry]) -> list[Row]:
    """Return the brainstorm replies that gave no task."""
    rows = []
    for entry in entries:
        if entry.body is not None:
            parsed = parse_tasks(entry.body, entry.request.attributes["num_tasks"])
            if isinstance(parsed, Rejection):
                rows.append(rejected_row(entry, parsed))
    return rows


def superseded_rows(entries: Iterable[Entry]) -> list[Row]:
    """Return the replies that were asked for again; they are kept, but not counted on the card."""
    rows = []
    for entry in entries:
        request = entry.request
        rejection = check_reply(entry.body or {}, request.step, request.subgroup, request.attributes)
        if rejection is not None:
            rows.append(rejected_row(entry, Rejection(rejection.reason, f"asked again: {rejection.detail}")))
    return rows


def rejected_row(entry: Entry, rejection: Rejection) -> Row:
    """Return the row for `rejected/` of a reply."""
    return {
        "id": entry.request.id,
        "subgroup": entry.request.subgroup,
        "reason": rejection.reason,
        "detail": _printable(rejection.detail),
        "task": entry.task,
        "prompt": entry.request.prompt,
        "attributes": json.dumps(entry.request.attributes, ensure_ascii=False, sort_keys=True),
        "model": model_name(entry),
        "reply": _raw(entry),
    }


def model_name(entry: Entry) -> str:
    """Return the model that the reply says it is from."""
    return _printable(str((entry.body or {}).get("model") or "unknown"))


def _count_usage(judged: Judged, entry: Entry) -> None:
    for name, count in zip(("prompt_tokens", "completion_tokens"), token_counts(entry.body or {}), strict=True):
        if count is not None:
            setattr(judged, name, (getattr(judged, name) or 0) + count)
    if entry.cost_usd is not None:
        judged.cost_usd = (judged.cost_usd or 0.0) + entry.cost_usd


def _raw(entry: Entry) -> str:
    text = reply_text(entry.body or {})
    return _printable(text if isinstance(text, str) else json.dumps(entry.body))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
