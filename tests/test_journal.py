"""The journal: what is committed is never lost, what is pending is asked, and no other file is taken for one."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.config import PlanArguments
from dataset_builder.errors import InputError
from dataset_builder.journal import Journal, Spent
from dataset_builder.plan import Request, generate_requests
from tests.replies import completion

PLAN = PlanArguments("unused", 20, subgroups=["sts", "short-long"])
REQUESTS = list(generate_requests(PLAN))
FIRST = REQUESTS[0]


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


def add(journal: Journal, request: Request, text: str = "reply", *, usable: bool = True, **body: Any) -> None:
    journal.add_reply(request, "test", completion(text, **body), usable=usable, cost_usd=None)


def pending(journal: Journal, max_attempts: int = 3) -> list[Request]:
    return [request for request, _ in journal.pending(REQUESTS, max_attempts)]


def texts(journal: Journal, requests: list[Request] = REQUESTS) -> list[str | None]:
    return [e.body["choices"][0]["message"]["content"] if e.body else None for e in journal.entries(requests)]


def test_all_planned_requests_are_pending_with_their_tasks(journal: Journal) -> None:
    assert list(journal.pending(REQUESTS, 1)) == [(request, f"task {request.index}") for request in REQUESTS]
    assert [(entry.request, entry.task, entry.body) for entry in journal.entries(REQUESTS[:1])] == [
        (FIRST, "task 0", None)
    ]


def test_a_request_keeps_the_task_that_was_noted_first(journal: Journal) -> None:
    journal.plan([(FIRST, "another task")])
    assert next(journal.pending(REQUESTS, 1)) == (FIRST, "task 0")


def test_what_was_never_planned_is_not_pending(path: Path) -> None:
    with opened(path) as journal:
        journal.plan([(FIRST, None)])
        assert list(journal.pending(reversed(REQUESTS), 1)) == [(FIRST, None)]
        assert texts(journal) == [None] * len(REQUESTS)


def test_a_usable_reply_ends_the_asking(journal: Journal) -> None:
    add(journal, FIRST)
    assert pending(journal) == REQUESTS[1:]


def test_an_unusable_reply_is_asked_again_until_there_are_no_attempts_left(journal: Journal) -> None:
    for _ in range(3):
        assert pending(journal, 3) == REQUESTS
        add(journal, FIRST, usable=False)
    assert pending(journal, 3) == REQUESTS[1:]
    assert pending(journal, 4) == REQUESTS


def test_a_refused_request_is_not_asked_until_failures_are_forgotten(journal: Journal) -> None:
    journal.add_failure(FIRST, 400, "too " + "long" * 1000)
    journal.add_failure(FIRST, 413, "too long")
    assert journal.failures() == {FIRST.id: (413, "too long")}
    assert pending(journal) == REQUESTS[1:]
    journal.forget_failures()
    assert journal.failures() == {}
    assert pending(journal) == REQUESTS


@pytest.mark.parametrize(
    ("usable", "counts"),
    [
        ([False], 0),
        ([False, False], 1),
        ([True, False], 0),
        ([False, True], 1),
        ([True, True], 0),
        ([False, True, False, True], 1),
    ],
)
def test_the_first_usable_reply_counts_else_the_last(journal: Journal, usable: list[bool], counts: int) -> None:
    for attempt, is_usable in enumerate(usable):
        add(journal, FIRST, f"reply {attempt}", usable=is_usable)
    assert texts(journal, [FIRST]) == [f"reply {counts}"]


def test_entries_come_in_the_order_asked_for(journal: Journal) -> None:
    for request in reversed(REQUESTS):
        add(journal, request, request.id)
    assert texts(journal) == [request.id for request in REQUESTS]
    assert texts(journal, REQUESTS[::-1]) == [request.id for request in REQUESTS[::-1]]


def test_all_replies_are_counted_as_spent(journal: Journal) -> None:
    assert journal.spent() == Spent(0, 0, 0, None)
    add(journal, FIRST, usable=False, usage=None)
    assert journal.spent() == Spent(1, 0, 0, None)
    for usable in (False, True):
        body = completion("reply", usage={"prompt_tokens": 100, "completion_tokens": 20})
        journal.add_reply(REQUESTS[1], "test", body, usable=usable, cost_usd=0.25)
    assert journal.spent() == Spent(3, 200, 40, 0.5)
    assert [entry.cost_usd for entry in journal.entries(REQUESTS[:3])] == [None, 0.25, None]


@pytest.mark.parametrize(
    "text", ["", "三 😀 é", "half a smiley \ud83d", "a\x00b\nc", "x" * 200_000], ids=lambda text: ascii(text)[:20]
)
def test_replies_come_back_as_they_were(journal: Journal, path: Path, text: str) -> None:
    add(journal, FIRST, text)
    with opened(path, write=False) as reader:
        assert texts(reader, [FIRST]) == [text]


@pytest.mark.parametrize("num_requests", [499, 500, 501, 1201])
def test_any_number_of_requests(path: Path, num_requests: int) -> None:
    plan = PlanArguments("unused", num_requests)
    requests = list(generate_requests(plan))
    answered = requests[::250]
    with Journal(path, plan.identity(), write=True) as journal:
        journal.plan((request, "task") for request in requests)
        for request in answered:
            add(journal, request, request.id)
        order = requests[::-1]
        assert texts(journal, order) == [request.id if request in answered else None for request in order]
        assert [r for r, _ in journal.pending(iter(order), 1)] == [r for r in order if r not in answered]


def test_a_second_writer_is_kept_out_and_readers_are_not(path: Path) -> None:
    with opened(path) as journal:
        journal.plan([(FIRST, "task")])
        with pytest.raises(InputError, match="being written by another process"):
            opened(path)
        add(journal, FIRST)
        with opened(path, write=False) as reader:
            assert texts(reader, [FIRST]) == ["reply"]
    with opened(path):
        pass


def test_the_same_plan_may_grow(path: Path) -> None:
    with opened(path) as journal:
        journal.plan([(FIRST, "task")])
    longer = PlanArguments("elsewhere", 900, subgroups=["sts", "short-long"])
    with Journal(path, longer.identity(), write=True) as journal:
        assert pending(journal) == [FIRST]


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
        assert pending(journal) == [FIRST]


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
        ("PRAGMA application_id = 0x656D6273; PRAGMA user_version = 2; CREATE TABLE meta (key)", "has version 2"),
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
            assert [text for text in texts(left) if text] == [request.id for request in REQUESTS[:num_replies]]
            assert pending(left) == REQUESTS[num_replies:]


def test_a_crash_in_a_transaction_leaves_the_state_before_it(path: Path, tmp_path: Path) -> None:
    def planned() -> Iterator[tuple[Request, str | None]]:
        for request in REQUESTS[1:]:
            yield request, "task"
        crashed_copy(path, tmp_path / "crashed")

    with opened(path) as journal:
        journal.plan([(FIRST, "task")])
        add(journal, FIRST)
        journal.plan(planned())
        assert pending(journal) == REQUESTS[1:]
    with opened(tmp_path / "crashed" / path.name) as left:
        assert texts(left, [FIRST]) == ["reply"]
        assert pending(left) == []
        left.plan((request, "task") for request in REQUESTS)
        assert pending(left) == REQUESTS[1:]


@pytest.mark.parametrize("num_bytes", [1, 100, 5000])
def test_a_log_that_was_half_written_loses_its_end_only(
    journal: Journal, path: Path, tmp_path: Path, num_bytes: int
) -> None:
    add(journal, FIRST, "first")
    add(journal, REQUESTS[1], "last" * 1000)
    log = crashed_copy(path, tmp_path / "crashed").with_name("journal.sqlite-wal")
    log.write_bytes(log.read_bytes()[:-num_bytes])
    with opened(tmp_path / "crashed" / path.name) as left:
        assert texts(left, REQUESTS[:2]) == ["first", None]
        assert pending(left) == REQUESTS[1:]


def test_a_crash_before_anything_was_written_is_no_foreign_file(path: Path) -> None:
    """A writer switches the new file to WAL before it makes the tables; being killed in between leaves this."""
    path.parent.mkdir()
    sqlite_file(path, "PRAGMA journal_mode = WAL")
    with opened(path) as journal:
        assert pending(journal) == []
