"""The journal: every request planned and every LLM reply received, in one SQLite file (WAL, synchronous=FULL).

It is the source of truth of stage 1. A reply counts once it is committed; killing the process at any moment loses at
most the requests in flight. Only replies that cannot be parsed are ever asked for again, as a further attempt.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from dataset_builder.errors import InputError
from dataset_builder.plan import Request
from dataset_builder.schema import Step

APPLICATION_ID = 0x656D6273  # "embs", in the header of the file: tells our journals from other SQLite files
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE requests (
    id TEXT PRIMARY KEY, step TEXT NOT NULL, subgroup TEXT NOT NULL, idx INTEGER NOT NULL, prompt TEXT NOT NULL,
    attributes TEXT NOT NULL, task TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE replies (
    request_id TEXT NOT NULL REFERENCES requests (id), attempt INTEGER NOT NULL, source TEXT NOT NULL,
    body TEXT NOT NULL, usable INTEGER NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, cost_usd REAL,
    PRIMARY KEY (request_id, attempt)
) STRICT;
CREATE TABLE failures (request_id TEXT PRIMARY KEY, status INTEGER, message TEXT NOT NULL) STRICT;
"""


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


class Journal:
    """A context manager around the SQLite file; opened for writing, it keeps other writers out.

    Raises:
        InputError: if the file is missing (reading), in use (writing), no journal, or the journal of another plan.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, write: bool) -> None:
        self.path, self._write = path, write
        self._lock = FileLock(path.with_suffix(".lock")) if write else None
        if not write and not path.is_file():
            raise InputError(f"There is no journal at {path}; run `embedsmith brainstorm` and `generate` first.")
        if self._lock is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise InputError(
                    f"The journal {path} is being written by another process; wait for it, or use another --output_dir."
                ) from None
        try:
            self._db = self._open(json.dumps(identity, sort_keys=True))
        except BaseException:
            self._release()
            raise

    def _open(self, identity: str) -> sqlite3.Connection:
        self._is_new = is_new = not self.path.is_file() or self.path.stat().st_size == 0
        if is_new and not self._write:
            raise InputError(f"The journal {self.path} is empty; run `embedsmith brainstorm` and `generate` first.")
        db = sqlite3.connect(self.path)
        try:
            if is_new or (self._write and self._is_blank(db)):
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(
                    f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};{_SCHEMA}"
                )
                db.execute("INSERT INTO meta VALUES ('plan', ?)", (identity,))
                db.commit()
            self._check(db, identity)
            db.execute("PRAGMA synchronous = FULL")
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise InputError(
                    f"{self.path} is no journal of embedsmith ({error}); move it away, or use another --output_dir."
                ) from None
            raise
        return db

    @staticmethod
    def _is_blank(db: sqlite3.Connection) -> bool:
        """Tell whether a writer was killed after it made the file and before it committed the tables."""
        application_id = db.execute("PRAGMA application_id").fetchone()[0]
        return not application_id and not db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]

    def _check(self, db: sqlite3.Connection, identity: str) -> None:
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise InputError(
                f"{self.path} is an SQLite file, but no journal of embedsmith; move it away, or use another "
                "--output_dir."
            )
        if (version := db.execute("PRAGMA user_version").fetchone()[0]) != SCHEMA_VERSION:
            raise InputError(
                f"The journal {self.path} has version {version}, this embedsmith reads version {SCHEMA_VERSION}; use "
                "the embedsmith that wrote it, or another --output_dir."
            )
        theirs = json.loads(db.execute("SELECT value FROM meta WHERE key = 'plan'").fetchone()[0])
        ours = json.loads(identity)
        if changed := [key for key in ours if ours[key] != theirs.get(key)]:
            key = changed[0]
            raise InputError(
                f"The journal {self.path} belongs to another plan: there `{key}` is {_short(theirs.get(key))}, here "
                f"{_short(ours[key])}. Use the same settings, or another --output_dir."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unused = (
            isinstance(exc, InputError) and self._is_new and not self._db.execute("SELECT 1 FROM replies").fetchone()
        )
        self._db.close()
        if unused:  # nothing is half-written: not even a journal that would hold others to these settings
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._release()
        if unused:
            self.path.with_suffix(".lock").unlink(missing_ok=True)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def plan(self, requests: Iterable[tuple[Request, str | None]]) -> None:
        """Note requests with the task each is conditioned on. One noted before keeps the task it had."""
        with self._db:
            self._db.executemany(
                "INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    (r.id, r.step, r.subgroup, r.index, r.prompt, json.dumps(r.attributes, ensure_ascii=False), task)
                    for r, task in requests
                ),
            )

    def add_reply(
        self, request: Request, source: str, body: dict[str, Any], *, usable: bool, cost_usd: float | None
    ) -> None:
        """Commit one reply as the next attempt of its request. It is paid for and never lost from here on."""
        with self._db:
            self._db.execute(
                "INSERT INTO replies SELECT ?1, COALESCE(MAX(attempt), 0) + 1, ?2, ?3, ?4, ?5, ?6, ?7 FROM replies "
                "WHERE request_id = ?1",
                (
                    request.id,
                    source,
                    json.dumps(body),  # ASCII: lone surrogates in a reply cannot break the file
                    int(usable),
                    *token_counts(body),
                    cost_usd,
                ),
            )

    def has_reply(self, request: Request, body: dict[str, Any]) -> bool:
        """Tell whether this very reply was committed before: a result file may be given twice."""
        row = self._db.execute(
            "SELECT 1 FROM replies WHERE request_id = ? AND body = ?", (request.id, json.dumps(body))
        ).fetchone()
        return row is not None

    def add_failure(self, request: Request, status: int | None, message: str) -> None:
        """Note that the endpoint refused a request for good (HTTP 4xx); it is not asked again by itself."""
        text = message[:500].encode("utf-8", "replace").decode()
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", (request.id, status, text))

    def forget_failures(self) -> None:
        """Let refused requests be asked again."""
        with self._db:
            self._db.execute("DELETE FROM failures")

    def pending(self, requests: Iterable[Request], max_attempts: int) -> Iterator[tuple[Request, str | None]]:
        """Yield the requests to ask, with their tasks: no usable reply, not refused, attempts left."""
        for chunk in _chunks(requests):
            marks = ",".join("?" * len(chunk))
            rows = self._db.execute(
                f"SELECT id, task, COALESCE(MAX(usable), 0), COUNT(attempt), failures.request_id IS NOT NULL "  # noqa: S608
                f"FROM requests LEFT JOIN replies ON replies.request_id = id "
                f"LEFT JOIN failures ON failures.request_id = id WHERE id IN ({marks}) GROUP BY id",
                [request.id for request in chunk],
            ).fetchall()
            state = {id_: (task, usable or refused or num >= max_attempts) for id_, task, usable, num, refused in rows}
            for request in chunk:
                if request.id in state and not state[request.id][1]:
                    yield request, state[request.id][0]

    def entries(self, requests: Iterable[Request]) -> Iterator[Entry]:
        """Yield every request in the order given, with the reply that counts: the first usable, else the last one."""
        for chunk in _chunks(requests):
            marks = ",".join("?" * len(chunk))
            rows = self._db.execute(
                f"SELECT id, task, body, cost_usd FROM requests LEFT JOIN replies ON request_id = id "  # noqa: S608
                f"WHERE id IN ({marks}) ORDER BY usable, CASE WHEN usable THEN -attempt ELSE attempt END",
                [request.id for request in chunk],
            )
            found = {id_: (task, body, cost) for id_, task, body, cost in rows}  # the last row of an id counts
            for request in chunk:
                task, body, cost = found.get(request.id, (None, None, None))
                yield Entry(request, task, json.loads(body) if body else None, cost)

    def superseded(self, requests: Iterable[Request]) -> Iterator[Entry]:
        """Yield the unusable replies that do not count, because their request was asked again."""
        for chunk in _chunks(requests):
            by_id = {request.id: request for request in chunk}
            rows = self._db.execute(
                f"SELECT id, task, body FROM requests JOIN replies r ON r.request_id = id "  # noqa: S608
                f"WHERE id IN ({','.join('?' * len(by_id))}) AND NOT usable AND EXISTS (SELECT 1 FROM replies o "
                f"WHERE o.request_id = id AND (o.usable OR o.attempt > r.attempt)) ORDER BY id, attempt",
                list(by_id),
            )
            for id_, task, body in rows:
                yield Entry(by_id[id_], task, json.loads(body))

    def failures(self) -> dict[str, tuple[int | None, str]]:
        """Return HTTP status and message of the requests that were refused for good, by request id."""
        return {id_: (status, text) for id_, status, text in self._db.execute("SELECT * FROM failures")}

    def set_note(self, key: str, value: Any) -> None:
        """Commit a JSON value under a key of its own, such as a batch that was submitted."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note/{key}", json.dumps(value)))

    def notes(self, prefix: str) -> dict[str, Any]:
        """Return the noted values whose key starts with `prefix`, by key, in the order of the keys."""
        rows = self._db.execute(
            "SELECT substr(key, 6), value FROM meta WHERE substr(key, 1, ?) = ? ORDER BY key",
            (len(prefix) + 5, f"note/{prefix}"),
        )
        return {key: json.loads(value) for key, value in rows}

    def num_answered(self, step: Step) -> int:
        """Return how many requests of a step have a reply, those beyond the plan too."""
        sql = "SELECT COUNT(DISTINCT id) FROM requests JOIN replies ON request_id = id WHERE step = ?"
        return int(self._db.execute(sql, (step,)).fetchone()[0])

    def spent(self) -> Spent:
        """Return what all replies took."""
        row = self._db.execute(
            "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0), SUM(cost_usd) "
            "FROM replies"
        ).fetchone()
        return Spent(*row)


def token_counts(body: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return prompt and completion tokens of a chat completion; None where the endpoint tells no whole number."""
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) and 0 <= count < 2**53 else None for count in counts)
    return prompt, completion


def _chunks(requests: Iterable[Request], size: int = 500) -> Iterator[list[Request]]:
    iterator = iter(requests)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
