"""Plots of the dataset card: PNG files that are the same, byte for byte, for the same numbers and matplotlib version.

They are drawn for a page 800 pixels wide, at twice its resolution, on a white ground, so that a dark page shows them as
they are. No pyplot: a `Figure` of its own leaves no state behind and draws without a display.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median_low
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, NullLocator, StrMethodFormatter

from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES
from dataset_builder.schema import SUBGROUPS, TEXT_COLUMNS, Subgroup

COLORS = {"query": "#0072b2", "positive": "#009e73", "negative": "#d55e00"}
SCRIPTS: dict[str, tuple[str, str]] = {
    "Latin": ("#0072b2", "Latn"),
    "Cyrillic": ("#d55e00", "Cyrl"),
    "Arabic": ("#009e73", "Arab"),
    "Chinese, Japanese, Korean": ("#cc79a7", "Hans Jpan Kore"),
    "South Asian": ("#e69f00", "Beng Deva Gujr Guru Knda Mlym Orya Sinh Taml Telu"),
    "Southeast Asian": ("#56b4e9", "Khmr Laoo Mymr Thai"),
    "other": ("#7f8790", "Armn Ethi Geor Grek Hebr"),
}
"""Families of scripts: their colour, of Okabe and Ito's palette that the colour-blind can tell apart, and ISO 15924 codes."""
_FAMILIES = {script: family for family, (_, scripts) in SCRIPTS.items() for script in scripts.split()}
_INK, _MUTED, _GRID = "#212529", "#5c6570", "#dde1e6"
_WIDTH_INCHES, _DPI = 8.0, 200
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.labelcolor": _MUTED,
    "xtick.labelsize": 8,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": _MUTED,
}
_ROWS_PER_COLUMN, _MAX_COLUMNS = 14, 3
_LOG_FROM = 50.0
"""Ratio of the largest to the smallest count from which on the bars of a linear scale would vanish."""
_ROOM_FOR_NUMBER = {1: 0.1, 2: 0.18, 3: 0.3}
"""Share of a column's width that is kept free for the numbers at the bars, by the number of columns."""


def plot_languages(counts: Mapping[str, int], path: Path) -> None:
    """Draw how many examples have a text in each language, the most frequent first, in up to three columns.

    Args:
        counts: number of examples by BCP-47 code; languages without any are left out.
        path: the PNG file to write.

    Raises:
        InputError: if there is nothing to draw.
    """
    ranked = sorted(((n, code) for code, n in counts.items() if n), key=lambda row: (-row[0], LANGUAGES[row[1]].name))
    if not ranked:
        raise InputError("`counts` has no language with an example; a plot needs at least one: leave it out.")
    num_columns = min(_MAX_COLUMNS, math.ceil(len(ranked) / _ROWS_PER_COLUMN))
    num_rows = math.ceil(len(ranked) / num_columns)
    families = [name for name in SCRIPTS if any(_FAMILIES[LANGUAGES[code].script] == name for _, code in ranked)]
    is_log = ranked[0][0] / ranked[-1][0] >= _LOG_FROM
    height = 0.5 + 0.2 * num_rows + 0.25 * (2 * is_log + (len(families) > 1))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, layout="constrained")
        colors = {name: SCRIPTS[name][0] for name in families if len(families) > 1}
        _legend(figure, f"Examples by language{' and script' if colors else ''}", colors)
        for number, axes in enumerate(figure.subplots(1, num_columns, squeeze=False)[0]):
            axes.set_ylim(num_rows - 0.4, -0.6)
            _scale(axes, ranked[-1][0], ranked[0][0], _ROOM_FOR_NUMBER[num_columns], is_log=is_log)
            _language_column(axes, ranked[number * num_rows : (number + 1) * num_rows], is_log=is_log)
        if is_log:
            figure.supxlabel("examples, on a logarithmic scale", fontsize=8, color=_MUTED)
        _save(figure, path)


def _legend(figure: Figure, title: str, colors: dict[str, str]) -> None:
    """Put the title at the top left, with what the colours mean below it."""
    figure.legend(
        handles=[Patch(color=color, label=name) for name, color in colors.items()],
        title=title,
        title_fontproperties={"weight": "bold", "size": 10},
        alignment="left",
        loc="outside upper left",
        ncols=max(1, len(colors)),
        handlelength=0.8,
        columnspacing=1.2,
    )


def _scale(axes: Axes, smallest: int, largest: int, room: float, *, is_log: bool) -> None:
    """Set the horizontal axis so that the largest count leaves `room`, a share of the width, at its right."""
    if not is_log:  # the numbers at the bars say it all
        axes.set_xlim(0, largest / (1 - room))
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return
    left = smallest / 4
    axes.set(xscale="log", xlim=(left, left * (largest / left) ** (1 / (1 - room))))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())


