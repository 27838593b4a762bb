"""Plots of the report, as PNG bytes that are the same for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from model_card.scores import Evaluation, Score
from model_card.summary import LEVEL, Group
from trainer.curves import STYLE, png

COLORS = {"base": "#9aa5b1", "base_eos": "#52606d", "trained": "#d9480f"}
REFERENCES = ("#1971c2", "#2b8a3e", "#862e9c", "#a07800", "#0b7285", "#c2255c")
_STYLE: dict[Any, Any] = {**STYLE, "axes.grid.axis": "x"}


def colors(models: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a colour for each model by its key; the states of ours always have the same."""
    others = [model["key"] for model in models if model["key"] not in COLORS]
    return COLORS | {key: REFERENCES[i % len(REFERENCES)] for i, key in enumerate(others)}


def score_bars(evaluation: Evaluation) -> bytes:
    """Return the held-out scores of all models side by side, one group a task or subset."""
    scores, models = evaluation.of(held_out=True), evaluation.models_of(held_out=True)
    shown = [s for s in scores if s.subset or not any(o.subset and o.task == s.task for o in scores)]
    height, palette = 0.8 / len(models), colors(evaluation.models)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 0.9 + 0.21 * len(shown) * len(models)), layout="constrained")
        axes = figure.subplots()
        for number, model in enumerate(models):
            rows = [
                (i + height * number, s.values[model["key"]]) for i, s in enumerate(shown) if model["key"] in s.values
            ]
            bars = axes.barh(
                [place for place, _ in rows],
                [value for _, value in rows],
                height * 0.9,
                color=palette[model["key"]],
                label=model["label"],
            )
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        labels = [f"{(s.subset or s.task.removeprefix('HeldOut'))}\n{s.metric}" for s in shown]
        axes.set_yticks([i + height * (len(models) - 1) / 2 for i in range(len(shown))], labels, fontsize=9)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        lowest = min(v for s in shown for v in s.values.values())
        axes.set_xlim(lowest - 0.15 if lowest < 0 else 0, 1.08)  # room for the numbers at the bars
        _legend(figure, axes)
        return png(figure)


def group_dots(groups: Sequence[Group], models: Sequence[Mapping[str, Any]], all_models: Sequence[Any]) -> bytes:
    """Return the means of all models by group, a dot each, with a line for the confidence interval."""
    palette, step = colors(all_models), 0.7 / max(len(models), 1)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 1.1 + len(groups) * (0.24 + 0.14 * len(models))), layout="constrained")
        axes = figure.subplots()
        for number, model in enumerate(models):
            rows = [(i + step * number, g.means[model["key"]]) for i, g in enumerate(groups) if model["key"] in g.means]
            color = palette[model["key"]]
            for place, mean in rows:
                if mean.low is not None and mean.high is not None:
                    axes.plot([mean.low, mean.high], [place, place], color=color, linewidth=2, alpha=0.45, zorder=2)
            places, values = [place for place, _ in rows], [mean.value for _, mean in rows]
            axes.scatter(values, places, s=42, color=color, label=model["label"], zorder=3)
        names = [f"{g.name}\n{g.num_tasks} task{'s' if g.num_tasks > 1 else ''}" for g in groups]
        axes.set_yticks([i + step * (len(models) - 1) / 2 for i in range(len(groups))], names, fontsize=9)
        axes.set_ylim(len(groups) - 0.15, -0.35)
        axes.set_xlabel(f"mean of main scores; lines: {LEVEL}% bootstrap interval over tasks", fontsize=9)
        _legend(figure, axes)
        return png(figure)


def task_arrows(scores: Sequence[Score]) -> bytes:
    """Return an arrow for each task from the untrained model with EOS pooling to the trained one, by size of the change."""
    pairs = [(s.values["base_eos"], s.values["trained"], s) for s in scores if "base_eos" in s.values]
    pairs.sort(key=lambda pair: pair[0] - pair[1])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 1.2 + 0.3 * len(pairs)), layout="constrained")
        axes = figure.subplots()
        for place, (before, after, score) in enumerate(pairs):
            color = "#2b8a3e" if after >= before else "#c92a2a"
            axes.annotate(
                "", (after, place), (before, place), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.8}
            )
            axes.scatter([before], [place], s=26, color=COLORS["base_eos"], zorder=3)
            if "base" in score.values:
                axes.scatter([score.values["base"]], [place], s=34, marker="|", color="black", zorder=4)
            axes.annotate(
                f"{after - before:+.3f}",
                (max(before, after), place),
                (8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=color,
            )
        axes.set_yticks(range(len(pairs)), [score.task for *_, score in pairs], fontsize=9)
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        values = [value for before, after, s in pairs for value in (before, after, s.values.get("base", after))]
        axes.set_xlim(min(0.0, *values) - 0.02, max(values) + 0.12)
        axes.set_xlabel(
            "main score; dot: untrained, arrow: trained (both EOS pooling), bar: base as published", fontsize=9
        )
        return png(figure)


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
