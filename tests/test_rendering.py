"""Prompts: all render, say what was sampled, and ask for the keys of the reply that is expected."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

import pytest
from jinja2 import UndefinedError
from pydantic import BaseModel

from dataset_builder.languages import LANGUAGES
from dataset_builder.rendering import PROMPTS_DIR, attribute_table, fields, render, variants
from dataset_builder.schema import BRAINSTORMED, SUBGROUPS, Subgroup, TasksReply, check_subgroup, example_reply

TASK = 'Find "what" fits {{ language }} & <costs> {% less %} $1.'
NEGATIVE_WORDS = r"hard_negative|negative|decoy|near miss|third document|carry back|carried back"


def all_prompts() -> list[str]:
    return [
        path.relative_to(PROMPTS_DIR).with_suffix("").as_posix() for path in sorted(PROMPTS_DIR.glob("*/*/*.jinja"))
    ]


EXAMPLE_PROMPTS = [name for name in all_prompts() if "/generate/" in name]
BRAINSTORM_PROMPTS = [name for name in all_prompts() if "/brainstorm/" in name]


def subgroup_of(prompt: str) -> Subgroup:
    return check_subgroup(prompt.split("/", maxsplit=1)[0])


def draws(subgroup: Subgroup, **more: Any) -> list[dict[str, Any]]:
    """Return attributes of requests in which every value of every attribute occurs."""
    fixed: dict[str, Any] = {"language": "de"} | more
    if subgroup == "bitext":
        fixed["positive_language"] = "gd"
    if subgroup in ("short-short", "long-long"):
        fixed.setdefault("hard_negative", True)
    table = {name: list(values) for name, values in attribute_table()[subgroup].items()}
    rows = [dict(zip(table, values, strict=True)) for values in zip_longest(*table.values())] or [{}]
    return [fixed | {name: table[name][0] if value is None else value for name, value in row.items()} for row in rows]


def asked_keys(text: str) -> list[str]:
    return re.findall(r'^- "(\w+)": \S', text, re.MULTILINE)


def is_clean(text: str) -> bool:
    """Tell whether a rendered prompt has no leftovers of its template."""
    leftovers = re.search(
        r"\{\{|\}\}|\{%|%\}|\{#|Undefined|\bNone\b|\n\n\n|[ \t]\n|\S  +\S", text.replace(TASK, "task")
    )
    return text == text.strip() and leftovers is None


@pytest.mark.parametrize("subgroup", SUBGROUPS)
def test_every_step_has_several_variants(subgroup: Subgroup) -> None:
    assert len(variants(subgroup, "generate")) >= 3
    assert (
        len(variants(subgroup, "brainstorm")) >= 3 if subgroup in BRAINSTORMED else not variants(subgroup, "brainstorm")
    )


def test_all_prompts_are_all_files() -> None:
    files = {path.relative_to(PROMPTS_DIR).with_suffix("").as_posix() for path in PROMPTS_DIR.glob("*/**/*.jinja")}
    assert len(all_prompts()) == len(files)
    assert set(all_prompts()) == files


@pytest.mark.parametrize("prompt", EXAMPLE_PROMPTS)
def test_an_example_prompt_says_all_that_was_sampled(prompt: str) -> None:
    subgroup = subgroup_of(prompt)
    task = TASK if subgroup in BRAINSTORMED else None
    for attributes in draws(subgroup):
        text = render(prompt, attributes, task)
        assert is_clean(text)
        assert task is None or task in text
        names = {"language": "German", "positive_language": "Scottish Gaelic", "hard_negative": ""}
        for name, value in attributes.items():
            assert names.get(name, str(value)) in text, name
        assert not re.search(r"\b(de|gd)\b", text)


@pytest.mark.parametrize("prompt", EXAMPLE_PROMPTS)
@pytest.mark.parametrize("hard_negative", [True, False])
def test_an_example_prompt_asks_for_the_keys_of_its_reply(prompt: str, hard_negative: bool) -> None:
    subgroup = subgroup_of(prompt)
    model: type[BaseModel] = example_reply(subgroup, hard_negative=hard_negative)
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    text = render(prompt, draws(subgroup, hard_negative=hard_negative)[0], TASK)
    assert asked_keys(text) == required
    assert "JSON" in text


@pytest.mark.parametrize("prompt", [p for p in EXAMPLE_PROMPTS if subgroup_of(p) in ("short-short", "long-long")])
def test_hard_negatives_are_spoken_of_only_when_asked_for(prompt: str) -> None:
    with_, without = (render(prompt, {"language": "en", "hard_negative": flag}, TASK) for flag in (True, False))
    assert re.search(NEGATIVE_WORDS, with_)
    assert not re.search(NEGATIVE_WORDS, without)
    assert is_clean(with_)
    assert is_clean(without)


@pytest.mark.parametrize("prompt", BRAINSTORM_PROMPTS)
def test_a_brainstorm_prompt_asks_for_the_number_of_tasks(prompt: str) -> None:
    text = render(prompt, {"num_tasks": 17})
    assert is_clean(text)
    assert text.count("17") >= 2
    assert [f'"{name}"' in text for name in TasksReply.model_fields] == [True]
    assert text.count("\n- ") >= 2  # example tasks


@pytest.mark.parametrize("prompt", BRAINSTORM_PROMPTS)
def test_a_brainstorm_prompt_names_the_fields_it_is_given(prompt: str) -> None:
    names = ["Jewish liturgy", "second-hand goods", "mining"]
    without, text = (render(prompt, {"num_tasks": 17} | given) for given in ({}, {"fields": names}))
    assert re.search(r"Jewish liturgy, second-hand goods (and|or) mining\b", text)
    assert is_clean(text)
    assert not any(name in without for name in names)
    assert len(re.split(r"\n\n", text)) == len(re.split(r"\n\n", without))
    assert 0 < len(text) - len(without) < 200  # one sentence, not another prompt
    assert "from another field" not in text


def test_the_fields_are_many_and_fit_into_a_list() -> None:
    assert len(fields()) == len(set(fields())) >= 150
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z' -]{3,29}", name) for name in fields())
    assert not [name for name in fields() if re.search(r"\b(and|or)\b", name)]


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES)
def test_languages_are_called_by_name(language: Any) -> None:
    assert f"in {language.name}," in render("sts/generate/author", draws("sts", language=language.code)[0])
    attributes = draws("bitext")[0] | {"language": "en", "positive_language": language.code}
    assert f"from English to {language.name};" in render("bitext/generate/item", attributes)


@pytest.mark.parametrize("prompt", all_prompts())
def test_a_missing_attribute_is_an_error_instead_of_a_gap(prompt: str) -> None:
    attributes = {"num_tasks": 3} if "/brainstorm/" in prompt else draws(subgroup_of(prompt))[0]
    for name in attributes:
        with pytest.raises(UndefinedError, match=name):
            render(prompt, {key: value for key, value in attributes.items() if key != name}, TASK)


def test_variants_of_a_step_differ() -> None:
    for subgroup in SUBGROUPS:
        texts = {render(prompt, draws(subgroup)[0], TASK) for prompt in variants(subgroup, "generate")}
        assert len(texts) == len(variants(subgroup, "generate"))


def test_values_of_the_paper() -> None:
    table = attribute_table()
    assert list(table["short-long"]["num_words"]) == [50, 100, 200, 300, 400, 500]
    assert list(table["sts"]["high_score"]) == [4, 4.5, 5]
    assert list(table["bitext"]["low_score"]) == [2.5, 3, 3.5]
    assert set(table) == set(SUBGROUPS)
    assert {
        weight for attributes in table.values() for values in attributes.values() for weight in values.values()
    } == {1.0}
