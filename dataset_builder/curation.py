"""The verb `curate`: from the journal's replies to examples, each rejection with a reason.

Curation is a pure function of journal and recipe: requests are read in the order of the plan, whatever the order in
which their replies arrived, so that the same replies always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dataset_builder.config import CurationArguments
from dataset_builder.journal import Entry
from dataset_builder.language_check import wrong_language
from dataset_builder.outcome import token_counts
from dataset_builder.parsing import Rejection, check_reply, parse_example, parse_tasks, reply_text
from dataset_builder.schema import BRAINSTORMED, FIXED_INSTRUCTIONS, SUBGROUPS, Subgroup

REASONS = {
    "empty": "no text",
    "refusal": "the LLM refused",
    "length": "cut off at the longest reply allowed",
    "json": "no complete JSON",
    "schema": "a key missing or of the wrong type",
    "characters": "control characters or broken Unicode",
    "copy": "two of the texts are the same, or positive or negative holds the whole query",
    "leak": "the label stands in the text",
    "language": "surely another language than the one asked for",
    "duplicate": "query or positive occurred before",
}
"""All reasons for which a reply becomes no example, with what they mean."""

Row = dict[str, Any]
Split = str


@dataclass
class Curated:
    """Examples by subgroup and split, tasks, rejected replies, and the counts that the card shows."""

    examples: dict[Subgroup, dict[Split, list[Row]]] = field(default_factory=dict)
    tasks: list[Row] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)
    num_unanswered: Counter[Subgroup] = field(default_factory=Counter)
    prompt_tokens: int | None = None  # None: no reply reported its tokens
    completion_tokens: int | None = None
    cost_usd: float | None = None

    def rows(self) -> Iterator[Row]:
        """Yield all examples, by subgroup and split."""
        for splits in self.examples.values():
            for rows in splits.values():
                yield from rows


def normalize(text: str) -> str:
    """Return `text` without case, punctuation and spacing, for comparing.

    Marks stay (without its vowel signs a Hindi word is another one), and so do symbols and the sign of a number.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = (
        char
        if unicodedata.category(char)[0] in "LMNS" or (char == "-" and after.isdigit() and not before.isalnum())
        else " "
        for before, char, after in zip(" " + text, text, text[1:] + " ", strict=False)
    )
    return " ".join("".join(kept).split())


def task_id(subgroup: Subgroup, task: str) -> str:
    """Return the id of a task: the same sentence is the same task, however it is spaced or punctuated."""
    return f"{subgroup}-{hashlib.sha256(normalize(task).encode()).hexdigest()[:12]}"


def split_of(row: Row, subgroup: Subgroup, test_size: float) -> Split:
    """Return 'test' or 'train', by a hash of the task; sts and bitext, with one task each, are split by example."""
    key = row["task_id"] if subgroup in BRAINSTORMED else row["id"]
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
        "model": _model(entry),
        "prompt": request.prompt,
        "attributes": json.dumps(attributes, ensure_ascii=False, sort_keys=True),
    }


def check_row(row: Row, subgroup: Subgroup, *, check_language: bool = True) -> Rejection | None:
    """Return why a row by itself is no good example, or None."""
    texts = {name: normalize(row[name]) for name in ("query", "positive", "negative") if row[name] is not None}
    for name, text in texts.items():
        if not text:
            return Rejection("empty", f"{name} has no letters")
    if rejection := _copies(texts, subgroup):
        return rejection
    if not check_language:
        return None
    judged: list[tuple[str, str]] = []
    together: dict[str, str] = {}
    for name in texts:  # each by itself, and short texts together with the others of their language
        code = row["language"] if name == "query" else row["positive_language"]
        judged.append((code, row[name]))
        together[code] = together.get(code, "") + row[name] + "\n"
    for code, text in [*judged, *together.items()]:
        if label := wrong_language(text, code):
            return Rejection("language", f"asked for {code}, is {label}")
    return None


def _copies(texts: dict[str, str], subgroup: Subgroup) -> Rejection | None:
    pairs = [("positive", "query"), ("negative", "query"), ("negative", "positive")]
    for one, other in ((one, other) for one, other in pairs if one in texts):
        if texts[one] == texts[other]:
            return Rejection("copy", f"{one} equals {other}")
    for name in ("positive", "negative"):
        if name not in texts:
            continue
        if subgroup == "long-short":
            edge = "" if _has_no_spaces(texts[name]) else " "
            if edge + texts[name] + edge in edge + texts["query"] + edge:
                return Rejection("leak", f"{name} label '{texts[name][:60]}' stands in the text")
        elif len(texts["query"]) >= 30 and texts["query"] in texts[name]:
            return Rejection("copy", f"{name} holds the whole query")
    return None


