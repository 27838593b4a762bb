"""The curves of a training as a picture."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CURVES = "training_curves.png"
"""File in the model folder."""
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}
_LINES = {
    "loss": ("loss", "#d9480f", "training"),
    "eval_loss": ("loss", "#1971c2", "held out"),
    "recall_at_1": ("rank", "#d9480f", "recall@1"),
    "mrr": ("rank", "#f08c00", "MRR"),
    "eval_recall_at_1": ("rank", "#1971c2", "recall@1, held out"),
    "positive_similarity": ("similarity", "#2b8a3e", "positive"),
    "hard_negative_similarity": ("similarity", "#d9480f", "hard negatives"),
    "negative_similarity": ("similarity", "#6b7a90", "all negatives"),
    "tokens_per_s": ("speed", "#6b7a90", "useful tokens/s"),
}
_TITLES = {
    "loss": "InfoNCE loss",
    "rank": "Rank of the positive in its batch",
    "similarity": "Mean cosine similarity of a query to its ...",
    "speed": "Speed",
}


def training_curves(log_history: list[dict[str, Any]]) -> bytes:
    """Return losses, ranks, similarities and speed over the steps, as PNG bytes that are the same for the same numbers.

    Args:
        log_history: the logs of a training, as in `TrainerState`; what is missing in them is left out.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 6), layout="constrained")
        panels: dict[str, Axes] = dict(zip(_TITLES, figure.subplots(2, 2).flat, strict=True))
        for name, (panel, color, label) in _LINES.items():
            points = [(log["step"], log[name]) for log in log_history if name in log and "step" in log]
            if points:
                # a line through few points hides how few they are
                marker = "o" if len(points) <= 60 else None
                panels[panel].plot(*zip(*points, strict=True), color=color, label=label, marker=marker, markersize=3)
        for panel, title in _TITLES.items():
            panels[panel].set(title=title, xlabel="step")
            if not panels[panel].has_data():  # fewer steps than one log takes
                continue
            panels[panel].legend(frameon=False, fontsize=9)
            if panel != "similarity":
                panels[panel].set_ylim(0, 1.02 if panel == "rank" else 1.15 * panels[panel].dataLim.y1)
        return png(figure)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
