"""The journal: every request planned and every LLM reply received, in one SQLite file (WAL, synchronous=FULL).

It is the source of truth of stage 1. A reply counts once it is committed; killing the process at any moment loses at
most the requests in flight. Only replies that cannot be parsed are ever asked for again, as a further attempt.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from dataset_builder.errors import InputError, RunError
from dataset_builder.journal_file import lock_journal, open_journal
from dataset_builder.outcome import Outcome
from dataset_builder.plan import Request
from dataset_builder.schema import Step, Subgroup

T = TypeVar("T")
_REQUEST = "id, step, subgroup, idx, prompt, attributes"
Pending = tuple[Request, str | None]
"""A request with the task that it is conditioned on."""


def pending_fields(pending: Pending) -> list[Any]:
    """Return a pending request as JSON values, for another process; `pending_of` reads them."""
    request, task = pending
    fields = [request.id, request.step, request.subgroup, request.index, request.prompt, request.attributes]
    return [*fields, request.task_slot, task]


def pending_of(fields: list[Any]) -> Pending:
    """Return the pending request that `pending_fields` wrote."""
    return Request(*fields[:-1]), fields[-1]


@dataclass(frozen=True, slots=True)
class Entry:
    """One request as it was planned, with the reply that counts (`body`), if there is one."""

    request: Request
    task: str | None
    body: dict[str, Any] | None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What all replies together, the unusable ones too, took. Costs are None where no price was given."""

    num_replies: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Tally:
    """Where the requests of a step stand: how many have a usable reply, a reply at all, or were refused for good."""

    usable: int
    answered: int
    refused: int


