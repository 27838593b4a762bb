"""A small journal, and ways to fill and to read it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.config import PlanArguments
from dataset_builder.journal import Entry, Journal
from dataset_builder.outcome import Outcome
from dataset_builder.parsing import Rejection
from dataset_builder.plan import Request, generate_requests, num_examples_by_subgroup
from tests.replies import completion

PLAN = PlanArguments("unused", 20, subgroups=["sts", "short-long"])
REQUESTS = list(generate_requests(PLAN))
IDS = [request.id for request in REQUESTS]
FIRST = REQUESTS[0]
UNUSABLE = Rejection("json", "no complete JSON")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.sqlite"


def opened(path: Path, *, write: bool = True, **settings: Any) -> Journal:
    return Journal(path, PLAN.identity() | settings, write=write)


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """A journal in which all requests are planned."""
    with opened(path) as journal:
        journal.plan((request, f"task {request.index}") for request in REQUESTS)
        yield journal


def reply(request: Request, text: str = "reply", *, usable: bool = True, **body: Any) -> Outcome:
    usage = body.get("usage") or {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Outcome(request.id, json.dumps(completion(text, **body)), None if usable else UNUSABLE, *counts)


def add(journal: Journal, request: Request, text: str = "reply", *, usable: bool = True, **body: Any) -> None:
    journal.add_outcomes([reply(request, text, usable=usable, **body)], "test", lambda _: None)


def stored(requests: list[Request]) -> list[Request]:
    """Return requests as the journal gives them back: without the slot that their task was taken from."""
    return [dataclasses.replace(request, task_slot=None) for request in requests]


def pending(journal: Journal, max_attempts: int = 3, ids: list[str] = IDS) -> list[str]:
    return [request.id for request, _ in journal.pending(ids, max_attempts)]


def entries(journal: Journal, plan: PlanArguments = PLAN) -> list[Entry]:
    """Return the entries of all generate requests, subgroup by subgroup."""
    nums = num_examples_by_subgroup(plan)
    return [entry for subgroup, num in nums.items() for entry in journal.entries("generate", subgroup, 0, num)]


def texts(journal: Journal, plan: PlanArguments = PLAN) -> dict[str, str | None]:
    """Return the text of the reply that counts, by request."""
    return {
        entry.request.id: entry.body["choices"][0]["message"]["content"] if entry.body else None
        for entry in entries(journal, plan)
    }
