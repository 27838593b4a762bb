"""Replies as an endpoint or a batch output file gives them, made for the requests of small plans.

`sentences.tsv` has one text in each of the 93 languages: article 1 of the Universal Declaration of Human Rights, or
words near to it.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq

from dataset_builder.asking import brainstorm, generate, journal_path
from dataset_builder.checks import Row
from dataset_builder.composition import Composition
from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.curation import Judged, judge
from dataset_builder.journal import Entry, Journal
from dataset_builder.llm_config import LLMArguments
from dataset_builder.outcome import Outcome
from dataset_builder.parsing import check_reply
from dataset_builder.plan import Request, brainstorm_requests, generate_requests
from dataset_builder.recorded_llm import DEFAULT_REPLIES, read_batch_output
from dataset_builder.schema import SUBGROUPS, Subgroup, example_reply
from dataset_builder.sifting import Example, sift
from dataset_builder.tasks import read_tasks

Body = dict[str, Any]

_TABLE = Path(__file__).with_name("sentences.tsv").read_text(encoding="utf-8")
SENTENCES: dict[str, str] = dict(line.split("\t") for line in _TABLE.splitlines())


def recorded_texts() -> dict[str, str]:
    """Return the text of each reply that is shipped, by request id."""
    return {id_: str(body["choices"][0]["message"]["content"]) for id_, body in read_batch_output(DEFAULT_REPLIES)}


def completion(text: object, finish_reason: str = "stop", **more: Any) -> Body:
    """Return a chat completion with `text` as its message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return {"object": "chat.completion", "model": "test-llm", "choices": [choice], **more}


def text_in(language: str, start: str, num_words: int) -> str:
    """Return a text of about `num_words` words in a language, unlike any other: numbers stand between its words."""
    rng, sentence = random.Random(f"{language}/{start}"), SENTENCES[language]
    parts = sentence.split()
    if len(parts) < 6:  # no spaces between words: three letters stand for one
        parts = [sentence[n : n + 3] for n in range(0, len(sentence), 3)]
    pieces = (parts[n // 3 % len(parts)] if n % 3 else str(rng.randrange(10**6)) for n in range(num_words))
    return f"{start}. {' '.join(pieces)}"


def answer(request: Request) -> Body:
    """Return a good reply to a request, in the languages and lengths that it asks for, unlike that to any other request."""
    if request.step == "brainstorm":
        numbers = range(request.attributes["num_tasks"])
        rng = random.Random(request.id)
        topics = [" ".join(str(rng.randrange(10**6)) for _ in range(5)) for _ in numbers]
        tasks = [f"Find match {n} of kind {request.index} for {request.subgroup}: {topics[n]}." for n in numbers]
        return completion(json.dumps({"tasks": tasks}))
    attributes = request.attributes
    languages = [attributes["language"]]
    languages += [attributes.get("positive_language", languages[0])] * 2
    model = example_reply(request.subgroup, hard_negative=attributes.get("hard_negative", True))
    long = attributes.get("num_words", 300)
    lengths = {"short-long": (9, long, long), "long-short": (long, 9, 9), "long-long": (300, 300, 300)}
    columns = zip("QPN", languages, lengths.get(request.subgroup, (30, 30, 30)), strict=True)
    texts = [text_in(language, f"{letter}{request.index}", length) for letter, language, length in columns]
    return completion(json.dumps(dict(zip(model.model_fields, texts, strict=False)), ensure_ascii=False))


@dataclass
class Curated:
    """What became of entries: examples by subgroup and split, rejected rows, and all counts."""

    examples: dict[Subgroup, dict[str, list[Row]]] = field(default_factory=dict)
    rejected: list[Row] = field(default_factory=list)
    composition: Composition = field(default_factory=Composition)

    def rows(self) -> list[Row]:
        """Return all examples."""
        return [row for splits in self.examples.values() for rows in splits.values() for row in rows]


def curate_entries(entries: Iterable[Entry], arguments: CurationArguments) -> Curated:
    """Curate entries as the verb does."""
    curated, by_subgroup = Curated(), dict[Subgroup, list[Entry]]()
    for entry in entries:
        by_subgroup.setdefault(entry.request.subgroup, []).append(entry)
    for subgroup in sorted(by_subgroup, key=SUBGROUPS.index):
        splits = curated.examples.setdefault(subgroup, {"train": [], "test": []})
        with TemporaryDirectory() as folder:
            judged = judge(by_subgroup[subgroup], subgroup, arguments, None)
            for item in sift(iter([judged]), subgroup, arguments, {}, Path(folder)):
                if isinstance(item, Judged):
                    curated.composition.add_judged(item)
                    curated.rejected += item.rejected
                elif isinstance(item, Example):
                    curated.composition.add(item.row, subgroup, item.split, item.num_words)
                    splits[item.split].append(item.row)
                else:
                    curated.rejected.append(item)
    curated.composition.add_rejected(curated.rejected)
    return curated


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


def fill_journal(plan: PlanArguments, replies: Mapping[str, Body]) -> None:
    """Plan all requests of a plan, and commit `replies`; the other requests stay without one."""
    with Journal(journal_path(plan), plan.identity(), write=True) as journal:
        brainstorms = list(brainstorm_requests(plan))
        journal.plan((request, None) for request in brainstorms)
        _commit(journal, brainstorms, replies)
        tasks, requests = read_tasks(plan, journal), list(generate_requests(plan))
        journal.plan((request, tasks.task(request)) for request in requests)
        _commit(journal, requests, replies)


def _commit(journal: Journal, requests: list[Request], replies: Mapping[str, Body]) -> None:
    bodies = [(r, replies[r.id]) for r in requests if r.id in replies]
    outcomes = [Outcome(r.id, json.dumps(b), check_reply(b, r.step, r.subgroup, r.attributes)) for r, b in bodies]
    journal.add_outcomes(outcomes, "test", lambda _: None)


def read_parquet(*paths: Path) -> list[dict[str, Any]]:
    """Return the rows of parquet files."""
    return [row for path in paths for row in pq.read_table(path).to_pylist()]
