"""Plots of the dataset card: files that are the same for the same numbers, whatever the numbers are."""

from __future__ import annotations

import math
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image

from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES
from dataset_builder.plots import SCRIPTS, plot_languages, plot_lengths
from dataset_builder.schema import SUBGROUPS, TEXT_COLUMNS, Subgroup

LENGTHS: dict[Subgroup, dict[str, Counter[int]]] = {
    subgroup: {column: Counter({8 * n: 30 - n for n in range(30)}) for column in TEXT_COLUMNS} for subgroup in SUBGROUPS
}
COUNTS: dict[str, dict[str, int]] = {
    "one": {"de": 192},
    "two far apart": {"en": 3000, "de": 1},
    "27 even": {code: 7 + number % 3 for number, code in enumerate(list(LANGUAGES)[::3][:27])},
    "93": {code: round(5000 * language.weight) for code, language in LANGUAGES.items()},
}


def chunks(path: Path) -> dict[str, bytes]:
    """Return the chunks of a PNG file by name, and check their sums; `IDAT` is the last one."""
    content, start, found = path.read_bytes(), 8, {}
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    while start < len(content):
        size, name = struct.unpack(">I4s", content[start : start + 8])
        body = content[start + 8 : start + 8 + size]
        assert zlib.crc32(name + body) == struct.unpack(">I", content[start + 8 + size : start + 12 + size])[0]
        found[name.decode()] = body
        start += 12 + size
    return found


def pixels(path: Path) -> Any:
    """Return the picture as an array of (height, width, 3), from 0 to 1."""
    return image.imread(path)[:, :, :3]


def has_color(picture: Any, color: str) -> bool:
    """Tell whether at least 20 pixels have a colour, given as `#rrggbb`."""
    wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return int(np.all(np.abs(picture - wanted) < 0.01, axis=2).sum()) >= 20


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_languages_are_drawn_for_a_page_of_800_pixels(counts: dict[str, int], tmp_path: Path) -> None:
    plot_languages(counts, tmp_path / "plot.png")
    height, width, _ = pixels(tmp_path / "plot.png").shape
    assert width == 1600  # twice 800
    assert 100 <= height <= 1600
    families = {name for name, (_, scripts) in SCRIPTS.items() for code in counts if LANGUAGES[code].script in scripts}
    picture = pixels(tmp_path / "plot.png")
    for name, (color, _) in SCRIPTS.items():
        if name != "other":  # grey, as the edges of letters are
            assert has_color(picture, color) == (name in families), name


def test_lengths_are_drawn_for_one_subgroup_and_for_all(tmp_path: Path) -> None:
    heights = []
    for number in (1, 2, 3, 6):
        plot_lengths({name: LENGTHS[name] for name in SUBGROUPS[:number]}, tmp_path / "plot.png")
        height, width, _ = pixels(tmp_path / "plot.png").shape
        assert width == 1600
        heights.append(height)
    assert heights[0] == heights[1] < heights[2] < heights[3] <= 1600


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    state = dict(mpl.rcParams)
    for number, order in enumerate((1, -1)):
        plot_languages(dict(list(COUNTS["93"].items())[::order]), tmp_path / f"languages{number}.png")
        plot_lengths(dict(list(LENGTHS.items())[::order]), tmp_path / f"lengths{number}.png")
    for name in ("languages", "lengths"):
        assert (tmp_path / f"{name}0.png").read_bytes() == (tmp_path / f"{name}1.png").read_bytes()
        assert set(chunks(tmp_path / f"{name}0.png")) == {"IHDR", "pHYs", "IDAT", "IEND"}  # no date, no software
    assert dict(mpl.rcParams) == state


def test_other_numbers_give_another_picture(tmp_path: Path) -> None:
    plot_languages({"de": 10, "en": 20}, tmp_path / "a.png")
    plot_languages({"de": 20, "en": 10}, tmp_path / "b.png")
    plot_languages({"de": 10, "en": 20, "fr": 0}, tmp_path / "c.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize(
    "columns",
    [
        {"query": Counter({1: 5}), "positive": Counter({1: 5})},
        {"query": Counter({0: 2, 3: 1}), "positive": Counter({40_000: 1}), "negative": Counter()},
        {"query": Counter({n: 10**6 // n for n in range(1, 900)})},
    ],
    ids=["no negatives, one word", "none and very many words", "many texts"],
)
def test_unusual_lengths_are_drawn(columns: dict[str, Counter[int]], tmp_path: Path) -> None:
    plot_lengths({"sts": columns, "bitext": {}}, tmp_path / "plot.png")
    picture = pixels(tmp_path / "plot.png")
    assert picture.shape[1] == 1600
    assert 0.8 < picture.mean() < 1
    assert not math.isnan(picture.mean())


def test_nothing_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`counts` has no language"):
        plot_languages({"de": 0}, tmp_path / "plot.png")
    with pytest.raises(InputError, match="`lengths` has no text"):
        plot_lengths({"sts": {"query": Counter()}}, tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())
