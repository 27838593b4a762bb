"""Prompts: Jinja files under `prompts/<subgroup>/<step>/<variant>.jinja`, several variants a step, mixed equally.

The wording is free to improve at any time: a request's id depends on the name of its prompt, never on the wording.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dataset_builder.languages import LANGUAGES
from dataset_builder.schema import SUBGROUPS, Step, Subgroup

PROMPTS_DIR = Path(__file__).parent / "prompts"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(PROMPTS_DIR),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  plain text for an LLM, not HTML
        auto_reload=False,  # else each rendering asks the disk whether the files have changed
    )


@cache
def variants(subgroup: Subgroup, step: Step) -> tuple[str, ...]:
    """Return the names of the prompts of a step, such as `'sts/generate/item'`, sorted."""
    return tuple(f"{subgroup}/{step}/{path.stem}" for path in sorted((PROMPTS_DIR / subgroup / step).glob("*.jinja")))


def _attributes_yaml() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load((PROMPTS_DIR / "attributes.yaml").read_text(encoding="utf-8"))
    return raw


@cache
def fields() -> tuple[str, ...]:
    """Return the fields of activity and knowledge that brainstorms are spread over (`prompts/attributes.yaml`)."""
    return tuple(field for group in _attributes_yaml()["fields"].values() for field in group)


@cache
def attribute_table() -> dict[Subgroup, dict[str, dict[Any, float]]]:
    """Return the values and weights of every attribute, by subgroup (`prompts/attributes.yaml`)."""
    raw = _attributes_yaml()
    return {
        subgroup: {
            name: values if isinstance(values, dict) else dict.fromkeys(values, 1.0)
            for name, values in raw[subgroup].items()
        }
        for subgroup in SUBGROUPS
    }


def render(prompt: str, attributes: dict[str, Any], task: str | None = None) -> str:
    """Return the text that is sent to the LLM.

    Args:
        prompt: name of the prompt, as `variants` returns it.
        attributes: what the request sampled; languages are given by code and appear by name.
        task: the brainstormed task that a generate request is conditioned on; None for sts, bitext and brainstorm.
    """
    names = {key: LANGUAGES[attributes[key]].name for key in ("language", "positive_language") if key in attributes}
    template = _environment().get_template(f"{prompt}.jinja")
    return template.render({"task": task, **attributes, **names}).strip()


def choices_digest() -> str:
    """Return a digest of all that a plan draws from: names of prompts, and values and weights of attributes."""
    names = [path.relative_to(PROMPTS_DIR).as_posix() for path in sorted(PROMPTS_DIR.glob("*/*/*.jinja"))]
    return hashlib.sha256(json.dumps([names, _attributes_yaml()]).encode()).hexdigest()[:12]
