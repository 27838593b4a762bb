"""Plots of the report, as PNG bytes that are the same for the same numbers."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from model_card.scores import Evaluation
from trainer.curves import STYLE, png

COLORS = {"base": "#b0b7c3", "base_eos": "#6b7a90", "trained": "#d9480f"}


def score_bars(evaluation: Evaluation) -> bytes:
    """Return the main scores of all models side by side, one group a task or subset."""
    shown = [
        s for s in evaluation.scores if s.subset or not any(o.subset and o.task == s.task for o in evaluation.scores)
    ]
    height = 0.8 / len(evaluation.models)
    style: dict[Any, Any] = {**STYLE, "axes.grid.axis": "x"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 0.9 + 0.62 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for number, model in enumerate(evaluation.models):
            positions = [i + height * number for i in range(len(shown))]
            values = [score.values[model["key"]] for score in shown]
            bars = axes.barh(positions, values, height * 0.9, color=COLORS[model["key"]], label=model["label"])
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        labels = [f"{(s.subset or s.task.removeprefix('HeldOut'))}\n{s.metric}" for s in shown]
        axes.set_yticks([i + height * (len(evaluation.models) - 1) / 2 for i in range(len(shown))], labels, fontsize=9)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        lowest = min(v for s in shown for v in s.values.values())
        axes.set_xlim(lowest - 0.15 if lowest < 0 else 0, 1.08)  # room for the numbers at the bars
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return png(figure)
