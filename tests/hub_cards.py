"""What the tests' Hub reads from a README.md, and what it refuses there: only some of the real Hub's rules."""

from __future__ import annotations

import re
from typing import Any

import yaml

_LICENSES = """
 apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m openrail++ bigcode-openrail-m
 bigscience-bloom-rail-1.0 afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
 cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
 gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
 mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr gemma
 deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
 grok2-community unknown other"""
_REPO_ID = r"[\w.-]+(/[\w.-]+)?"
_CARD_RULES = (
    ("license", "|".join(map(re.escape, _LICENSES.split())), "must be one of the license identifiers of the Hub"),
    ("language", "[a-z]{2,3}|code|multilingual", 'must be an ISO 639 code, "code" or "multilingual"'),
    ("base_model", _REPO_ID, "must be a repo id"),
    ("datasets", _REPO_ID, "must be a repo id"),
)


def front_matter(text: str) -> Any:
    """Return the YAML of a card, None if there is none."""
    match = re.match(r"\s*---[\r\n]+(.*?)[\r\n]*---(\r?\n|$)", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def card_errors(text: str) -> list[str]:
    """Return what the Hub would refuse in a README.md: a few of its rules."""
    try:
        card = front_matter(text) or {}
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if not isinstance(card, dict):
        return ["metadata must be a mapping"]
    errors = [
        f'"{key}" {rule}, it is "{value}"'
        for key, good, rule in _CARD_RULES
        for value in as_list(card.get(key))
        if not re.fullmatch(good, str(value))
    ]
    try:
        for model in as_list(card.get("model-index")):
            for result in model["name"] and model["results"]:
                kinds = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
                if not all(kinds) or not all("value" in metric and metric["type"] for metric in result["metrics"]):
                    raise KeyError("type")
    except (KeyError, TypeError) as error:
        errors.append(f'"model-index" is not valid: {error!r}')
    return errors


def as_list(value: Any) -> list[Any]:
    """Return a YAML value that may be absent, one or many as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def card_tags(card: dict[str, Any]) -> list[str]:
    """Return the tags a repo has by its card."""
    tags = [str(tag) for tag in as_list(card.get("tags"))]
    for key in ("license", "language", "task_categories", "size_categories", "base_model", "datasets"):
        tags += [f"{key.replace('datasets', 'dataset')}:{value}" for value in as_list(card.get(key))]
    return tags
