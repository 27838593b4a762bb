"""Curation: every reason to reject, splits by task, duplicates, and the same result whatever the order of replies."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.curation import (
    REASONS,
    Curated,
    check_row,
    curate_entries,
    normalize,
    rejected_brainstorms,
    split_of,
    task_id,
    task_rows,
)
from dataset_builder.journal import Entry, Journal
from dataset_builder.outcome import reply_outcome
from dataset_builder.parsing import Rejection
from dataset_builder.plan import Request, brainstorm_requests, generate_requests, num_examples_by_subgroup
from dataset_builder.schema import BRAINSTORMED, COLUMNS, FIXED_INSTRUCTIONS, SUBGROUPS, TASK_COLUMNS, Subgroup
from tests.replies import SENTENCES, answer, completion

PLAN = PlanArguments("unused", 120, examples_per_task=2, tasks_per_brainstorm=4)
REQUESTS = list(generate_requests(PLAN))
KEEP_ALL = CurationArguments(test_size=0)
ENGLISH = "The harbour was closed for three days because of the storm."


def entry(request: Request, body: dict[str, Any] | None) -> Entry:
    fixed = FIXED_INSTRUCTIONS.get(request.subgroup)
    return Entry(request, fixed or f"Find task {request.task_slot}.", body)


def request_of(subgroup: Subgroup, number: int = 0, **attributes: Any) -> Request:
    """Return a request with the given attributes; its language is English unless they say otherwise."""
    draw = {"language": "en"} | attributes
    return Request(f"{subgroup}-{number}", "generate", subgroup, number, f"{subgroup}/generate/author", draw, number)


def example(subgroup: Subgroup, texts: list[str], number: int = 0, **attributes: Any) -> Entry:
    """Return the entry of a reply with these texts."""
    request = request_of(subgroup, number, **attributes)
    body = answer(request)
    keys = json.loads(body["choices"][0]["message"]["content"])
    return entry(request, completion(json.dumps(dict(zip(keys, texts, strict=True)))))


def reasons(*entries: Entry) -> list[str]:
    return [row["reason"] for row in curate_entries(entries, KEEP_ALL).rejected]


def row_of(query: str, positive: str, negative: str | None = None, language: str = "en") -> dict[str, Any]:
    return {
        "query": query,
        "positive": positive,
        "negative": negative,
        "language": language,
        "positive_language": language,
    }


def test_good_replies_become_rows() -> None:
    curated = curate_entries([entry(request, answer(request)) for request in REQUESTS], KEEP_ALL)
    assert curated.rejected == []
    assert list(curated.examples) == list(SUBGROUPS)
    rows = {row["id"]: row for row in curated.rows()}
    assert len(rows) == len(REQUESTS)
    for request in REQUESTS:
        row, language = rows[request.id], request.attributes["language"]
        assert tuple(row) == COLUMNS
        assert row["query"] == f"Q{request.index}. {SENTENCES[language]}"
        assert row["negative"].startswith(f"N{request.index}. ")
        assert row["instruction"] == entry(request, None).task
        assert (row["language"], row["model"], row["prompt"]) == (language, "test-llm", request.prompt)
        assert row["positive_language"] == request.attributes.get("positive_language", language)
        assert not {"language", "positive_language"} & set(json.loads(row["attributes"]))


def test_a_negative_that_was_not_asked_for_is_left_out() -> None:
    pair = {"input": "calm sea", "positive_document": "no waves", "hard_negative_document": "rough sea"}
    for asked, negative in ((True, "rough sea"), (False, None)):
        request = request_of("short-short", hard_negative=asked)
        (row,) = curate_entries([entry(request, completion(json.dumps(pair)))], KEEP_ALL).rows()
        assert row["negative"] == negative


GERMAN = SENTENCES["de"]
BAD: list[tuple[str, Entry]] = [
    ("empty", entry(request_of("sts"), completion(""))),
    ("empty", example("sts", ["...", "one", "two"])),
    ("empty", example("short-short", ["one", "two", "?!"])),
    ("refusal", entry(request_of("sts"), completion(None, "content_filter"))),
    ("length", entry(request_of("sts"), completion("{", "length"))),
    ("json", entry(request_of("sts"), completion("No."))),
    ("schema", entry(request_of("sts"), completion("{}"))),
    ("characters", example("sts", ["a\x00", "b", "c"])),
    ("copy", example("sts", ["Same text", "same  TEXT!", "c"])),
    ("copy", example("sts", ["a", "Same text", "same text."])),
    ("copy", example("sts", ["ｓａｍｅ ｔｅｘｔ", "b", "Same Text"])),
    ("copy", example("bitext", ["Rio de Janeiro", "Rio de Janeiro", "Rio"], positive_language="pt")),
    ("copy", example("short-long", [ENGLISH, f"Well: {ENGLISH.lower()} So it was.", "c"])),
    ("copy", example("short-long", [ENGLISH, "b", f"Well: {ENGLISH.lower()} So it was."])),
    ("leak", example("long-short", ["He liked the goal, a penalty.", "Penalty", "Corner"])),
    ("leak", example("long-short", ["He liked the goal, no corner kick.", "Penalty", "Corner Kick"])),
    ("language", example("sts", [f"{n}: {GERMAN}" for n in range(3)])),
    ("language", example("bitext", [ENGLISH, ENGLISH[10:], ENGLISH[20:]], positive_language="de")),
]


@pytest.mark.parametrize(("reason", "bad"), BAD, ids=[f"{reason}-{n}" for n, (reason, _) in enumerate(BAD)])
def test_each_reason(reason: str, bad: Entry) -> None:
    curated = curate_entries([bad], KEEP_ALL)
    assert list(curated.rows()) == []
    (row,) = curated.rejected
    assert row["reason"] == reason
    assert row["detail"]
    assert (row["id"], row["subgroup"], row["task"]) == (bad.request.id, bad.request.subgroup, bad.task)
    json.dumps(row, ensure_ascii=False).encode()  # no lone surrogates


def test_each_reason_is_explained_and_tested() -> None:
    assert {reason for reason, _ in BAD} | {"duplicate"} == set(REASONS)


def test_a_rejected_reply_with_broken_unicode_is_kept_readable() -> None:
    (row,) = curate_entries([example("sts", ["half a smiley \ud83d", "b", "c"])], KEEP_ALL).rejected
    assert "half a smiley \\ud83d" in row["reply"]
    row["reply"].encode()


@pytest.mark.parametrize(
    ("subgroup", "texts"),
    [
        ("short-long", ["Mount Kenya", "Mount Kenya is the highest mountain of Kenya.", "Kilimanjaro"]),
        ("long-short", ["He penalised the corner flag.", "Penalty", "Corner Kick"]),
        ("long-short", ["The reviewer adores it.", "positive review", "negative review"]),
    ],
)
def test_what_is_no_copy_and_no_leak_is_kept(subgroup: Subgroup, texts: list[str]) -> None:
    assert reasons(example(subgroup, texts)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("दिन", "दीन"),  # Hindi: day, poor
        ("เสือ", "เสื้อ"),  # Thai: tiger, shirt
        ("மான்", "மீன்"),  # Tamil: deer, fish
        ("বল", "বেল"),  # Bengali: ball, wood apple
        ("ကား", "ကို"),  # Burmese: car, a particle
    ],
    ids=["hi", "th", "ta", "bn", "my"],
)
def test_other_vowel_signs_make_another_word(one: str, other: str) -> None:
    assert normalize(one) != normalize(other)
    assert reasons(example("sts", [one, other, f"{one} {other}"])) == []


def test_a_label_is_no_leak_where_words_only_share_consonants() -> None:
    text = "उसने कहा कि मैं कल आऊँगा।"  # "he said that I will come tomorrow": "कि मैं" is not "काम", work
    assert check_row(row_of(text, "काम", "घर", "hi"), "long-short") is None


@pytest.mark.parametrize(
    ("language", "text", "label"),
    [
        ("zh", "我昨天收到的商品坏了，我要投诉你们的客服。", "投诉"),
        ("ja", "届いた商品が壊れていたので苦情を申し立てます。", "苦情"),
        ("th", "สินค้าที่ได้รับเสียหาย ฉันต้องการร้องเรียนบริการ", "ร้องเรียน"),
        ("de", "Ich möchte eine Beschwerde einreichen.", "Beschwerde"),
    ],
    ids=["zh", "ja", "th", "de"],
)
def test_a_label_leaks_in_scripts_without_spaces_too(language: str, text: str, label: str) -> None:
    rejection = check_row(row_of(text, label, language=language), "long-short")
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "leak"


def test_one_long_text_in_another_language_is_found() -> None:
    query = "How do I renew the passport of my child when I live abroad as a citizen?"
    rejection = check_row(row_of(query, f"{GERMAN} {GERMAN}", f"Nein. {GERMAN}", "de"), "short-long")
    assert rejection == Rejection("language", "asked for de, is en")


def test_the_language_check_can_be_switched_off() -> None:
    row = row_of(f"1: {GERMAN}", f"2: {GERMAN}")
    assert check_row(row, "sts") is not None
    assert check_row(row, "sts", check_language=False) is None


def test_duplicates_of_query_or_positive() -> None:
    entries = [
        example("sts", ["First query", "first positive", "n"], 0),
        example("sts", ["first QUERY!", "second positive", "n"], 1),  # the query again
        example("sts", ["Third query", "First  Positive", "n"], 2),  # the positive again
        example("sts", ["Fourth query", "second positive", "n"], 3),  # occurred in a rejected reply only
        example("sts", ["Fifth query", "fifth positive", "n"], 4),  # negatives may recur
        example("short-short", ["First query", "first positive", "n"], 5),  # another subgroup
    ]
    curated = curate_entries(entries, KEEP_ALL)
    assert [(row["id"], row["reason"], row["detail"]) for row in curated.rejected] == [
        ("sts-1", "duplicate", "query of sts-0"),
        ("sts-2", "duplicate", "positive of sts-0"),
    ]


def test_labels_may_recur_but_their_texts_may_not() -> None:
    texts = ["He scored.", "She saved.", "He scored!"]
    assert reasons(*(example("long-short", [text, "Sport", "War"], n) for n, text in enumerate(texts))) == ["duplicate"]


def test_unanswered_requests_are_counted_and_unusable_replies_are_not() -> None:
    entries = [entry(r, None if n % 3 else completion("No.")) for n, r in enumerate(REQUESTS[:12])]
    curated = curate_entries(entries, KEEP_ALL)
    assert curated.num_unanswered.total() == 8
    assert len(curated.rejected) == 4


def test_tokens_and_cost_are_those_of_the_replies() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    entries = [Entry(request, "task", answer(request) | {"usage": usage}, 0.25) for request in REQUESTS[:3]]
    entries += [Entry(request, "task", answer(request)) for request in REQUESTS[3:6]]
    curated = curate_entries(entries, KEEP_ALL)
    assert (curated.prompt_tokens, curated.completion_tokens, curated.cost_usd) == (30, 9, 0.75)
    free = curate_entries(entries[3:], KEEP_ALL)
    assert (free.prompt_tokens, free.completion_tokens, free.cost_usd) == (None, None, None)


def answered(num_examples: int, test_size: float) -> Curated:
    plan = PlanArguments("unused", num_examples, examples_per_task=2)
    entries = [entry(request, answer(request)) for request in generate_requests(plan)]
    return curate_entries(entries, CurationArguments(test_size, check_language=False))


def test_no_task_is_in_two_splits() -> None:
    curated = answered(360, 0.3)
    for subgroup, splits in curated.examples.items():
        ids = [{row["task_id"] for row in splits[name]} for name in ("train", "test")]
        assert ids[0]
        assert ids[1]
        assert bool(ids[0] & ids[1]) == (subgroup not in BRAINSTORMED)


def test_a_split_never_changes_when_the_plan_or_the_test_set_grows() -> None:
    small, large, larger_test = answered(60, 0.2), answered(240, 0.2), answered(240, 0.4)
    for subgroup in SUBGROUPS:
        for name in ("train", "test"):
            rows = small.examples[subgroup][name]
            assert [row for row in large.examples[subgroup][name] if row in rows] == rows
        test_ids = {row["id"] for row in large.examples[subgroup]["test"]}
        assert test_ids <= {row["id"] for row in larger_test.examples[subgroup]["test"]}


def test_the_share_of_the_test_split() -> None:
    rows = [{"id": f"sts-{n}", "task_id": f"task-{n}"} for n in range(2000)]
    for subgroup in ("sts", "short-long"):
        splits = Counter(split_of(row, subgroup, 0.2) for row in rows)
        assert splits["test"] / 2000 == pytest.approx(0.2, abs=0.03)
        assert {split_of(row, subgroup, 0) for row in rows} == {"train"}


def test_the_order_in_which_replies_arrive_changes_nothing(tmp_path: Path) -> None:
    curated = []
    for seed in range(3):
        with Journal(tmp_path / f"{seed}.sqlite", PLAN.identity(), write=True) as journal:
            journal.plan((request, entry(request, None).task) for request in REQUESTS)
            for request in random.Random(seed).sample(REQUESTS, len(REQUESTS)):
                body = answer(REQUESTS[0]) if request.index == 5 else answer(request)  # some duplicates
                journal.add_outcomes([reply_outcome(request, body)], "test", lambda _: None)
            nums = num_examples_by_subgroup(PLAN)
            entries = [e for subgroup, num in nums.items() for e in journal.entries("generate", subgroup, 0, num)]
            curated.append(curate_entries(entries, CurationArguments(0.2, check_language=False)))
    assert curated[0].rejected
    assert curated[0] == curated[1] == curated[2]


def test_a_task_is_known_by_its_words() -> None:
    assert task_id("sts", "Find  the cause.") == task_id("sts", "find the cause")
    assert len({task_id("sts", "a"), task_id("bitext", "a"), task_id("sts", "b")}) == 3


def test_task_rows() -> None:
    requests = [request for request in brainstorm_requests(PLAN) if request.subgroup == "long-long"]
    tasks = [(entry(request, answer(request)), [f"Find {n}.", "Find all."]) for n, request in enumerate(requests)]
    example_request = request_of("long-long", hard_negative=True)
    curated = curate_entries([Entry(example_request, "Find all.", answer(example_request))], KEEP_ALL)
    rows = task_rows(tasks, curated)
    assert [row["task"] for row in rows] == ["Find 0.", "Find all.", *(f"Find {n}." for n in range(1, len(requests)))]
    assert all(tuple(row) == TASK_COLUMNS for row in rows)
    assert [(row["num_examples"], row["split"]) for row in rows[:2]] == [(0, None), (1, "train")]


def test_brainstorms_without_tasks_are_rejected() -> None:
    first, second, third, *_ = brainstorm_requests(PLAN)
    rows = rejected_brainstorms([entry(first, answer(first)), entry(second, completion("No.")), entry(third, None)])
    assert [(row["id"], row["reason"]) for row in rows] == [(second.id, "json")]
