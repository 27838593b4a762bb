"""The file of a journal: no other file is taken for one, an older one is upgraded, and a crash loses nothing committed."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.errors import InputError
from dataset_builder.journal import Journal, Spent
from tests.journals import FIRST, IDS, PLAN, REQUESTS, add, entries, journal, opened, path, pending, reply, texts  # noqa: F401  fixtures
from tests.replies import completion
from tests.runs import embedsmith
from tests.test_dataset import full_disk


@pytest.mark.parametrize(("key", "value"), [("seed", 1), ("languages", {"en": 1.0}), ("examples_per_task", 2.0)])
@pytest.mark.parametrize("write", [True, False])
def test_another_plan_is_refused(path: Path, key: str, value: Any, write: bool) -> None:
    opened(path).__exit__(None, None, None)
    with pytest.raises(InputError, match=f"belongs to another plan: there `{key}` is"):
        opened(path, write=write, **{key: value})
    with opened(path):
        pass


def test_a_missing_journal_is_made_by_a_writer_only(path: Path) -> None:
    with pytest.raises(InputError, match="no journal"):
        opened(path, write=False)
    assert not path.parent.exists()
    with opened(path) as journal:
        assert pending(journal) == []


def test_an_empty_file_is_a_journal_to_be(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with pytest.raises(InputError, match="is empty"):
        opened(path, write=False)
    with opened(path) as journal:
        journal.plan([(FIRST, "task")])
        assert pending(journal) == [FIRST.id]


def sqlite_file(path: Path, script: str) -> None:
    db = sqlite3.connect(path)
    db.executescript(script)
    db.close()


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Dear diary, " * 100, "is no journal"),
        (b"SQLite format 3\0 and then nothing of the kind", "is no journal"),
        ("CREATE TABLE replies (id)", "is an SQLite file, but no journal"),
        ("PRAGMA application_id = 7; CREATE TABLE meta (key, value)", "is an SQLite file, but no journal"),
        ("PRAGMA application_id = 0x656D6273; PRAGMA user_version = 3; CREATE TABLE meta (key)", "has version 3"),
    ],
)
def test_a_foreign_file_is_refused_and_left_alone(path: Path, content: str | bytes, message: str, write: bool) -> None:
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        sqlite_file(path, content)
    before = path.read_bytes()
    for _ in range(2):  # the second time: the lock was let go
        with pytest.raises(InputError, match=message):
            opened(path, write=write)
    assert path.read_bytes() == before


def crashed_copy(path: Path, folder: Path) -> Path:
    """Return what a process killed at this moment leaves: the file and its write-ahead log, as they lie on disk."""
    folder.mkdir()
    for file in path.parent.glob("journal.sqlite*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, folder / file.name)
    return folder / path.name


def test_a_crash_loses_no_committed_reply(journal: Journal, path: Path, tmp_path: Path) -> None:
    for num_replies, request in enumerate(REQUESTS[:6], 1):
        add(journal, request, request.id)
        with opened(crashed_copy(path, tmp_path / str(num_replies))) as left:
            assert {text for text in texts(left).values() if text} == set(IDS[:num_replies])
            assert pending(left) == IDS[num_replies:]


def test_a_crash_in_a_transaction_leaves_the_state_before_it(journal: Journal, path: Path, tmp_path: Path) -> None:
    """A commit is written from front to end; cut anywhere, none of its replies counts, and all of those before it do."""
    log = path.with_name("journal.sqlite-wal")
    add(journal, FIRST, "first")
    start = log.stat().st_size
    together = [reply(request, "last" * 1000) for request in REQUESTS[1:6]]
    journal.add_outcomes(together, "test", lambda _: None)
    end = log.stat().st_size
    assert end - start > 20_000
    for number, length in enumerate([*range(start, end, 3000), end - 1]):
        left_path = crashed_copy(path, tmp_path / str(number))
        left_path.with_name(log.name).write_bytes(log.read_bytes()[:length])
        with opened(left_path) as left:
            assert {id_: text for id_, text in texts(left).items() if text} == {FIRST.id: "first"}
            assert pending(left) == IDS[1:]
    with opened(crashed_copy(path, tmp_path / "whole")) as left:
        assert pending(left) == IDS[6:]


def test_a_crash_before_anything_was_written_is_no_foreign_file(path: Path) -> None:
    """A writer switches the new file to WAL before it makes the tables; being killed in between leaves this."""
    path.parent.mkdir()
    sqlite_file(path, "PRAGMA journal_mode = WAL")
    with opened(path) as journal:
        assert pending(journal) == []


VERSION_1 = """
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
PRAGMA application_id = 0x656D6273; PRAGMA user_version = 1; PRAGMA journal_mode = WAL;
"""
"""The schema as it was before there was an index on (step, subgroup, idx)."""


@pytest.fixture
def version_1(path: Path) -> Path:
    """A journal of version 1 in which a usable, an unusable and a refused request have what they got."""
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    db.execute("INSERT INTO meta VALUES ('plan', ?)", (json.dumps(PLAN.identity(), sort_keys=True),))
    for r in REQUESTS:
        row = (r.id, r.step, r.subgroup, r.index, r.prompt, json.dumps(r.attributes), f"task {r.index}")
        db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    replies = [(IDS[0], 1, 0), (IDS[0], 2, 1), (IDS[1], 1, 0)]
    for id_, attempt, usable in replies:
        body = json.dumps(completion(f"{id_} {attempt}"))
        db.execute("INSERT INTO replies VALUES (?, ?, 'live', ?, ?, 10, 2, 0.5)", (id_, attempt, body, usable))
    db.execute("INSERT INTO failures VALUES (?, 400, 'flagged')", (IDS[2],))
    db.commit()
    db.close()
    return path


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def content(journal: Journal) -> tuple[Any, ...]:
    return texts(journal), entries(journal), pending(journal), journal.spent(), journal.failure()


def test_a_journal_of_version_1_is_read_by_a_reader_and_upgraded_by_a_writer(version_1: Path) -> None:
    with opened(version_1, write=False) as reader:
        before = content(reader)
    assert version(version_1) == 1  # who reads leaves it as it is
    found = before[0]
    assert [found[id_] for id_ in IDS[:4]] == [f"{IDS[0]} 2", f"{IDS[1]} 1", None, None]
    assert before[1][0].task == "task 0"
    assert before[2:] == ([IDS[1], *IDS[3:]], Spent(3, 30, 6, 1.5), (400, "flagged"))
    for _ in range(2):
        with opened(version_1) as writer:
            assert content(writer) == before
        assert version(version_1) == 2
    with opened(version_1) as writer:
        add(writer, REQUESTS[3], "new")
    with contextlib.closing(sqlite3.connect(version_1)) as db:
        assert "requests_by_place" in str(db.execute(BY_PLACE).fetchall())
    with opened(version_1, write=False) as reader:
        assert texts(reader) == found | {IDS[3]: "new"}


BY_PLACE = "EXPLAIN QUERY PLAN SELECT id FROM requests WHERE step = 's' AND subgroup = 's' AND idx >= 0 ORDER BY idx"


def test_an_upgrade_that_is_killed_is_made_the_next_time(version_1: Path, tmp_path: Path) -> None:
    """The index and the number of the version are one transaction: a log cut before its end holds neither."""
    with opened(version_1) as writer:
        before = content(writer)
        log = version_1.with_name("journal.sqlite-wal").read_bytes()
        whole = crashed_copy(version_1, tmp_path / "whole")
        for number, length in enumerate(range(0, len(log), 1500)):
            left = crashed_copy(version_1, tmp_path / str(number))
            left.with_name("journal.sqlite-wal").write_bytes(log[:length])
            assert version(left) == 1
            with opened(left) as again:
                assert content(again) == before
            assert version(left) == 2
    assert version(whole) == 2


def test_a_version_1_journal_of_another_plan_is_not_upgraded(version_1: Path) -> None:
    with pytest.raises(InputError, match="belongs to another plan"):
        opened(version_1, seed=7)
    assert version(version_1) == 1


def test_a_full_disk_is_told_in_one_sentence_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--config", "demo", "--output_dir", tmp_path)
    assert embedsmith("brainstorm", *flags) == 0
    with full_disk(300_000):
        assert embedsmith("generate", *flags) == 1
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert "Traceback" not in error
    assert embedsmith("generate", *flags) == 0
    assert "1,200 of 1,200 replies usable" in capsys.readouterr().out
