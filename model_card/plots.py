"""Plots of the report, as PNG bytes that are the same for the same numbers."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from model_card.scores import Evaluation

COLORS = {"base": "#b0b7c3", "base_eos": "#6b7a90", "trained": "#d9480f"}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def training_curves(log_history: list[dict[str, Any]]) -> bytes:
    """Return loss and recall@1 in the batch, and the similarities, over the steps."""
    steps = [log["step"] for log in log_history]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3), layout="constrained")
        loss, similarity = figure.subplots(1, 2)
        loss.plot(steps, [log["loss"] for log in log_history], color=COLORS["trained"], marker="o", markersize=3)
        loss.set(xlabel="step", ylabel="InfoNCE loss", title="Loss")
        loss.set_ylim(bottom=0)
        for name, color, label in (
            ("positive_similarity", "#2b8a3e", "positive"),
            ("negative_similarity", "#6b7a90", "negatives, mean"),
        ):
            similarity.plot(
                steps, [log[name] for log in log_history], color=color, marker="o", markersize=3, label=label
            )
        similarity.plot(
            steps,
            [log["recall_at_1"] for log in log_history],
            color="#1971c2",
            linestyle="--",
            label="recall@1 in batch",
        )
        similarity.set(xlabel="step", ylabel="cosine similarity, recall", title="In the batch", ylim=(None, 1.02))
        similarity.legend(frameon=False, fontsize=9)
        return _png(figure)


def score_bars(evaluation: Evaluation) -> bytes:
    """Return the main scores of all models side by side, one group a task or subset."""
    shown = [
        s for s in evaluation.scores if s.subset or not any(o.subset and o.task == s.task for o in evaluation.scores)
    ]
    height = 0.8 / len(evaluation.models)
    style: dict[Any, Any] = {**_STYLE, "axes.grid.axis": "x"}
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
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
