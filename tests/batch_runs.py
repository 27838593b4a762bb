"""The loop that asks through the Batch API as the verbs do, and what tests look at after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset_builder import batch_llm
from dataset_builder.batch_api import BatchAPI
from dataset_builder.config import PlanArguments
from dataset_builder.journal import Journal
from dataset_builder.llm_config import LLMArguments
from dataset_builder.outcome import Outcome
from dataset_builder.plan import Request, generate_requests
from tests.batch_server import BatchServer

PLAN = PlanArguments("unused", 20, subgroups=["sts"])
REQUESTS = list(generate_requests(PLAN))
KEY = "sk-secret-of-the-test"


def reply(request_id: str, prompt: str) -> str:
    return f"reply to {request_id}: {prompt}"


EXPECTED = {request.id: reply(request.id, f"prompt {request.index}") for request in REQUESTS}


def settings(*servers: BatchServer, **changes: Any) -> LLMArguments:
    models = [server.model for server in servers]
    urls = [server.base_url for server in servers]
    return LLMArguments(
        llm="live", llm_model=models, base_url=urls, **{"batch_poll_s": 0.01, "max_retries": 3} | changes
    )


def opened(folder: Path, kind: type[Journal] = Journal) -> Journal:
    return kind(folder / "journal.sqlite", PLAN.identity(), write=True)


def run(folder: Path, arguments: LLMArguments, kind: type[Journal] = Journal) -> int:
    """Ask as the verbs do: drain what is open, then submit what is pending, in rounds. Return how often a reply came."""
    with opened(folder, kind) as journal:
        journal.plan((request, None) for request in REQUESTS)
        api = BatchAPI(arguments, journal, folder / "batches", "generate")
        num_came = take(api, journal)
        for _ in range(arguments.max_attempts):
            pending = [r for r, _ in journal.pending([r.id for r in REQUESTS], arguments.max_attempts)]
            if not pending:
                break
            assert api.submit((request, f"prompt {request.index}") for request in pending) == len(pending)
            num_came += take(api, journal)
    return num_came


def take(api: BatchAPI, journal: Journal) -> int:
    by_id: dict[str, Request] = {request.id: request for request in REQUESTS}
    number = 0
    for number, (request_id, answer) in enumerate(api.results(), 1):  # noqa: B007
        request = by_id[request_id]
        refusal, body = (answer, None) if isinstance(answer, tuple) else (None, json.dumps(answer))
        outcome = Outcome(request.id, body, refusal=refusal)
        if refusal or not journal.has_reply(outcome):
            journal.add_outcomes([outcome], "batch", lambda _: None)
    return number


def texts(folder: Path) -> dict[str, str]:
    with Journal(folder / "journal.sqlite", PLAN.identity(), write=False) as journal:
        entries = list(journal.entries("generate", "sts", 0, len(REQUESTS)))
    return {e.request.id: e.body["choices"][0]["message"]["content"] for e in entries if e.body}


def notes(folder: Path) -> list[dict[str, Any]]:
    with Journal(folder / "journal.sqlite", PLAN.identity(), write=False) as journal:
        return list(journal.notes("batch/").values())


def states(folder: Path) -> list[str]:
    return [note["state"] for note in notes(folder)]


def paid_once(server: BatchServer) -> bool:
    return set(server.created.values()) == {1} and set(server.answered.values()) == {1}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_llm, "MAX_REQUESTS", 12)  # 20 requests are two batches
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(reply, key=KEY) as server:
        yield server
