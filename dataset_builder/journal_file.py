"""The file of a journal: made, recognised, upgraded, and kept from being written by two processes at once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dataset_builder.errors import InputError, RunError

APPLICATION_ID = 0x656D6273  # "embs", in the header of the file: tells our journals from other SQLite files
SCHEMA_VERSION = 2

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
_INDEX = "CREATE UNIQUE INDEX requests_by_place ON requests (step, subgroup, idx);"  # since version 2


_NOT_THE_FILE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
"""Errors of the disk, not of what stands in the file."""


def lock_journal(path: Path) -> FileLock:
    """Keep other writers out until the lock is released or the process ends, however it ends.

    Raises:
        InputError: if another process writes the journal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"The journal {path} is being written by another process; wait for it, or use another --output_dir."
        ) from None
    return lock


def open_journal(
    path: Path, identity: dict[str, Any], *, write: bool, is_immutable: bool = False
) -> tuple[sqlite3.Connection, bool]:
    """Return the connection, and whether the journal is new.

    Args:
        path: of the file.
        identity: of the plan that it must belong to.
        write: whether to write.
        is_immutable: read it without any lock, as a network disk needs it; nobody may write, or have left a -wal file.

    Raises:
        InputError: if the file is missing (reading), no journal, or the journal of another plan.
    """
    if not write and not path.is_file():
        raise InputError(f"There is no journal at {path}; run `embedsmith brainstorm` and `generate` first.")
    is_new = not path.is_file() or path.stat().st_size == 0
    if is_new and not write:
        raise InputError(f"The journal {path} is empty; run `embedsmith brainstorm` and `generate` first.")
    name = f"{path.absolute().as_uri()}?immutable=1" if is_immutable else path
    # replies are committed in a thread of their own
    db = sqlite3.connect(name, check_same_thread=False, uri=is_immutable)
    try:
        if is_new or (write and _is_blank(db)):
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(
                f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};{_SCHEMA}{_INDEX}"
            )
            db.execute("INSERT INTO meta VALUES ('plan', ?)", (json.dumps(identity, sort_keys=True),))
            db.commit()
        _check(db, path, identity)
        if write and db.execute("PRAGMA user_version").fetchone()[0] == 1:
            db.executescript(f"BEGIN; {_INDEX} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        db.execute("PRAGMA synchronous = FULL")
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in _NOT_THE_FILE:
            raise RunError(
                f"The journal {path} cannot be opened ({error}); make room or mend its rights, and try again."
            ) from None
        if isinstance(error, sqlite3.DatabaseError):
            raise InputError(
                f"{path} is no journal of embedsmith ({error}); move it away, or use another --output_dir."
            ) from None
        raise
    return db, is_new


def _is_blank(db: sqlite3.Connection) -> bool:
    """Tell whether a writer was killed after it made the file and before it committed the tables."""
    application_id = db.execute("PRAGMA application_id").fetchone()[0]
    return not application_id and not db.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0]


def _check(db: sqlite3.Connection, path: Path, identity: dict[str, Any]) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise InputError(
            f"{path} is an SQLite file, but no journal of embedsmith; move it away, or use another --output_dir."
        )
    if (version := db.execute("PRAGMA user_version").fetchone()[0]) not in range(1, SCHEMA_VERSION + 1):
        raise InputError(
            f"The journal {path} has version {version}, this embedsmith reads version {SCHEMA_VERSION}; use "
            "the embedsmith that wrote it, or another --output_dir."
        )
    theirs = json.loads(db.execute("SELECT value FROM meta WHERE key = 'plan'").fetchone()[0])
    ours = json.loads(json.dumps(identity))
    if changed := [key for key in ours if ours[key] != theirs.get(key)]:
        key = changed[0]
        raise InputError(
            f"The journal {path} belongs to another plan: there `{key}` is {_short(theirs.get(key))}, here "
            f"{_short(ours[key])}. Use the same settings, or another --output_dir."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
