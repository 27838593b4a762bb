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
TOLD = "instructions.jsonl"
"""File beside the results of an instruction model: what it was told of each task."""
NEIGHBOURS = "neighbours.jsonl"
"""File beside a model's results: a few queries with their nearest documents."""


@dataclass(frozen=True)
class Score:
    """One line of the table: a task, or one subset of it, with the main score of every model by its key.

    `num_queries` is the number of held-out examples behind it, None for mteb's own tasks. A model that was not judged on
    the task has no value. `dataset` is the Hub id of the data, `revision` their state.
    """

    task: str
    subset: str | None
    type: str
    metric: str
    held_out: bool
    num_queries: int | None
    languages: tuple[str, ...]
    dataset: str
    revision: str | None
    values: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What was judged: models (key, label, name, revision), scores, and the neighbours of a few queries by key."""

    dataset_revision: str | None
    num_training_examples: int
    mteb: str
    models: list[dict[str, Any]]
    scores: list[Score]
    usage: dict[str, str]
    neighbours: dict[str, list[dict[str, Any]]]

    def of(self, *, held_out: bool) -> list[Score]:
        """Return the lines of our held-out tasks, or those of mteb's own."""
        return [score for score in self.scores if score.held_out == held_out]

    def models_of(self, *, held_out: bool) -> list[dict[str, Any]]:
        """Return the models that have a score in these lines."""
        keys = {key for score in self.of(held_out=held_out) for key in score.values}
        return [model for model in self.models if model["key"] in keys]


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return models and tasks as `embedsmith evaluate` named them; empty if there is no readable file."""
    try:
        found = json.loads((run_dir / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
    scores = [score for task in summary["tasks"] for score in _scores(task, folders)]
    neighbours = {key: read_neighbours(folder) for key, folder in folders.items()}
    return Evaluation(
        dataset_revision=summary["dataset_revision"],
        num_training_examples=summary["num_training_examples"],
        mteb=summary["mteb"],
        models=summary["models"],
        scores=scores,
        usage=summary["usage"],
        neighbours={key: found for key, found in neighbours.items() if found},
    )


def _scores(task: dict[str, Any], folders: dict[str, Path]) -> list[Score]:
    """Return the line of a task and, where it has several, those of its subsets."""
    found = {key: _result(folder / f"{task['name']}.json") for key, folder in folders.items()}
    results = {key: result for key, result in found.items() if result is not None}
    if "trained" not in results:
        raise InputError(
            f"The result of the trained model on {task['name']} is missing in {folders['trained']}; run `embedsmith "
            "evaluate` again."
        )
    count: dict[str, int] = task.get("num_queries", {})
    total = sum(count.values()) if task["held_out"] else None
    shared: dict[str, Any] = {"type": task["type"], "metric": task["main_score"], "held_out": task["held_out"]}
    shared |= {"dataset": task["dataset"], "revision": task["revision"]}
    values = {key: float(result.get_score()) for key, result in results.items()}
    languages = results["trained"].languages
    lines = [Score(task["name"], None, num_queries=total, languages=tuple(languages), values=values, **shared)]
    subsets = {key: _by_subset(result) for key, result in results.items()}
    names = list(subsets["trained"])
    for name in names if len(names) > 1 else []:
        values = {key: by_name[name][0] for key, by_name in subsets.items() if name in by_name}
        languages = subsets["trained"][name][1]
        lines.append(
            Score(task["name"], name, num_queries=count.get(name), languages=tuple(languages), values=values, **shared)
        )
    return lines


def _by_subset(result: TaskResult) -> dict[str, tuple[float, list[str]]]:
    """Return the mean of the main score over the splits, and the languages, by subset."""
    found: dict[str, list[tuple[float, list[str]]]] = {}
    for split in result.scores.values():
        for score in split:
            languages = sorted({code.split("-")[0] for code in score["languages"]})
            found.setdefault(score["hf_subset"], []).append((float(score["main_score"]), languages))
    return {name: (sum(value for value, _ in rows) / len(rows), rows[0][1]) for name, rows in found.items()}


def results_folder(run_dir: Path, name: str, revision: str) -> Path:
    """Return the folder of a model's results, as mteb's `ResultCache` lays it out."""
    return ResultCache(run_dir).get_task_result_path("any", name, revision).parent


def _result(path: Path) -> TaskResult | None:
    return TaskResult.from_disk(path) if path.is_file() else None


def read_told(folder: Path) -> dict[str, str]:
    """Return the instruction of each task that a model was judged on with one of ours."""
    try:
        rows = map(json.loads, (folder / TOLD).read_text(encoding="utf-8").splitlines())
        return {row["task"]: row["instruction"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_neighbours(folder: Path) -> list[dict[str, Any]]:
    """Return the neighbours beside a model's results; none if there are none."""
    path = folder / NEIGHBOURS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
