"""Replies as LLMs write them: what can be read is read, what is cut off or wrong is rejected with its reason."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from dataset_builder.parsing import Rejection, check_reply, parse_example, parse_tasks, reply_text
from dataset_builder.schema import SUBGROUPS, Subgroup, Texts, example_reply
from tests.replies import completion

TRIPLE = {"S1": "One – [1] {a}", "S2": 'Two "2"\nlines', "S3": "三 😀"}
TEXTS = Texts(*TRIPLE.values())
PLAIN = json.dumps(TRIPLE)
DRAFT = json.dumps(TRIPLE | {"S1": "a draft"})


def parsed(content: object, subgroup: Subgroup = "sts", **attributes: Any) -> Texts | str:
    """Return the texts of a reply, or the reason why there are none."""
    reply = parse_example(completion(content), subgroup, attributes)
    return reply.reason if isinstance(reply, Rejection) else reply.texts()


def tasks(content: object, num_tasks: int = 5) -> list[str] | str:
    reply = parse_tasks(completion(content), num_tasks)
    return reply.reason if isinstance(reply, Rejection) else reply


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        json.dumps(TRIPLE, ensure_ascii=False, indent=2),
        f"\n\t {PLAIN} \r\n",
        f"\ufeff{PLAIN}",
        f"```json\n{PLAIN}\n```",
        f"```\n{PLAIN}\n```\nLet me know if you need another one!",
        f"Sure! Here {{as asked}} is your [JSON]:\n\n{PLAIN}\n\nIt has the keys {{S1, S2, S3}}.",
        f"{PLAIN}\n{DRAFT}",
        f"<think>\nThe score is 4.5, so {DRAFT} will not do.\n</think>\n\n{PLAIN}",
        f"<THINKING>{DRAFT}</THINKING>```json\n{PLAIN}```",
        f"<think></think><think>{DRAFT}</think>{PLAIN}",
        json.dumps(TRIPLE | {"explanation": "S3 differs", "score": 4.5}),
        json.dumps({key: f"  {text}\n" for key, text in TRIPLE.items()}),
    ],
)
def test_what_can_be_read_is_read(content: str) -> None:
    assert parsed(content) == TEXTS


def test_thinking_that_began_in_the_prompt_is_dropped() -> None:
    """Chat templates that open `<think>` themselves leave only its end in the reply."""
    assert parsed(f"First try: {DRAFT}. Too near.\n</think>\n\n{PLAIN}") == TEXTS


def test_thinking_that_never_ended_is_no_reply() -> None:
    assert parsed(f"<think>First try: {DRAFT}. Too near, so") == "json"


def test_a_reply_that_is_json_is_taken_as_it_stands() -> None:
    text = "Write <think>your plan</think> in tags."
    assert parsed(json.dumps(TRIPLE | {"S1": text})) == TEXTS._replace(query=text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("I would rather write a poem.", "json"),
        ("{'S1': 'a', 'S2': 'b', 'S3': 'c'}", "json"),
        ('{"S1": "a", "S2": "b", "S3": }', "json"),
        ("<think>Should I?</think>", "json"),
        ("[" * 100_000, "json"),
        ('{"S1":' * 50_000, "json"),
        ("{" * 5_000 + "[" * 5_000, "json"),
        ("null", "schema"),
        ("[]", "schema"),
        ('"S1, S2, S3"', "schema"),
        (json.dumps([TRIPLE]), "schema"),
        (json.dumps({"example": TRIPLE}), "schema"),
        (json.dumps(TRIPLE | {"S1": ""}), "schema"),
        (json.dumps(TRIPLE | {"S1": " \n\u3000"}), "schema"),
        (json.dumps(TRIPLE | {"S2": "a\x00b"}), "characters"),
        (json.dumps(TRIPLE | {"S2": "a\x1bb"}), "characters"),
        (json.dumps(TRIPLE | {"S3": "a\x7fb"}), "characters"),
        (json.dumps(TRIPLE | {"S3": "half a smiley: \ud83d"}), "characters"),
        (json.dumps(TRIPLE | {"S1": "\udc00"}), "characters"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_read_has_a_reason(content: str, reason: str) -> None:
    start = time.monotonic()
    assert parsed(content) == reason
    assert time.monotonic() - start < 2


def test_no_cut_off_example_is_taken() -> None:
    for length in range(1, len(PLAIN)):
        assert parsed(PLAIN[:length]) in ("json", "schema"), PLAIN[:length]


def test_no_cut_off_list_of_tasks_is_taken() -> None:
    text = '{"tasks": ["Find a.", "Find b [x]."]}'
    for length in range(1, len(text)):
        assert tasks(text[:length]) in ("json", "schema"), text[:length]


@pytest.mark.parametrize("subgroup", SUBGROUPS)
def test_all_keys_are_needed_as_strings(subgroup: Subgroup) -> None:
    keys = list(example_reply(subgroup).model_fields)
    good = {key: f"text {key}" for key in keys}
    assert parsed(json.dumps(good), subgroup) == Texts(*good.values())
    for key in keys:
        assert parsed(json.dumps({k: v for k, v in good.items() if k != key}), subgroup) == "schema"
        for wrong in (None, 3, 4.5, True, ["text"], {"text": "text"}):
            assert parsed(json.dumps(good | {key: wrong}), subgroup) == "schema"


@pytest.mark.parametrize("subgroup", ["short-short", "long-long"])
def test_a_hard_negative_is_needed_only_when_asked_for(subgroup: Subgroup) -> None:
    pair = json.dumps({"input": "a", "positive_document": "b"})
    assert parsed(pair, subgroup, hard_negative=True) == "schema"
    assert parsed(pair, subgroup, hard_negative=False) == Texts("a", "b", None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "empty"),
        ([], "empty"),
        ({"choices": None}, "empty"),
        ({"choices": []}, "empty"),
        ({"choices": [{}]}, "empty"),
        ({"choices": [{"message": None}]}, "empty"),
        ({"choices": [{"message": {}}]}, "empty"),
        ({"error": {"message": "overloaded"}}, "empty"),
        (completion(None), "empty"),
        (completion(""), "empty"),
        (completion(" \n"), "empty"),
        (completion([{"type": "text", "text": "a"}]), "empty"),
        (completion(None, "content_filter"), "refusal"),
        (completion(PLAIN, "content_filter"), "refusal"),
        ({"choices": [{"message": {"content": None, "refusal": "I can't help."}}]}, "refusal"),
        (completion('{"S1": "a', "length"), "length"),
        (completion(None, "length"), "length"),
        (completion(PLAIN, "length"), "length"),
    ],
)
def test_a_completion_without_usable_text_has_a_reason(body: Any, reason: str) -> None:
    text = reply_text(body)
    assert isinstance(text, Rejection)
    assert text.reason == reason
    for step, subgroup, attributes in (("generate", "sts", {}), ("brainstorm", "sts", {"num_tasks": 3})):
        rejection = check_reply(body, step, subgroup, attributes)  # type: ignore[arg-type]
        assert rejection == text


@pytest.mark.parametrize("finish_reason", ["stop", "tool_calls", "eos", None])
def test_any_other_end_is_a_good_end(finish_reason: Any) -> None:
    assert reply_text(completion("text", finish_reason)) == "text"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"tasks": ["Find a.", "Find b."]}', ["Find a.", "Find b."]),
        ('["Find a.", "Find b."]', ["Find a.", "Find b."]),
        ('Tasks:\n```json\n["Find a."]\n```', ["Find a."]),
        ('{"tasks": [" Find\\n  a. ", "Find a.", "Find b."]}', ["Find a.", "Find b."]),
        (json.dumps({"tasks": [f"Find {n}." for n in range(9)]}), [f"Find {n}." for n in range(5)]),
        ('{"tasks": []}', "schema"),
        ("[]", "schema"),
        ("{}", "schema"),
        ('{"tasks": "Find a."}', "schema"),
        ('{"tasks": {"1": "Find a."}}', "schema"),
        ('{"tasks": ["Find a.", 2]}', "schema"),
        ('{"tasks": [{"task": "Find a."}]}', "schema"),
        ('{"tasks": ["Find a.", " "]}', "schema"),
        ('{"tasks": ["Find \\u0007."]}', "characters"),
        ('{"tasks": ["Find \\udfff."]}', "characters"),
        ("1. Find a.\n2. Find b.", "json"),
    ],
)
def test_tasks(content: str, expected: list[str] | str) -> None:
    assert tasks(content) == expected


def test_check_reply_accepts_what_the_step_asks_for() -> None:
    assert check_reply(completion('{"tasks": ["Find a."]}'), "brainstorm", "sts", {"num_tasks": 3}) is None
    assert check_reply(completion(PLAIN), "generate", "bitext", {}) is None
    rejection = check_reply(completion('{"tasks": ["Find a."]}'), "generate", "bitext", {})
    assert rejection == Rejection("schema", "S1: Field required")


def test_the_detail_shows_what_is_wrong() -> None:
    for content, part in [
        ("I refuse to write JSON", "'I refuse to write JSON'"),
        (json.dumps(TRIPLE | {"S2": 2}), "S2: "),
        (json.dumps(TRIPLE | {"S2": "\x07"}), "S2 has the character U+0007"),
    ]:
        rejection = parse_example(completion(content), "sts", {})
        assert isinstance(rejection, Rejection)
        assert part in rejection.detail
        assert "\n" not in rejection.detail
