"""`--num_workers`: several processes ask, one writes the journal.

The parent reads the plan and commits; each worker (`worker.py`) renders, asks and checks. They talk in lines of JSON
over the worker's stdin and stdout. A worker holds no more than its share of the requests in flight, and ends at once when
the parent is gone, so killing the parent loses what killing a single process would lose.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from dataset_builder.completion import require_endpoints
from dataset_builder.endpoint_client import api_key
from dataset_builder.errors import InputError, RunError
from dataset_builder.journal import Pending, pending_fields
from dataset_builder.live_llm import GRACE_S
from dataset_builder.llm_config import LLMArguments
from dataset_builder.outcome import Outcome
from dataset_builder.parsing import Rejection

_LONGEST_LINE = 1 << 28  # bytes; a line holds all replies that arrived together


def outcome_line(outcomes: list[Outcome]) -> bytes:
    """Return outcomes as a line for the parent."""
    rows = []
    for o in outcomes:
        rejection = [o.rejection.reason, o.rejection.detail] if o.rejection else None
        rows.append([o.request_id, o.body, rejection, o.prompt_tokens, o.completion_tokens, o.refusal])
    return json.dumps(rows).encode() + b"\n"


def _outcomes(rows: list[list[Any]]) -> Iterator[Outcome]:
    for id_, body, rejection, prompt_tokens, completion_tokens, refusal in rows:
        reason = Rejection(*rejection) if rejection else None
        yield Outcome(id_, body, reason, prompt_tokens, completion_tokens, tuple(refusal) if refusal else None)


@dataclass
class _Worker:
    process: asyncio.subprocess.Process
    outstanding: int = 0

    def send(self, message: object) -> None:
        """Send one line; the pipe's buffer takes it, however full the pipe is."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(json.dumps(message).encode() + b"\n")


class LLMWorkers:
    """Plays `LiveLLM` through several processes; same arguments, same `take` and `taken`."""

    def __init__(self, arguments: LLMArguments, pending: Iterator[Pending], stop: Callable[[Outcome], bool]) -> None:
        self.pending, self.stop = pending, stop
        endpoints = require_endpoints(arguments)
        for endpoint in endpoints:
            api_key(endpoint)
        share = math.ceil(arguments.max_concurrency / arguments.num_workers)
        self.num_workers = min(arguments.num_workers, arguments.max_concurrency)
        self.settings = replace(arguments, num_workers=1, max_concurrency=share)
        self._capacity = share * len(endpoints) * (1 + (len(endpoints) > 1))
        self._more = True
        self._error: BaseException | None = None
        self._failed_at = 0.0
        self._arrived = asyncio.Event()
        self._outcomes: list[Outcome] = []

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "dataset_builder.worker"]
        processes = [
            # a session of their own: Ctrl-C in a terminal is for the parent, which ends them
            await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, limit=_LONGEST_LINE, start_new_session=True
            )
            for _ in range(self.num_workers)
        ]
        self._workers = [_Worker(process) for process in processes]
        for worker in self._workers:
            worker.send(asdict(self.settings))
        self._readers = [asyncio.create_task(self._read(worker)) for worker in self._workers]
        for reader in self._readers:
            reader.add_done_callback(self._reader_done)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for worker in self._workers:
            if worker.process.returncode is None:
                worker.process.kill()
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await asyncio.gather(*(worker.process.wait() for worker in self._workers))

    async def take(self) -> list[Outcome]:
        """Wait for outcomes and return all that have arrived; an empty list at the end.

        Raises:
            InputError: if an endpoint refuses the key or the model.
            RunError: if an endpoint stopped answering, or a worker ended before its time.
        """
        while not self._outcomes:
            is_over = all(reader.done() for reader in self._readers)
            if self._error is not None and (is_over or time.monotonic() > self._failed_at + GRACE_S):
                raise self._error
            if is_over:
                return []
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), None if self._error is None else GRACE_S)
        return self.taken()

    def taken(self) -> list[Outcome]:
        """Return all outcomes that have arrived and were not taken yet, without waiting."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _fill(self, worker: _Worker) -> None:
        requests: list[list[Any]] = []
        is_end = False
        while self._more and worker.outstanding + len(requests) < self._capacity:
            if (item := next(self.pending, None)) is None:
                self._more, is_end = False, True
            else:
                requests.append(pending_fields(item))
        worker.outstanding += len(requests)
        worker.send(requests)
        if is_end:
            self._end("end")

    def _end(self, word: str) -> None:
        """Tell the workers to finish what they have ('end'), or only what they have sent ('stop')."""
        self._more = False
        for worker in self._workers:
            worker.send(word)

    async def _read(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        self._fill(worker)
        while line := await worker.process.stdout.readline():
            message = json.loads(line)
            if isinstance(message, dict):
                kind = InputError if message["error"] == "InputError" else RunError
                raise kind(message["message"])
            outcomes = list(_outcomes(message))
            worker.outstanding -= len(outcomes)
            self._outcomes += outcomes
            if any([self.stop(outcome) for outcome in outcomes]) and self._more:  # noqa: C419  each is to be counted
                self._end("stop")
            self._fill(worker)
            self._arrived.set()
        if (code := await worker.process.wait()) != 0:
            raise RunError(f"A worker process ended with exit code {code}; run the same command again to go on.")

    def _reader_done(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled() and (error := reader.exception()):
            if self._error is None:
                self._error, self._failed_at = error, time.monotonic()
            self._end("stop")
        self._arrived.set()
