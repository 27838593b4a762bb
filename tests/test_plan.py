"""The plan: exact, prefix-stable, and a function of the recipe and its seed alone."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from typing import Any

import pytest

from dataset_builder.config import PlanArguments
from dataset_builder.errors import InputError
from dataset_builder.llm_config import parse_weights
from dataset_builder.plan import (
    Request,
    brainstorm_requests,
    generate_requests,
    num_brainstorms,
    num_examples_by_subgroup,
    request_id,
    subgroup_sequence,
)
from dataset_builder.rendering import attribute_table, fields, variants
from dataset_builder.schema import BRAINSTORMED, SUBGROUPS, Subgroup
from embedsmith import VERBS, parse

RECIPES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "another seed": {"seed": 7},
    "weights": {"subgroups": ["short-long=3", "sts", "bitext=0.5"], "languages": ["en=40", "de", "zh=2.5"]},
    "one subgroup": {"subgroups": ["long-short"], "num_words": [50, 100]},
    "many examples per task": {"examples_per_task": 2.5, "tasks_per_brainstorm": 4},
    "many tasks per example": {"examples_per_task": 0.4, "tasks_per_brainstorm": 3},
    "paper's negatives": {"hard_negatives": False},
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def arguments(num_examples: int = 60, **settings: Any) -> PlanArguments:
    return PlanArguments("unused", num_examples, **settings)


def generated(num_examples: int = 60, **settings: Any) -> list[Request]:
    return list(generate_requests(arguments(num_examples, **settings)))


def brainstormed(num_examples: int = 60, **settings: Any) -> list[Request]:
    return list(brainstorm_requests(arguments(num_examples, **settings)))


@each_recipe
@pytest.mark.parametrize("num_examples", [1, 2, 61])
def test_exactly_as_many_examples_as_asked_for(recipe: dict[str, Any], num_examples: int) -> None:
    requests = generated(num_examples, **recipe)
    assert len(requests) == num_examples
    assert {request.step for request in requests} == {"generate"}
    for subgroup in SUBGROUPS:
        indices = [request.index for request in requests if request.subgroup == subgroup]
        assert indices == list(range(len(indices)))


@each_recipe
def test_the_same_recipe_gives_the_same_plan(recipe: dict[str, Any]) -> None:
    assert generated(**recipe) == generated(**recipe)
    assert brainstormed(**recipe) == brainstormed(**recipe)


@each_recipe
@pytest.mark.parametrize("num_examples", [1, 29, 150])
def test_a_longer_plan_begins_with_the_shorter_one(recipe: dict[str, Any], num_examples: int) -> None:
    assert generated(200, **recipe)[:num_examples] == generated(num_examples, **recipe)
    short, long = brainstormed(num_examples, **recipe), brainstormed(200, **recipe)
    for subgroup in BRAINSTORMED:
        first = [request for request in short if request.subgroup == subgroup]
        assert [request for request in long if request.subgroup == subgroup][: len(first)] == first


@each_recipe
def test_ids_are_unique_and_fit_batch_apis(recipe: dict[str, Any]) -> None:
    ids = [request.id for request in (*brainstormed(300, **recipe), *generated(300, **recipe))]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", id_) for id_ in ids)


@each_recipe
@pytest.mark.parametrize("num_examples", [1, 60, 199])
def test_exactly_the_brainstorms_that_the_examples_need(recipe: dict[str, Any], num_examples: int) -> None:
    plan = arguments(num_examples, **recipe)
    by_subgroup = Counter(request.subgroup for request in brainstormed(num_examples, **recipe))
    for subgroup in SUBGROUPS:
        slots = [r.task_slot for r in generated(num_examples, **recipe) if r.subgroup == subgroup]
        if subgroup not in BRAINSTORMED or not slots:
            assert by_subgroup[subgroup] == 0
            assert set(slots) <= {None}
            continue
        num_tasks = math.ceil(len(slots) / plan.examples_per_task)
        assert by_subgroup[subgroup] == math.ceil(num_tasks / plan.tasks_per_brainstorm)
        assert max(slot for slot in slots if slot is not None) < num_tasks


@pytest.mark.parametrize(("per_task", "counts"), [(1.0, {1}), (4.0, {4}), (2.5, {2, 3}), (500 / 150, {3, 4})])
def test_each_task_is_used_as_often_as_asked_for(per_task: float, counts: set[int]) -> None:
    slots = [
        request.task_slot for request in generated(1000, subgroups=["sts", "long-long"], examples_per_task=per_task)
    ]
    used = Counter(slot for slot in slots if slot is not None)
    assert list(used) == list(range(math.ceil(500 / per_task)))
    assert set(used.values()) == counts


WEIGHTS: list[dict[Subgroup, float]] = [
    dict.fromkeys(SUBGROUPS, 1.0),
    {"short-long": 5.0, "sts": 1.0, "bitext": 1.0},
    {"short-long": 3.0, "long-short": 2.0, "long-long": 11.0, "sts": 7.0},
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_every_prefix_has_the_shares_of_the_weights(weights: dict[Subgroup, float]) -> None:
    total, seen = sum(weights.values()), Counter[Subgroup]()
    for number, subgroup in enumerate(subgroup_sequence(weights, 10 * int(total)), 1):
        seen[subgroup] += 1
        assert all(-1.5 < seen[name] - number * weight / total < 1 for name, weight in weights.items())
        if number % total == 0:
            assert all(seen[name] * total == number * weight for name, weight in weights.items())


def test_languages_come_by_weight() -> None:
    seen = Counter(request.attributes["language"] for request in generated(3000, subgroups=["sts"]))
    assert seen["en"] / 3000 == pytest.approx(0.431, abs=0.03)
    assert seen["fr"] / 3000 == pytest.approx(0.029, abs=0.01)
    given = Counter(request.attributes["language"] for request in generated(400, languages=["ta=3", "en"]))
    assert set(given) == {"ta", "en"}
    assert given["ta"] / 400 == pytest.approx(0.75, abs=0.06)


def test_prompts_and_values_are_drawn_equally() -> None:
    requests = generated(1800, subgroups=["sts"])
    for drawn, values in [
        ([request.prompt for request in requests], variants("sts", "generate")),
        ([request.attributes["low_score"] for request in requests], [2.5, 3, 3.5]),
        ([request.attributes["unit"] for request in requests], ["sentence", "phrase", "passage"]),
    ]:
        counts = Counter(drawn)
        assert set(counts) == set(values)
        assert all(count == pytest.approx(600, rel=0.15) for count in counts.values())


def test_attributes_are_those_of_the_table() -> None:
    for request in generated(300):
        values = dict(request.attributes)
        assert values.pop("language") != values.pop("positive_language", None)
        assert ("positive_language" in request.attributes) == (request.subgroup == "bitext")
        assert ("hard_negative" in values) == (request.subgroup in ("short-short", "long-long"))
        assert values.pop("hard_negative", True) is True
        table = attribute_table()[request.subgroup]
        assert set(values) == set(table)
        assert all(value in table[name] for name, value in values.items())
        assert request.prompt in variants(request.subgroup, "generate")


def test_settings_replace_values_of_the_table() -> None:
    lengths = {request.attributes.get("num_words") for request in generated(120, num_words=[7, 9])}
    assert lengths == {None, 7, 9}
    negatives = {request.attributes.get("hard_negative") for request in generated(30, hard_negatives=False)}
    assert negatives == {None, False}
    assert {request.attributes["num_tasks"] for request in brainstormed(tasks_per_brainstorm=5)} == {5}


@pytest.mark.parametrize(
    ("recipe", "digests"),
    [
        ("defaults", ("fb791f101d9c5942", "a4528c73857b8396")),
        ("another seed", ("641a2ea8bceec365", "6bc518b21257e9e7")),
        ("weights", ("999ab97c8099006f", "ae6ec37e62f1993a")),
    ],
)
def test_ids_never_change(recipe: str, digests: tuple[str, str]) -> None:
    """Or every journal and recording would be lost. The wording of prompts is no part of an id."""
    settings = {"examples_per_task": 500 / 150} | RECIPES[recipe]
    open_brainstorms = [r for r in brainstormed(20_000, **settings) if r.index < 4]
    for requests, digest in zip((generated(600, **settings), open_brainstorms), digests, strict=True):
        ids = "\n".join(request.id for request in requests)
        assert hashlib.sha256(ids.encode()).hexdigest()[:16] == digest


@each_recipe
def test_the_draws_are_those_of_random_choices(recipe: dict[str, Any]) -> None:
    """The plan draws by a faster way than `rng.choices(values, weights)`, from the same random numbers."""
    plan = arguments(120, **recipe)
    weights = plan.language_weights
    for request in generate_requests(plan):
        rng = random.Random(f"{plan.seed}/{request.subgroup}/generate/{request.index}")
        assert request.prompt == rng.choice(variants(request.subgroup, "generate"))
        assert request.attributes["language"] == rng.choices(list(weights), list(weights.values()))[0]
        while (other := request.attributes.get("positive_language")) is not None:
            if (drawn := rng.choices(list(weights), list(weights.values()))[0]) != request.attributes["language"]:
                assert other == drawn
                break
        for name, values in attribute_table()[request.subgroup].items():
            table = dict.fromkeys(plan.num_words, 1.0) if name == "num_words" and plan.num_words else values
            assert request.attributes[name] == rng.choices(list(table), list(table.values()))[0]


def test_brainstorms_after_the_fourth_are_given_fields() -> None:
    requests = brainstormed(4000, examples_per_task=1.0, tasks_per_brainstorm=3)
    assert Counter(request.subgroup for request in requests) == num_brainstorms(
        arguments(4000, examples_per_task=1.0, tasks_per_brainstorm=3)
    )
    drawn = []
    for request in requests:
        if request.index < 4:
            assert request.attributes == {"num_tasks": 3}
        else:
            drawn.append(request.attributes["fields"])
            assert len(set(drawn[-1])) == 3
            assert set(request.attributes) == {"num_tasks", "fields"}
    assert {name for names in drawn for name in names} == set(fields())
    assert len({frozenset(names) for names in drawn}) > 0.99 * len(drawn) > 800


def test_the_paper_recipe_plans_150_000_tasks() -> None:
    types = VERBS["plan"].types
    plan = parse("plan", types, ["--config", "paper"])[0]
    assert plan.num_examples == 500_000
    assert len(plan.language_weights) == 93
    counts = num_examples_by_subgroup(plan)
    assert sum(counts.values()) == 500_000
    assert sum(counts[name] for name in BRAINSTORMED) == 316_047
    num_tasks = sum(math.ceil(counts[name] / plan.examples_per_task) for name in BRAINSTORMED)
    assert abs(num_tasks - 150_000) <= 2
    assert sum(num_brainstorms(plan).values()) * plan.tasks_per_brainstorm == 150_020  # whole brainstorms


def test_another_seed_is_another_plan() -> None:
    first, second = ({request.id for request in generated(60, seed=seed)} for seed in (0, 1))
    assert len(first & second) < 5


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"examples_per_task": 2.0}, {"num_words": [50]}, {"languages": ["en", "de"]}]
)
def test_what_has_the_same_id_is_the_same_request(change: dict[str, Any]) -> None:
    """Else a recorded reply would be taken for an answer to another request, one about another task."""
    base: dict[str, Any] = {"examples_per_task": 1.0, "languages": ["en", "de", "fr"]}
    others = {request.id: request for request in generated(**base)}
    for request in generated(**(base | change)):
        assert request == others.get(request.id, request)


def test_an_id_depends_on_each_part_but_not_on_the_order_of_attributes() -> None:
    parts: dict[str, Any] = {"step": "generate", "subgroup": "sts", "index": 3, "prompt": "sts/generate/item"}
    parts["attributes"] = {"unit": "phrase", "language": "de"}
    ids = {request_id(**parts), request_id(**parts | {"attributes": {"language": "de", "unit": "phrase"}})}
    assert len(ids) == 1
    ids |= {
        request_id(**parts | {"attributes": {"unit": "phrase", "language": "fr"}}),
        request_id(**parts | {"index": 4}),
    }
    ids |= {request_id(**parts | {"step": "brainstorm"}), request_id(**parts | {"prompt": "sts/generate/author"})}
    assert len(ids | {request_id(**parts | {"subgroup": "bitext"})}) == 6


@pytest.mark.timeout(5)
def test_bitext_is_planned_quickly_however_uneven_the_weights() -> None:
    requests = generated(20, subgroups=["bitext"], languages=["en=1e9", "de"])
    assert all({r.attributes["language"], r.attributes["positive_language"]} == {"en", "de"} for r in requests)


def test_weights_are_read() -> None:
    assert parse_weights("languages", ["en=40", "de", "zh=0.5"]) == {"en": 40.0, "de": 1.0, "zh": 0.5}


@pytest.mark.parametrize("entry", ["de=0", "de=-1", "de=inf", "de=nan", "de=much", "de=1=2"])
def test_a_weight_that_is_no_positive_number_is_refused(entry: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"`languages` has '{entry}'")):
        parse_weights("languages", [entry])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_examples": 0}, "`num_examples` is 0"),
        ({"tasks_per_brainstorm": -1}, "`tasks_per_brainstorm` is -1"),
        ({"examples_per_task": math.nan}, "`examples_per_task` is nan"),
        ({"examples_per_task": math.inf}, "`examples_per_task` is inf"),
        ({"num_words": [50, 0]}, "`num_words` has 0"),
        ({"subgroups": []}, "`subgroups` is empty"),
        ({"subgroups": ["sts", "long-log"]}, "Did you mean 'long-long'?"),
        ({"subgroups": ["sts", "sts=2"]}, "'sts' twice"),
        ({"languages": ["de", "de=2"]}, "'de' twice"),
        ({"languages": ["de"]}, "bitext needs two languages"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        PlanArguments("unused", **settings)


def test_only_what_changes_the_plan_is_its_identity() -> None:
    base = arguments(60, subgroups=["sts", "bitext=2"], languages=["de", "en=2"]).identity()
    assert base == PlanArguments("elsewhere", 900, ["bitext=2", "sts=1"], ["en=2.0", "de"]).identity()
    identities = [arguments(60, **recipe).identity() for recipe in RECIPES.values()]
    assert all(identities.count(identity) == 1 for identity in identities)