def _language_column(axes: Axes, rows: list[tuple[int, str]], *, is_log: bool) -> None:
    places = list(range(len(rows)))
    numbers = [n for n, _ in rows]
    colors = [SCRIPTS[_FAMILIES[LANGUAGES[code].script]][0] for _, code in rows]
    if is_log:  # dots: the length of a bar means nothing where there is no zero
        axes.hlines(places, axes.get_xlim()[0], numbers, colors=colors, linewidth=1.2, alpha=0.35)
        axes.scatter(numbers, places, s=22, c=colors, zorder=3)
    else:
        axes.barh(places, numbers, 0.7, color=colors)
    for place, number in zip(places, numbers, strict=True):
        axes.annotate(
            f"{number:,}",
            (number, place),
            (5, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=8,
            color=_MUTED,
        )
    axes.set_yticks(places, [LANGUAGES[code].name for _, code in rows])


def plot_lengths(lengths: Mapping[Subgroup, Mapping[str, Counter[int]]], path: Path) -> None:
    """Draw how long the texts are: for each subgroup a distribution per column over words on a logarithmic scale.

    Heights are shares of the column's texts by factor of length, scaled in each distribution to its peak; so forms can
    be compared, and areas not. The line and the number at the right are the median.

    Args:
        lengths: by subgroup and column (query, positive, negative), how many texts have how many words.
        path: the PNG file to write.

    Raises:
        InputError: if there is nothing to draw.
    """
    shown: list[Subgroup] = [
        name for name in SUBGROUPS if any(counter.total() for counter in lengths.get(name, {}).values())
    ]
    if not shown:
        raise InputError("`lengths` has no text; a plot needs at least one: leave it out.")
    longest = max(max(counter, default=1) for name in shown for counter in lengths[name].values())
    num_columns = min(2, len(shown))
    num_rows = math.ceil(len(shown) / num_columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_INCHES, 0.6 + 1.35 * num_rows), dpi=_DPI, layout="constrained")
        _legend(figure, "Words in a text, by subgroup and column", {})
        figure.supxlabel("words, on a logarithmic scale; the line is the median", fontsize=8, color=_MUTED)
        grid = figure.subplots(num_rows, num_columns, squeeze=False, gridspec_kw={"wspace": 0.06})
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        for subgroup, axes in zip(shown, grid.flat, strict=False):
            axes.set(xscale="log", xlim=(0.7, 1.4 * max(10, longest)), ylim=(len(TEXT_COLUMNS) - 0.95, -1.0))
            _distributions(axes, subgroup, lengths[subgroup])
        _save(figure, path)


def _distributions(axes: Axes, subgroup: Subgroup, by_column: Mapping[str, Counter[int]]) -> None:
    axes.spines["bottom"].set_visible(False)
    axes.set_title(subgroup, loc="left", fontsize=9, fontweight="bold")
    _at_right(axes, "median", -1.0, 9.5, _MUTED)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x")
    axes.set_yticks([place - 0.35 for place in range(len(TEXT_COLUMNS))], TEXT_COLUMNS)
    for place, column in enumerate(TEXT_COLUMNS):
        counter = by_column.get(column, Counter())
        axes.axhline(place, color=_GRID, linewidth=0.8)
        median = f"{_ridge(axes, counter, place, COLORS[column]):,}" if counter.total() else "–"
        _at_right(axes, median, place - 0.35, 0, _INK)


def _at_right(axes: Axes, text: str, y: float, up_points: float, color: str) -> None:
    where: tuple[Any, Any] = ("axes fraction", "data")
    axes.annotate(
        text,
        (1, y),
        (28, up_points),
        xycoords=where,
        textcoords="offset points",
        ha="right",
        va="center_baseline",
        fontsize=8,
        color=color,
    )


def _ridge(axes: Axes, counter: Counter[int], place: int, color: str) -> int:
    """Draw one distribution on the base line `place`, 0.8 high at its peak, and return its median."""
    edges = _edges(max(counter), counter.total())
    heights = [0.0] * (len(edges) - 1)
    for length, count in counter.items():
        number = bisect(edges, max(1, length)) - 1  # a text without any word counts as one word
        heights[number] += count / math.log(edges[number + 1] / edges[number])
    tops = [place - 0.8 * height / max(heights) for height in heights]
    axes.stairs(tops, edges, baseline=place, fill=True, color=color, alpha=0.8, linewidth=0)
    median = median_low(counter.elements())
    axes.vlines(median, place - 0.8, place, color=_INK, linewidth=1.2)
    return median


def _edges(longest: int, num_texts: int) -> list[float]:
    """Edges of bins between whole numbers, each wider by a factor than the one before: finer for more texts."""
    factor = 1.35 if num_texts < 300 else 1.2 if num_texts < 3000 else 1.12
    edges = [0.5]
    while edges[-1] < longest:
        edges.append(max(edges[-1] + 1, math.floor(edges[-1] * factor) + 0.5))
    return edges


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})
