"""Where model and scores come from: dataset, replies, recipe, base model, code, by digests and commits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from model_card.scores import Evaluation
from trainer.data import dataset_revision

PROVENANCE, RECIPE = "provenance.yaml", "recipe.json"


def training_data(run_dir: Path, record: dict[str, Any]) -> Path | None:
    """Return the run's dataset folder if it holds what the model was trained on, else None."""
    folder, data = run_dir / "dataset", record["dataset"]
    if data["is_hub_id"] or not folder.is_dir():
        return None
    return folder if dataset_revision(str(folder)) == data["revision"] else None


def read_provenance(folder: Path | None) -> dict[str, Any]:
    """Return what `embedsmith curate` wrote, beside the dataset folder, about the replies; empty if there is none."""
    try:
        found = yaml.safe_load((folder.parent / PROVENANCE).read_text(encoding="utf-8")) if folder else {}
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def read_recipe(folder: Path | None) -> dict[str, Any]:
    """Return the recipe of the dataset; empty if there is none."""
    try:
        found = json.loads((folder / RECIPE).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lineage(
    record: dict[str, Any], evaluation: Evaluation, folder: Path | None, dataset_name: str
) -> list[tuple[str, str]]:
    """Return name and value of each link of the chain, as markdown.

    Args:
        record: what `embedsmith train` wrote down.
        evaluation: what `embedsmith evaluate` found.
        folder: the dataset folder, if it is at hand.
        dataset_name: what the dataset is called.
    """
    base, data, provenance = record["base_model"], record["dataset"], read_provenance(folder)
    rows = []
    if provenance.get("journal_sha256"):
        rows.append(("replies of the LLM", f"journal whose replies have the SHA-256 `{provenance['journal_sha256']}`"))
    if folder and (folder / RECIPE).is_file():
        digest = hashlib.sha256((folder / RECIPE).read_bytes()).hexdigest()
        rows.append(("recipe of the dataset", f"`{RECIPE}` of the dataset, SHA-256 `{digest}`"))
    rows += [
        ("training data", f"{dataset_name}, {_state(data)}"),
        ("base model", f"{base['name']}, {_state(base)}"),
        ("settings of the training", "`embedsmith.json`"),
        *((f"judged: {model['label']}", f"{model['name']}, `{model['revision']}`") for model in evaluation.models),
        ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        ("judged with", f"mteb {evaluation.mteb}"),
    ]
    return rows


def _state(thing: dict[str, Any]) -> str:
    return f"{'commit' if thing['is_hub_id'] else 'files with the digest'} `{thing['revision']}`"


def contamination(recipe: dict[str, Any], tasks: list[str], *, is_known: bool) -> str:
    """Return the statement on overlaps of the training texts with the test sets that were judged on.

    Args:
        recipe: the recipe of the dataset.
        tasks: mteb's tasks that were judged on.
        is_known: whether the recipe is at hand.
    """
    if not is_known:
        return "Contamination: see the card of the training data."
    checked = recipe.get("contamination_tasks") or []
    if not checked:
        return (
            "Contamination: the training texts were written by an LLM and were not compared with any test set "
            "(`embedsmith curate --contamination_tasks` does that); the LLM may have read some of them."
        )
    unchecked = [task for task in tasks if task not in checked and not any("(" in name for name in checked)]
    rest = f" Not compared: {', '.join(unchecked)}." if unchecked else ""
    return (
        f"Contamination: every training text was compared with the test sets of {', '.join(checked)}, and left out if it "
        f"shared {recipe['contamination_ngram']} words in a row with one of them.{rest} The LLM that wrote the texts may "
        "have read test sets all the same."
    )
