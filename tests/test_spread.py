"""Rows dealt out to batches: which texts meet, and how near rows of a language stay."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from trainer.spread import Pairs, Rows, deal


def _pairs(texts: list[set[int]]) -> Pairs:
    pairs = [(row, text) for row, of_row in enumerate(texts) for text in sorted(of_row)]
    row, text = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Pairs(row, np.unique(text, return_inverse=True)[1])


def _batches(texts: list[set[int]], num_batches: int, seed: int, languages: Rows | None = None) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    order, edges = deal(len(texts), _pairs(texts), num_batches, rng, languages)
    assert sorted(order.tolist()) == list(range(len(texts)))
    sizes = np.diff(edges)
    assert len(sizes) == num_batches
    assert edges[0] == 0
    assert edges[-1] == len(texts)
    assert sizes.max() - sizes.min() <= 1
    return [order[start:end].tolist() for start, end in pairwise(edges)]


def _meetings(texts: list[set[int]], batches: list[list[int]]) -> int:
    """How often a text stands in a batch beyond what it must."""
    how_often = Counter(text for of_row in texts for text in of_row)
    counts = [Counter(text for row in batch for text in texts[row]) for batch in batches]
    return sum(max(0, n - -(-how_often[text] // len(batches))) for of in counts for text, n in of.items())


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("by_language", [False, True])
def test_one_text_of_others_in_a_row_never_meets_itself(seed: int, by_language: bool) -> None:
    """However often it occurs: at most ceil(rows / batches) times in a batch."""
    rng = random.Random(seed)
    num, num_texts = rng.randrange(1, 150), rng.randrange(1, 40)
    texts = [{int(rng.paretovariate(0.5)) % num_texts} if rng.random() < 0.9 else set[int]() for _ in range(num)]
    languages = np.array([[rng.randrange(4), rng.randrange(4)] for _ in range(num)]) if by_language else None
    assert _meetings(texts, _batches(texts, rng.randrange(1, num + 1), seed, languages)) == 0


@pytest.mark.parametrize("seed", range(20))
def test_what_recurs_in_every_batch_is_spread_to_the_row(seed: int) -> None:
    rng = random.Random(seed)
    texts = [{rng.randrange(3)} for _ in range(100)]
    counts = [Counter(text for row in batch for text in texts[row]) for batch in _batches(texts, 7, seed)]
    for text in range(3):
        of_text = [count[text] for count in counts]
        assert max(of_text) - min(of_text) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_several_texts_of_others_in_a_row(seed: int) -> None:
    """Ten batches of twelve rows with three texts of 120, where a way to part them is known to exist."""
    rng = random.Random(seed)
    planted = [rng.sample(range(120), 36) for _ in range(10)]
    texts = [set(of_batch[3 * i : 3 * i + 3]) for of_batch in planted for i in range(12)]
    order = rng.sample(range(len(texts)), len(texts))
    assert _meetings([texts[i] for i in order], _batches([texts[i] for i in order], 10, seed)) == 0


def test_what_cannot_be_parted_ends() -> None:
    """Three rows of which every two share a text, in two batches."""
    assert _meetings([{0, 1}, {1, 2}, {2, 0}], _batches([{0, 1}, {1, 2}, {2, 0}], 2, 0)) == 1


@pytest.mark.parametrize("seed", range(10))
def test_languages_stay_together(seed: int) -> None:
    """120 rows, 10 of each of 12 directions, in batches of 8: a batch has at most two targets, mostly one."""
    languages = np.array([[i % 4, i // 4 % 3] for i in range(120)])
    batches = _batches([set() for _ in range(120)], 15, seed, languages)
    assert all(len({languages[row, 1] for row in batch}) == 1 for batch in batches)  # 40 rows, 5 batches
    assert all(len({languages[row, 0] for row in batch}) <= 2 for batch in batches)  # 10 rows do not fill two batches


@pytest.mark.parametrize("seed", range(10))
def test_parting_texts_moves_few_rows_to_another_language(seed: int) -> None:
    """30 texts in four target languages each, and six rows that share a text within one language."""
    languages = np.array([[0, i % 4] for i in range(120)])
    texts = [{i // 4} for i in range(120)]
    for i in range(0, 24, 4):  # all of target 0
        texts[i] = {100}
    batches = _batches(texts, 15, seed, languages)
    assert _meetings(texts, batches) == 0
    strangers = sum(len(batch) - Counter(languages[batch, 1].tolist()).most_common(1)[0][1] for batch in batches)
    assert strangers <= 24  # eight at the borders of languages that fill no whole batches


def test_the_order_is_that_of_the_generator() -> None:
    texts = [{i % 5, 5 + i % 7} for i in range(60)]
    assert _batches(texts, 6, 1) == _batches(texts, 6, 1) != _batches(texts, 6, 2)
