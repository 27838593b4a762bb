"""Published scores of well-known models on the judged tasks, from mteb's results repository, as far as it can be reached."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mteb.cache import ResultCache
from mteb.results import BenchmarkResults

from dataset_builder.errors import InputError

PUBLISHED = "published.json"
"""File in the run folder: the scores, or why there are none."""
WELL_KNOWN = (
    "intfloat/e5-mistral-7b-instruct",
    "Qwen/Qwen3-Embedding-8B",
    "Qwen/Qwen3-Embedding-0.6B",
    "BAAI/bge-m3",
    "intfloat/multilingual-e5-large",
    "sentence-transformers/all-MiniLM-L6-v2",
)


def fetch_published(run_dir: Path, models: Sequence[str], tasks: Mapping[str, Sequence[str]]) -> str:
    """Write `published.json` and return a sentence on what is in it.

    mteb's own `ResultCache` is asked: a clone of the results repository in mteb's cache folder (`MTEB_CACHE`) first, else
    the file of all main scores that mteb's leaderboard downloads. A score counts if it is of the very same subsets.

    Args:
        run_dir: the run folder.
        models: names of models.
        tasks: the subsets that were judged, by the name of the task.
    """
    found: dict[str, Any] = {"models": {}, "why": None}
    try:
        for model, task, revision, by_subset in _results(models, list(tasks)):
            wanted = set(tasks[task])
            if wanted <= by_subset.keys():
                score = sum(by_subset[name] for name in wanted) / len(wanted)
                entry = found["models"].setdefault(model, {"revision": revision, "scores": {}})
                entry["scores"][task] = score
    except Exception as error:  # whatever the network, git and mteb raise: a report without them is still a report
        what = "reached" if isinstance(error, OSError) else "read"
        found["why"] = f"mteb's results repository could not be {what} ({type(error).__name__})"
    if not found["models"] and not found["why"]:
        found["why"] = "mteb's results repository has none of these models on the judged tasks"
    (run_dir / PUBLISHED).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if found["why"]:
        return f"no published scores beside ours: {found['why']}"
    num = len(found["models"])
    return f"published scores of {num} model{'s' if num > 1 else ''} on the judged tasks"


def _results(models: Sequence[str], tasks: Sequence[str]) -> list[tuple[str, str, str, dict[str, float]]]:
    """Return (model, task, revision, score by subset), the mean over splits, of what mteb knows."""
    logging.getLogger("mteb").setLevel(logging.CRITICAL)
    cache = ResultCache()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if cache.has_remote:
            found = cache.load_results(models=list(models), tasks=list(tasks), require_model_meta=False)
        else:
            path = cache.cache_path / "leaderboard" / "__cached_results.json"
            if not path.is_file():  # mteb has no public call for this download, which is small beside a clone
                cache._download_cached_results_from_branch(output_path=path, timeout=20)
            found = BenchmarkResults.from_disk(path)
    return [
        (str(result.model_name), task.task_name, str(result.model_revision), _by_subset(task.scores))
        for result in found.model_results
        if result.model_name in models
        for task in result.task_results
        if task.task_name in tasks
    ]


def _by_subset(scores: Mapping[Any, Any]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for split in scores.values():
        for score in split:
            values.setdefault(score["hf_subset"], []).append(float(score["main_score"]))
    return {name: sum(found) / len(found) for name, found in values.items()}


def read_published(run_dir: Path) -> dict[str, Any]:
    """Return what `fetch_published` wrote: `models` and `why`.

    Raises:
        InputError: if the file cannot be read.
    """
    path = run_dir / PUBLISHED
    if not path.is_file():
        return {"models": {}, "why": "they were not asked for"}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"models": dict(found["models"]), "why": found["why"]}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} cannot be read; remove it and run `embedsmith evaluate` again.") from None
