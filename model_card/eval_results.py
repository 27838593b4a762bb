"""Scores for machines: `.eval_results/*.yaml`, which the Hub reads, and `model-index`, which older tools read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from mteb.results import TaskResult

from model_card.scores import Evaluation, Score, results_folder

EVAL_RESULTS = ".eval_results"
MTEB_URL = "https://github.com/embeddings-benchmark/mteb/"
_HELD_OUT_TYPES = {"HeldOutRetrieval": "retrieval", "HeldOutSTS": "sts", "HeldOutBitextMining": "bitext-mining"}


def eval_results_files(run_dir: Path, evaluation: Evaluation) -> dict[str, str]:
    """Return the YAML of each of mteb's own tasks by its file name, as `ModelMeta.push_eval_results` of mteb writes it.

    Scores are in percent, one entry for each split and subset and one for the whole task.
    """
    model = next(m for m in evaluation.models if m["key"] == "trained")
    folder = results_folder(run_dir, model["name"], model["revision"])
    tasks = [score.task for score in evaluation.of(held_out=False) if score.subset is None]
    return {f"{name}.yaml": _yaml(TaskResult.from_disk(folder / f"{name}.json")) for name in tasks}


def _yaml(result: TaskResult) -> str:
    metadata: Any = result.task.metadata
    date = result.date.date() if isinstance(result.date, datetime) else None
    shared: dict[str, Any] = {
        "dataset_id": metadata.dataset["path"],
        "dataset_revision": result.dataset_revision,
        "date": date.isoformat() if date else None,
        "source_url": MTEB_URL,
        "source_name": f"mteb {result.mteb_version}",
        "notes": f"mteb {result.mteb_version}, main score: {metadata.main_score}",
    }
    rows = [(f"{result.task_name}_{s['hf_subset']}_{split}", s) for split, rows in result.scores.items() for s in rows]
    entries = [EvalResultEntry(task_id=id_, value=_percent(s["main_score"]), **shared) for id_, s in rows]
    if not result.get_missing_evaluations(result.task):
        entries.append(EvalResultEntry(task_id=result.task_name, value=_percent(result.get_score()), **shared))
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _percent(score: Any) -> float:
    return round(float(score) * 100, 5)


def model_index(evaluation: Evaluation) -> list[EvalResult]:
    """Return the trained model's scores as `model-index` has them, those of mteb's own tasks first."""
    return [_eval_result(score, evaluation) for score in evaluation.of(held_out=False) + evaluation.of(held_out=True)]


def _eval_result(score: Score, evaluation: Evaluation) -> EvalResult:
    held_out = score.held_out
    return EvalResult(
        task_type=_HELD_OUT_TYPES.get(score.task, "other") if held_out else score.type,
        dataset_type="held-out" if held_out else score.dataset,
        dataset_name=score.task if held_out else f"MTEB {score.task}",
        dataset_split="test" if held_out else None,
        dataset_config=score.subset,
        dataset_revision=score.revision,
        metric_type=score.metric,
        metric_value=round(score.values["trained"], 5),
    )
