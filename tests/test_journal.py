"""The journal: what is committed is never lost, and what is pending is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataset_builder.config import PlanArguments
from dataset_builder.errors import InputError
from dataset_builder.journal import Entry, Journal, Spent, Tally
from dataset_builder.outcome import Outcome
from dataset_builder.plan import brainstorm_requests, generate_requests, num_examples_by_subgroup
from tests.journals import (
    FIRST,
    IDS,
    PLAN,
    REQUESTS,
    add,
    entries,
    journal,  # noqa: F401  a fixture
    opened,
    path,  # noqa: F401  a fixture
    pending,
    reply,
    stored,
    texts,
)


def test_all_planned_requests_are_pending_with_their_tasks(journal: Journal) -> None:
    planned = [(request, f"task {request.index}") for request in stored(REQUESTS)]
    assert list(journal.pending(IDS, 1)) == planned
    assert list(journal.pending(iter(IDS[::-1]), 1)) == planned[::-1]  # in the order asked for
    assert list(journal.entries("generate", FIRST.subgroup, 0, 1)) == [Entry(stored([FIRST])[0], "task 0", None)]


def test_a_request_keeps_the_task_that_was_noted_first(journal: Journal) -> None:
    journal.plan([(FIRST, "another task")])
    assert next(journal.pending(IDS, 1)) == (stored([FIRST])[0], "task 0")


def test_what_was_never_planned_is_not_pending(path: Path) -> None:
    with opened(path) as journal:
        journal.plan([(FIRST, None)])
        assert list(journal.pending(reversed(IDS), 1)) == [(stored([FIRST])[0], None)]
        assert texts(journal) == {FIRST.id: None}
        assert list(journal.ids("generate", num_examples_by_subgroup(PLAN))) == [FIRST.id]


def test_ids_and_entries_are_those_of_the_first_requests_of_a_step(journal: Journal) -> None:
    journal.plan((request, None) for request in brainstorm_requests(PLAN))
    of_sts = [request.id for request in REQUESTS if request.subgroup == "sts"]
    assert list(journal.ids("generate", {"sts": 4})) == of_sts[:4]
    assert sorted(journal.ids("generate", num_examples_by_subgroup(PLAN))) == sorted(IDS)
    assert list(journal.ids("brainstorm", {"sts": 4})) == []
    assert [entry.request.id for entry in journal.entries("generate", "sts", 3, 6)] == of_sts[3:6]
    assert list(journal.entries("generate", "sts", 100, 200)) == []


def test_a_usable_reply_ends_the_asking(journal: Journal) -> None:
    add(journal, FIRST)
    assert pending(journal) == IDS[1:]


def test_an_unusable_reply_is_asked_again_until_there_are_no_attempts_left(journal: Journal) -> None:
    for _ in range(3):
        assert pending(journal, 3) == IDS
        add(journal, FIRST, usable=False)
    assert pending(journal, 3) == IDS[1:]
    assert pending(journal, 4) == IDS


def test_a_refused_request_is_not_asked_until_failures_are_forgotten(journal: Journal) -> None:
    for refusal in ((400, "too " + "long" * 1000), (413, "too long")):
        journal.add_outcomes([Outcome(FIRST.id, refusal=refusal)], "test", lambda _: None)
        assert journal.failure() == (refusal[0], refusal[1][:500])
    assert pending(journal) == IDS[1:]
    journal.forget_failures()
    assert journal.failure() is None
    assert pending(journal) == IDS


def test_no_answer_at_all_leaves_nothing(journal: Journal) -> None:
    journal.add_outcomes([Outcome(id_) for id_ in IDS], "test", lambda _: None)
    assert pending(journal, 1) == IDS
    assert journal.failure() is None
    assert journal.spent() == Spent(0, 0, 0, None)


def test_outcomes_that_arrive_together_are_committed_in_their_order(journal: Journal) -> None:
    """Two replies to one request may come in one list: from two result files of a batch, say."""
    outcomes = [reply(FIRST, "bad", usable=False), reply(REQUESTS[1], "other"), reply(FIRST, "good"), reply(FIRST)]
    journal.add_outcomes(outcomes, "test", lambda outcome: 0.5 if outcome.request_id == FIRST.id else None)
    assert {id_: text for id_, text in texts(journal).items() if text} == {FIRST.id: "good", IDS[1]: "other"}
    assert journal.spent() == Spent(4, 0, 0, 1.5)
    assert journal.has_reply(outcomes[0])
    assert not journal.has_reply(reply(FIRST, "another"))
    assert not journal.has_reply(reply(REQUESTS[2], "good"))


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
    assert texts(journal)[FIRST.id] == f"reply {counts}"
    superseded = journal.superseded("generate", FIRST.subgroup, 0, 1)
    others = [f"reply {n}" for n, is_usable in enumerate(usable) if n != counts and not is_usable]
    assert [entry.body["choices"][0]["message"]["content"] for entry in superseded if entry.body] == others


def test_entries_come_in_the_order_of_the_plan(journal: Journal) -> None:
    for request in reversed(REQUESTS):
        add(journal, request, request.id)
    assert texts(journal) == {id_: id_ for id_ in IDS}
    for subgroup, num in num_examples_by_subgroup(PLAN).items():
        found = [entry.request for entry in journal.entries("generate", subgroup, 0, num)]
        assert found == stored([request for request in REQUESTS if request.subgroup == subgroup])


def test_a_tally_tells_where_the_first_requests_stand(journal: Journal) -> None:
    by_subgroup = {s: [r for r in REQUESTS if r.subgroup == s] for s in num_examples_by_subgroup(PLAN)}
    for requests in by_subgroup.values():
        for usable in (False, True, False):
            add(journal, requests[0], usable=usable)
        add(journal, requests[1], usable=False)
        journal.add_outcomes([Outcome(requests[2].id, refusal=(400, "no"))], "test", lambda _: None)
    assert journal.tally("generate", num_examples_by_subgroup(PLAN)) == Tally(usable=2, answered=4, refused=2)
    assert journal.tally("generate", {"sts": 10}) == Tally(usable=1, answered=2, refused=1)
    assert journal.tally("generate", {"sts": 1}) == Tally(usable=1, answered=1, refused=0)
    assert journal.tally("brainstorm", {"short-long": 10}) == Tally(0, 0, 0)
    assert (journal.num_answered("generate"), journal.num_answered("brainstorm")) == (4, 0)


def test_all_replies_are_counted_as_spent(journal: Journal) -> None:
    assert journal.spent() == Spent(0, 0, 0, None)
    add(journal, FIRST, usable=False, usage=None)
    assert journal.spent() == Spent(1, 0, 0, None)
    for usable in (False, True):
        outcome = reply(REQUESTS[1], usable=usable, usage={"prompt_tokens": 100, "completion_tokens": 20})
        journal.add_outcomes([outcome], "test", lambda _: 0.25)
    assert journal.spent() == Spent(3, 200, 40, 0.5)
    costs = {entry.request.id: entry.cost_usd for entry in entries(journal)}
    assert [costs[id_] for id_ in IDS[:3]] == [None, 0.25, None]


def test_notes_come_back_by_the_start_of_their_key(path: Path) -> None:
    values: dict[str, Any] = {"batch/2": ["b"], "batch/1": {"id": "é"}, "batch%": None, "other": 1}
    with opened(path) as journal:
        for key, value in values.items():
            journal.set_note(key, "old")
            journal.set_note(key, value)
    with opened(path, write=False) as journal:
        assert journal.notes("batch/") == {"batch/1": {"id": "é"}, "batch/2": ["b"]}
        assert journal.notes("") == values
        assert journal.notes("none") == {}


@pytest.mark.parametrize(
    "text", ["", "三 😀 é", "half a smiley \ud83d", "a\x00b\nc", "x" * 200_000], ids=lambda text: ascii(text)[:20]
)
def test_replies_come_back_as_they_were(journal: Journal, path: Path, text: str) -> None:
    add(journal, FIRST, text)
    with opened(path, write=False) as reader:
        assert texts(reader)[FIRST.id] == text


@pytest.mark.parametrize("num_requests", [499, 500, 501, 1201])
def test_any_number_of_requests(path: Path, num_requests: int) -> None:
    plan = PlanArguments("unused", num_requests, subgroups=["sts"])
    requests = list(generate_requests(plan))
    answered = [request.id for request in requests[::250]]
    with Journal(path, plan.identity(), write=True) as journal:
        journal.plan((request, "task") for request in requests)
        for request in requests[::250]:
            add(journal, request, request.id)
        assert texts(journal, plan) == {r.id: r.id if r.id in answered else None for r in requests}
        assert list(texts(journal, plan)) == list(journal.ids("generate", {"sts": num_requests}))
        order = [request.id for request in requests[::-1]]
        assert pending(journal, 1, order) == [id_ for id_ in order if id_ not in answered]


def test_a_second_writer_is_kept_out_and_readers_are_not(path: Path) -> None:
    with opened(path) as journal:
        journal.plan([(FIRST, "task")])
        with pytest.raises(InputError, match="being written by another process"):
            opened(path)
        add(journal, FIRST)
        with opened(path, write=False) as reader:
            assert texts(reader)[FIRST.id] == "reply"
    with opened(path):
        pass


def test_the_same_plan_may_grow(path: Path) -> None:
    with opened(path) as journal:
        journal.plan([(FIRST, "task")])
    longer = PlanArguments("elsewhere", 900, subgroups=["sts", "short-long"])
    with Journal(path, longer.identity(), write=True) as journal:
        assert pending(journal) == [FIRST.id]
