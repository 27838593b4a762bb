"""Scores by task type and by language, with bootstrap confidence intervals over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model_card.scores import Evaluation, Score

NUM_RESAMPLES = 2000
LEVEL = 95
"""Confidence level in percent."""
MIN_TASKS = 5
"""Tasks below which a bootstrap tells nothing of their spread."""


@dataclass(frozen=True)
class Mean:
    """A mean over tasks, with the ends of its confidence interval; None for fewer than `MIN_TASKS`."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Take the mean of `values` and resample them (bootstrap, percentile interval); the seed is fixed."""
        array = np.asarray(values, dtype=np.float64)
        if len(array) < MIN_TASKS:
            return cls(float(array.mean()), None, None)
        draws = np.random.default_rng(0).integers(0, len(array), (NUM_RESAMPLES, len(array)))
        # (resamples,)
        means = array[draws].mean(axis=1)
        tail = (100 - LEVEL) / 2
        low, high = np.percentile(means, [tail, 100 - tail])
        return cls(float(array.mean()), float(low), float(high))


@dataclass(frozen=True)
class Group:
    """One line of a summary: the tasks of a type or language, with the mean of each model that was judged on all of them.

    `gain` is the mean over tasks of the trained model's score minus that of the untrained one with EOS pooling; its
    interval resamples tasks, so the two scores of a task stay together.
    """

    name: str
    num_tasks: int
    means: dict[str, Mean]
    gain: Mean | None


def by_type(evaluation: Evaluation) -> list[Group]:
    """Return a group for each type of mteb's own tasks, then 'all tasks', if there are several types."""
    scores = [score for score in evaluation.of(held_out=False) if score.subset is None]
    names = sorted({score.type for score in scores})
    groups = [_group(name, [score for score in scores if score.type == name]) for name in names]
    return [*groups, _group("all tasks", scores)] if len(names) > 1 else groups


def by_language(evaluation: Evaluation) -> list[Group]:
    """Return a group for each language of mteb's own tasks, the one with most tasks first.

    A task with subsets counts for a language by the mean of its subsets in that language.
    """
    scores = evaluation.of(held_out=False)
    with_subsets = {score.task for score in scores if score.subset is not None}
    lines = [score for score in scores if score.subset is not None or score.task not in with_subsets]
    groups = []
    for language in sorted({language for score in lines for language in score.languages}):
        tasks: dict[str, list[Score]] = {}
        for score in lines:
            if language in score.languages:
                tasks.setdefault(score.task, []).append(score)
        groups.append(_group(language, [_merged(same) for same in tasks.values()]))
    return sorted(groups, key=lambda group: (-group.num_tasks, group.name))


def _merged(scores: Sequence[Score]) -> Score:
    keys = set.intersection(*(set(score.values) for score in scores))
    values = {key: float(np.mean([score.values[key] for score in scores])) for key in sorted(keys)}
    return replace(scores[0], subset=None, values=values)


def _group(name: str, scores: Sequence[Score]) -> Group:
    keys = set.intersection(*(set(score.values) for score in scores))
    means = {key: Mean.of([score.values[key] for score in scores]) for key in keys}
    gain = None
    if {"trained", "base_eos"} <= keys:
        gain = Mean.of([score.values["trained"] - score.values["base_eos"] for score in scores])
    return Group(name, len(scores), means, gain)