class Journal:
    """A context manager around the SQLite file; opened for writing, it keeps other writers out.

    Raises:
        InputError: if the file is missing (reading), in use (writing), no journal, or the journal of another plan.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, write: bool, is_immutable: bool = False) -> None:
        self.path = path
        self._mutex = threading.Lock()  # one transaction at a time on the one connection
        self._lock = lock_journal(path) if write else None
        try:
            self._db, self._is_new = open_journal(path, identity, write=write, is_immutable=is_immutable)
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unused = isinstance(exc, InputError) and self._is_new and not self._is_paid_for()
        with self._mutex:
            self._db.close()
        if unused:  # nothing is half-written: not even a journal that would hold others to these settings
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._release()
        if unused:
            self.path.with_suffix(".lock").unlink(missing_ok=True)

    def _is_paid_for(self) -> bool:
        """Tell whether there are replies, or batches that were created."""
        batches = "SELECT 1 FROM meta WHERE key LIKE 'note/batch/%' AND value LIKE '%\"batch_id\": \"%' LIMIT 1"
        return bool(self._rows("SELECT 1 FROM replies LIMIT 1") or self._rows(batches))

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._mutex:
            try:
                with self._db:
                    yield
            except sqlite3.OperationalError as error:  # a full disk, above all
                raise RunError(
                    f"The journal {self.path} cannot be written ({error}). What was committed before is kept; make room, and "
                    "run the same command again."
                ) from None

    def _rows(self, sql: str, values: Any = ()) -> list[Any]:
        with self._mutex:
            return self._db.execute(sql, values).fetchall()

    def plan(self, requests: Iterable[Pending]) -> None:
        """Note requests with the task each is conditioned on. One noted before keeps the task it had."""
        rows = [
            (r.id, r.step, r.subgroup, r.index, r.prompt, json.dumps(r.attributes, ensure_ascii=False), task)
            for r, task in requests
        ]
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def add_outcomes(
        self, outcomes: Iterable[Outcome], source: str, cost_usd: Callable[[Outcome], float | None]
    ) -> None:
        """Commit replies, each as the next attempt of its request, and refusals, all in one transaction.

        A reply is paid for and never lost from here on. A request refused for good is not asked again by itself. May be
        called from any thread.
        """
        replies, failures = [], []
        for outcome in outcomes:
            if outcome.body is not None:
                counts = outcome.prompt_tokens, outcome.completion_tokens
                usable = int(outcome.rejection is None)
                replies.append((outcome.request_id, source, outcome.body, usable, *counts, cost_usd(outcome)))
            elif outcome.refusal is not None:
                status, message = outcome.refusal
                failures.append((outcome.request_id, status, message[:500].encode("utf-8", "replace").decode()))
        with self._transaction():
            self._db.executemany(
                "INSERT INTO replies SELECT ?1, COALESCE(MAX(attempt), 0) + 1, ?2, ?3, ?4, ?5, ?6, ?7 FROM replies "
                "WHERE request_id = ?1",
                replies,
            )
            self._db.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", failures)

    def has_reply(self, outcome: Outcome) -> bool:
        """Tell whether this very reply was committed before: a result file may be given twice."""
        return bool(
            self._rows("SELECT 1 FROM replies WHERE request_id = ? AND body = ?", (outcome.request_id, outcome.body))
        )

    def fold(self) -> None:
        """Fold the -wal file into the journal, so that it can be read as immutable.

        Raises:
            RunError: if another process reads the journal at the moment.
        """
        with self._mutex:
            is_busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if is_busy:
            raise RunError(
                f"The journal {self.path} is being read by another process; wait for it, and run this again."
            )

    def forget_failures(self) -> None:
        """Let refused requests be asked again."""
        with self._transaction():
            self._db.execute("DELETE FROM failures")

    def set_note(self, key: str, value: Any) -> None:
        """Commit a JSON value under a key of its own, such as a batch that was submitted."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note/{key}", json.dumps(value)))

    def notes(self, prefix: str) -> dict[str, Any]:
        """Return the noted values whose key starts with `prefix`, by key, in the order of the keys."""
        rows = self._rows(
            "SELECT substr(key, 6), value FROM meta WHERE substr(key, 1, ?) = ? ORDER BY key",
            (len(prefix) + 5, f"note/{prefix}"),
        )
        return {key: json.loads(value) for key, value in rows}

    def pending(self, ids: Iterable[str], max_attempts: int) -> Iterator[Pending]:
        """Yield those of the planned requests that are to be asked: no usable reply, not refused, attempts left."""
        for chunk in chunks(ids):
            rows = self._rows(
                f"SELECT {_REQUEST}, task FROM requests LEFT JOIN replies ON replies.request_id = id WHERE id IN "  # noqa: S608
                f"({','.join('?' * len(chunk))}) AND id NOT IN (SELECT request_id FROM failures) "
                f"GROUP BY id HAVING COALESCE(MAX(usable), 0) = 0 AND COUNT(attempt) < ?",
                (*chunk, max_attempts),
            )
            found = {row[0]: (_request(row), row[6]) for row in rows}
            for id_ in chunk:
                if id_ in found:
                    yield found.pop(id_)

    def num_attempts(self, ids: list[str]) -> dict[str, int]:
        """Return how many replies each of the requests has had; those without one are left out."""
        sql = f"SELECT request_id, COUNT(*) FROM replies WHERE request_id IN ({','.join('?' * len(ids))}) GROUP BY 1"  # noqa: S608
        return dict(self._rows(sql, ids))

    def ids(self, step: Step, num_requests: Mapping[Subgroup, int]) -> Iterator[str]:
        """Yield the ids of the first planned requests of a step, as many of each subgroup as told."""
        for subgroup, num in num_requests.items():
            for start in range(0, num, 500):
                sql = "SELECT id FROM requests WHERE step = ? AND subgroup = ? AND idx >= ? AND idx < ? ORDER BY idx"
                yield from (id_ for (id_,) in self._rows(sql, (step, subgroup, start, min(num, start + 500))))

    def entries(self, step: Step, subgroup: Subgroup, start: int, stop: int) -> Iterator[Entry]:
        """Yield the planned requests numbered from `start` to below `stop`, in order, with the reply that counts.

        That is the first usable one, else the last one.
        """
        for low in range(start, stop, 500):
            rows = self._rows(
                f"SELECT {_REQUEST}, task, body, cost_usd FROM requests LEFT JOIN replies ON request_id = id "  # noqa: S608
                "WHERE step = ? AND subgroup = ? AND idx >= ? AND idx < ? "
                "ORDER BY idx, usable, CASE WHEN usable THEN -attempt ELSE attempt END",
                (step, subgroup, low, min(low + 500, stop)),
            )
            for row in {row[0]: row for row in rows}.values():  # the last row of an id counts
                yield Entry(_request(row), row[6], json.loads(row[7]) if row[7] else None, row[8])

    def superseded(self, step: Step, subgroup: Subgroup, start: int, stop: int) -> Iterator[Entry]:
        """Yield the unusable replies that do not count, because their request was asked again."""
        rows = self._rows(
            f"SELECT {_REQUEST}, task, body FROM requests JOIN replies r ON r.request_id = id "  # noqa: S608
            "WHERE step = ? AND subgroup = ? AND idx >= ? AND idx < ? AND NOT usable AND EXISTS (SELECT 1 FROM replies o "
            "WHERE o.request_id = id AND (o.usable OR o.attempt > r.attempt)) ORDER BY idx, attempt",
            (step, subgroup, start, stop),
        )
        for row in rows:
            yield Entry(_request(row), row[6], json.loads(row[7]))

    def tally(self, step: Step, num_requests: Mapping[Subgroup, int]) -> Tally:
        """Return where the first requests of a step stand, as many of each subgroup as told."""
        total = [0, 0, 0]
        for subgroup, num in num_requests.items():
            counts = self._rows(
                "SELECT COALESCE(SUM(EXISTS (SELECT 1 FROM replies WHERE request_id = id AND usable)), 0), "
                "COALESCE(SUM(EXISTS (SELECT 1 FROM replies WHERE request_id = id)), 0), "
                "COALESCE(SUM(EXISTS (SELECT 1 FROM failures WHERE request_id = id)), 0) "
                "FROM requests WHERE step = ? AND subgroup = ? AND idx < ?",
                (step, subgroup, num),
            )[0]
            total = [one + other for one, other in zip(total, counts, strict=True)]
        return Tally(*total)

    def failure(self) -> tuple[int | None, str] | None:
        """Return HTTP status and message of a request that was refused for good, if there is one."""
        rows = self._rows("SELECT status, message FROM failures ORDER BY request_id LIMIT 1")
        return (rows[0][0], rows[0][1]) if rows else None

    def num_answered(self, step: Step) -> int:
        """Return how many requests of a step have a reply, those beyond the plan too."""
        sql = "SELECT COUNT(*) FROM requests WHERE step = ? AND EXISTS (SELECT 1 FROM replies WHERE request_id = id)"
        return int(self._rows(sql, (step,))[0][0])

    def spent(self) -> Spent:
        """Return what all replies took."""
        sql = (
            "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0), SUM(cost_usd) "
            "FROM replies"
        )
        return Spent(*self._rows(sql)[0])

    def digest(self) -> str:
        """Return the SHA-256 (hex) over all replies, each with the id of its request, whatever order they came in."""
        digest, after = hashlib.sha256(), ("", 0)
        sql = (
            "SELECT request_id, attempt, body FROM replies WHERE (request_id, attempt) > (?, ?) "
            "ORDER BY request_id, attempt LIMIT 500"
        )
        while rows := self._rows(sql, after):
            for id_, _, body in rows:
                digest.update(f"{id_}\0{body}\0".encode())
            after = rows[-1][:2]
        return digest.hexdigest()


def chunks(items: Iterable[T], size: int = 500) -> Iterator[list[T]]:
    """Yield the items in lists of up to `size`."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _request(row: Any) -> Request:
    id_, step, subgroup, index, prompt, attributes = row[:6]
    return Request(id_, step, subgroup, index, prompt, json.loads(attributes))
