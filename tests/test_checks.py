"""The lengths that the check takes to be asked are those that the prompts ask for."""

from __future__ import annotations

import re

import pytest

from dataset_builder.checks import asked_lengths, check_row, normalize, normals
from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.parsing import Rejection
from dataset_builder.plan import generate_requests
from dataset_builder.rendering import attribute_table, render
from dataset_builder.schema import Subgroup
from dataset_builder.words import num_words

LENGTH_ONLY = CurationArguments(check_language=False)


def test_every_length_of_a_query_that_is_sampled_is_known() -> None:
    bounds = {
        value: next(iter(asked_lengths("short-long", {"query_length": value})))[1:]
        for value in attribute_table()["short-long"]["query_length"]
    }
    assert len(bounds) == 3
    for value, (fewest, most) in bounds.items():
        numbers = [int(number) for number in re.findall(r"\d+", value)]
        assert [bound for bound in (fewest, most) if bound not in (None, 1)] == numbers, value


@pytest.mark.parametrize("languages", [["en", "de"], ["zh", "th"]])
def test_the_prompts_ask_for_the_lengths_that_are_checked(languages: list[str]) -> None:
    plan = PlanArguments("unused", 600, languages=languages)
    seen = set()
    for request in generate_requests(plan):
        prompt, attributes = render(request.prompt, request.attributes, "Find it."), request.attributes
        seen.add(request.prompt)
        asked = {name: bounds for name, *bounds in asked_lengths(request.subgroup, attributes)}
        match request.subgroup:
            case "short-long":
                assert set(asked) == {"query", "positive", "negative"}
                assert attributes["query_length"] in prompt
                assert re.search(rf"(?:about|around) {attributes['num_words']} words", prompt)
                assert asked["positive"] == asked["negative"] == [attributes["num_words"]] * 2
            case "long-short":
                assert re.search(rf"(?:about|around) {attributes['num_words']} words", prompt)
                assert asked["query"] == [attributes["num_words"]] * 2
                assert re.search(r"of a few words|names are short|a word or a few words", prompt)
                assert asked["positive"] == asked["negative"] == [1, 5]
            case "long-long":
                assert re.search(r"at least 300 words|300 words or more", prompt)
                assert asked == {key: [300, None] for key in ("query", "positive", "negative")}
            case _:
                assert asked == {}
    assert {prompt.split("/")[0] for prompt in seen} == set(attribute_table())


def text(num: int) -> str:
    return " ".join(f"word{n}" for n in range(num))


def rejection(subgroup: Subgroup, lengths: tuple[int, int, int], factor: float = 3, **attributes: object) -> str | None:
    texts = dict(
        zip(("query", "positive", "negative"), (f"{n} {text(num - 1)}" for n, num in enumerate(lengths)), strict=True)
    )
    row = texts | {"language": "en", "positive_language": "en"}
    arguments = CurationArguments(check_language=False, max_length_factor=factor)
    found = check_row(row, normals(row), subgroup, attributes, arguments)
    assert found is None or found.reason == "num_words"
    return found.detail if found else None


@pytest.mark.parametrize(
    ("subgroup", "lengths", "attributes", "detail"),
    [
        ("short-long", (15, 300, 34), {"query_length": "less than 5 words", "num_words": 100}, None),
        ("short-long", (16, 300, 34), {"query_length": "less than 5 words"}, "query has 16 words, asked for 1 to 5"),
        ("short-long", (3, 99, 99), {"query_length": "at least 10 words"}, "query has 3 words, asked for at least 10"),
        ("short-long", (99, 9, 9), {"query_length": "at least 10 words"}, None),
        ("short-long", (9, 301, 99), {"num_words": 100}, "positive has 301 words, asked for about 100"),
        ("short-long", (9, 99, 33), {"num_words": 100}, "negative has 33 words, asked for about 100"),
        ("long-short", (100, 15, 15), {"num_words": 100}, None),
        ("long-short", (100, 16, 2), {"num_words": 100}, "positive has 16 words, asked for 1 to 5"),
        ("long-short", (100, 2, 16), {"num_words": 100}, "negative has 16 words, asked for 1 to 5"),
        ("long-long", (100, 2000, 100), {}, None),
        ("long-long", (100, 99, 100), {}, "positive has 99 words, asked for at least 300"),
        ("sts", (2, 200, 3), {}, None),
    ],
)
def test_the_bounds(
    subgroup: Subgroup, lengths: tuple[int, int, int], attributes: dict[str, object], detail: str | None
) -> None:
    assert rejection(subgroup, lengths, **attributes) == detail  # type: ignore[arg-type]


def test_the_factor_and_scripts_without_spaces() -> None:
    assert rejection("long-short", (149, 2, 2), 1.5, num_words=100) is None
    assert rejection("long-short", (151, 2, 2), 1.5, num_words=100) == "query has 151 words, asked for about 100"
    assert rejection("long-short", (9999, 2, 2), 0, num_words=100) is None
    row = {"query": "海" * 500, "positive": "天气", "negative": "体育", "language": "zh", "positive_language": "zh"}
    assert round(num_words(normalize(row["query"]))) == 294
    assert check_row(row, normals(row), "long-short", {"num_words": 100}, LENGTH_ONLY) is None
    row["query"] += "海" * 20
    assert check_row(row, normals(row), "long-short", {"num_words": 100}, LENGTH_ONLY) == Rejection(
        "num_words", "query has 306 words, asked for about 100"
    )
