"""Reads what `embedsmith evaluate` left in the run folder; every score is taken from mteb's own JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mteb.cache import ResultCache
from mteb.results import TaskResult

from dataset_builder.errors import InputError

EVALUATION = "evaluation.json"
"""File in the run folder that names the judged models and tasks."""


@dataclass(frozen=True)
class Score:
    """One line of the table: a task, or one subset of it, with the main score of every model by its key.

    `num_queries` is the number of held-out examples behind it.
    """

    task: str
    subset: str | None
    metric: str
    num_queries: int
    values: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What was judged: models (key, label, name, revision), scores, and the neighbours of a few queries by key."""

    dataset_revision: str
    num_training_examples: int
    models: list[dict[str, Any]]
    scores: list[Score]
    neighbours: dict[str, list[dict[str, Any]]]


def read_evaluation(run_dir: Path) -> Evaluation:
    """Read models, scores and neighbours of a run.

    Raises:
        InputError: if nothing was evaluated, or a result is missing.
    """
    path = run_dir / EVALUATION
    if not path.is_file():
        raise InputError(f"There are no results in {run_dir}; run `embedsmith evaluate` first.")
    try:
        return _read(run_dir, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The results in {run_dir} cannot be read ({type(error).__name__}: {error}); run `embedsmith evaluate` again."
        ) from None


def revision_of_result(path: Path) -> str | None:
    """Return the state of the data that a result file of mteb is about; None if there is no readable one."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["dataset_revision"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(run_dir: Path, summary: dict[str, Any]) -> Evaluation:
    folders = {m["key"]: results_folder(run_dir, m["name"], m["revision"]) for m in summary["models"]}
    scores: list[Score] = []
    for task in summary["tasks"]:
        results = {key: _result(folder / f"{task['name']}.json") for key, folder in folders.items()}
        subsets = {key: {s["hf_subset"]: s["main_score"] for s in r.scores["test"]} for key, r in results.items()}
        totals = {key: float(result.get_score()) for key, result in results.items()}
        count = task["num_queries"]
        scores.append(Score(task["name"], None, task["main_score"], sum(count.values()), totals))
        names = next(iter(subsets.values()))
        if len(names) > 1:
            for name in names:
                values = {key: float(subset[name]) for key, subset in subsets.items()}
                scores.append(Score(task["name"], name, task["main_score"], count[name], values))
    neighbours = {key: _lines(folder / "neighbours.jsonl") for key, folder in folders.items()}
    return Evaluation(
        dataset_revision=summary["dataset_revision"],
        num_training_examples=summary["num_training_examples"],
        models=summary["models"],
        scores=scores,
        neighbours={key: found for key, found in neighbours.items() if found},
    )


def results_folder(run_dir: Path, name: str, revision: str) -> Path:
    """Return the folder of a model's results, as mteb's `ResultCache` lays it out."""
    return ResultCache(run_dir).get_task_result_path("any", name, revision).parent


def _result(path: Path) -> TaskResult:
    if not path.is_file():
        raise InputError(f"The result {path} is missing; run `embedsmith evaluate` again.")
    return TaskResult.from_disk(path)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