def _has_no_spaces(label: str) -> bool:
    """Tell whether a label of two letters or more is in a script that writes no spaces between words."""
    names = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
    return len(label) > 1 and all(unicodedata.name(c, "").startswith(names) for c in label if c != " ")


class Duplicates:
    """Finds queries and positives that occurred before in the subgroup; labels of long-short may recur."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, bytes], str] = {}

    def check(self, row: Row, subgroup: Subgroup) -> Rejection | None:
        """Return the rejection of a duplicate; a row that is none counts as seen from then on."""
        names = ("query",) if subgroup == "long-short" else ("query", "positive")
        keys = [(subgroup, name, hashlib.sha256(normalize(row[name]).encode()).digest()[:16]) for name in names]
        for key in keys:
            if first := self._seen.get(key):
                return Rejection("duplicate", f"{key[1]} of {first}")
        self._seen.update(dict.fromkeys(keys, str(row["id"])))
        return None


def curate_entries(entries: Iterable[Entry], arguments: CurationArguments) -> Curated:
    """Turn the entries of all generate requests, in the order of the plan, into examples and rejections."""
    curated, duplicates = Curated(), Duplicates()
    for entry in entries:
        request = entry.request
        splits = curated.examples.setdefault(request.subgroup, {"train": [], "test": []})
        if entry.body is None:
            curated.num_unanswered[request.subgroup] += 1
            continue
        _count_usage(curated, entry)
        row = example_row(entry)
        if not isinstance(row, Rejection):
            rejection = check_row(row, request.subgroup, check_language=arguments.check_language)
            rejection = rejection or duplicates.check(row, request.subgroup)
            if rejection is None:
                splits[split_of(row, request.subgroup, arguments.test_size)].append(row)
                continue
            row = rejection
        curated.rejected.append(_rejected_row(entry, row))
    curated.examples = {subgroup: curated.examples[subgroup] for subgroup in SUBGROUPS if subgroup in curated.examples}
    return curated


def task_rows(entries: Iterable[tuple[Entry, list[str]]], curated: Curated) -> list[Row]:
    """Return one row per distinct brainstormed task, with the split and the number of its examples."""
    used = Counter(row["task_id"] for row in curated.rows())
    split = {
        row["task_id"]: name for splits in curated.examples.values() for name, rows in splits.items() for row in rows
    }
    rows: dict[str, Row] = {}
    for entry, tasks in entries:
        for task in tasks:
            id_ = task_id(entry.request.subgroup, task)
            rows.setdefault(
                id_,
                {
                    "task_id": id_,
                    "subgroup": entry.request.subgroup,
                    "task": task,
                    "split": split.get(id_),
                    "num_examples": used[id_],
                    "model": _model(entry),
                    "prompt": entry.request.prompt,
                },
            )
    return list(rows.values())


def rejected_brainstorms(entries: Iterable[Entry]) -> list[Row]:
    """Return the brainstorm replies that gave no task."""
    rows = []
    for entry in entries:
        if entry.body is not None:
            parsed = parse_tasks(entry.body, entry.request.attributes["num_tasks"])
            if isinstance(parsed, Rejection):
                rows.append(_rejected_row(entry, parsed))
    return rows


def superseded_rows(entries: Iterable[Entry]) -> list[Row]:
    """Return the replies that were asked for again; they are kept, but not counted on the card."""
    rows = []
    for entry in entries:
        request = entry.request
        rejection = check_reply(entry.body or {}, request.step, request.subgroup, request.attributes)
        if rejection is not None:
            rows.append(_rejected_row(entry, Rejection(rejection.reason, f"asked again: {rejection.detail}")))
    return rows


def _count_usage(curated: Curated, entry: Entry) -> None:
    for name, count in zip(("prompt_tokens", "completion_tokens"), token_counts(entry.body or {}), strict=True):
        if count is not None:
            setattr(curated, name, (getattr(curated, name) or 0) + count)
    if entry.cost_usd is not None:
        curated.cost_usd = (curated.cost_usd or 0.0) + entry.cost_usd


def _rejected_row(entry: Entry, rejection: Rejection) -> Row:
    text = reply_text(entry.body or {})
    raw = text if isinstance(text, str) else json.dumps(entry.body)
    return {
        "id": entry.request.id,
        "subgroup": entry.request.subgroup,
        "reason": rejection.reason,
        "detail": _printable(rejection.detail),
        "task": entry.task,
        "prompt": entry.request.prompt,
        "attributes": json.dumps(entry.request.attributes, ensure_ascii=False, sort_keys=True),
        "reply": _printable(raw),
    }


def _model(entry: Entry) -> str:
    return _printable(str((entry.body or {}).get("model") or "unknown"))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "\\x00")
