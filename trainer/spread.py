"""Deals rows out to batches so that no text stands twice in a batch, or as evenly as can be where it must.

Rows are dealt out in the order of their most frequent text, one to each batch in turn, which parts the rows of that text
exactly. Rows that meet by another of their texts are then swapped with rows of other batches. That takes time only
where such rows are, and its tries are limited: a row costs a few microseconds a try, and a group gets four tries a row.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.int64]]
"""Row numbers, text keys or counts, int64."""

_HARD = 1 << 30  # weight of a text that need not stand twice in a batch, against one that must
_ROUNDS = 8  # over the rows that still meet; a swap can make room for one that was not found before
_RANDOM_TRIES = 24
_ROOM_TRIES = 256  # in batches that lack the text, or one whole batch where that is more


class Pairs(NamedTuple):
    """Which row has which text: both (pairs,) int64, each pair once; rows and texts count from 0.

    They are sorted by row, and within a row by what is to be spread first: the query, the positive, the negatives.
    """

    row: Rows
    text: Rows


def deal(
    num_rows: int, pairs: Pairs, num_batches: int, rng: np.random.Generator, languages: Rows | None = None
) -> tuple[Rows, Rows]:
    """Return an order of rows and the edges of the batches in it, whose sizes differ by 1 at most.

    Where every row has at most one text that other rows have too, no text stands in a batch more often than
    ceil(its rows / batches); with `languages`, as long as the tries last. Where rows have several, it may, if there is no
    other way or none was found.

    Args:
        num_rows: rows to deal out, at least 1.
        pairs: texts of the rows; texts of one row only may be left out.
        num_batches: at most as many as rows.
        rng: source of the order.
        languages: (rows, 2) language of query and positive, as numbers, where rows with the same language of the positive,
            and then of the query, are to stay together.

    Returns:
        (rows,) and (batches + 1,) int64.
    """
    numbers = np.arange(num_batches + 1)
    edges = numbers * (num_rows // num_batches) + np.minimum(numbers, num_rows % num_batches)
    how_often = np.bincount(pairs.text)
    if languages is None:
        # those that must recur in a batch are alike in that, however often
        ranks = _frequent_texts(num_rows, pairs, np.minimum(how_often, num_batches + 1), rng)
    else:
        ranks = np.stack([shuffled_ranks(column, rng) for column in languages.T])
    order = np.lexsort([rng.permutation(num_rows), *ranks])
    if languages is None:  # one to each batch in turn
        order = order[np.argsort(np.arange(num_rows) % num_batches, kind="stable")]
    swaps = _Swaps(order, edges, pairs, how_often, is_sorted=languages is not None, seed=int(rng.integers(1 << 62)))
    order = swaps.part_equals()
    batch = np.repeat(np.arange(num_batches), np.diff(edges))
    return order[np.lexsort([rng.permutation(num_rows), batch])], edges


def shuffled_ranks(values: Rows, rng: np.random.Generator) -> Rows:
    """Return a random rank in place of each value, the same for equal values."""
    _, inverse = np.unique(values, return_inverse=True)
    return rng.permutation(int(inverse.max(initial=-1)) + 1)[inverse]


def _frequent_texts(num_rows: int, pairs: Pairs, how_often: Rows, rng: np.random.Generator) -> Rows:
    """Return random ranks of each row's second most and most frequent text, (2, rows)."""
    rank = rng.permutation(len(how_often))
    by_count = np.lexsort([-how_often[pairs.text], pairs.row])
    starts = np.searchsorted(pairs.row, np.arange(num_rows + 1))
    ranks = np.full((2, num_rows), len(how_often), dtype=np.int64)  # rows without such a text come last
    for i in range(2):
        has_one = np.diff(starts) > i
        ranks[1 - i, has_one] = rank[pairs.text[by_count[starts[:-1][has_one] + i]]]
    return ranks


class _Fast(NamedTuple):
    """The same memory as the arrays of `_Swaps`, whose single numbers are read and written at a third of the cost."""

    order: memoryview[int]
    batch_at: memoryview[int]
    place: memoryview[int]
    allowed: memoryview[int]
    text: memoryview[int]


class _Swaps:
    """Batches whose rows change places.

    Args:
        order: (rows,) the rows of the first batch, then those of the second, ...
        edges: (batches + 1,) where a batch begins in `order`.
        pairs: texts of the rows.
        how_often: (texts,) rows that have the text.
        is_sorted: whether a row is to be swapped with one that is near in `order`, if possible.
        seed: of the places that are looked at.
    """

    def __init__(self, order: Rows, edges: Rows, pairs: Pairs, how_often: Rows, *, is_sorted: bool, seed: int) -> None:
        self._pairs, self._edges, self._is_sorted = pairs, edges, is_sorted
        self._num_batches, self._num_texts = len(edges) - 1, len(how_often)
        # (texts,) how often each may stand in a batch
        self._allowed = -(-how_often // self._num_batches)
        self._random = random.Random(seed)
        self._tries = 2 * len(order) + 100_000
        self._order = order
        # (rows,) by place
        self._batch_at = np.repeat(np.arange(self._num_batches), np.diff(edges))
        # (rows,) by row
        self._place = np.empty_like(order)
        self._place[order] = np.arange(len(order))
        self._fast = _Fast(*(of.data for of in (order, self._batch_at, self._place, self._allowed, pairs.text)))

    def part_equals(self) -> Rows:
        """Swap rows as long as that helps; return their order."""
        for _ in range(_ROUNDS):
            crowded = self._count()
            if not crowded:
                break
            moves = 0
            for row in crowded:
                moves += self._move(row)
                if self._tries < 0:
                    return self._order
            if not moves:
                break
        return self._order

    def _count(self) -> list[int]:
        """Count the texts of each batch anew; return the rows that have one too often in theirs, the worst first."""
        code = self._batch_at[self._place[self._pairs.row]] * self._num_texts + self._pairs.text
        codes, inverse, counts = np.unique(code, return_inverse=True, return_counts=True)
        crowded = np.nonzero(counts[inverse] > self._allowed[self._pairs.text])[0]
        if not len(crowded):
            return []
        self._codes, self._counts, self._changed = codes.data, counts.data, dict[int, int]()
        self._starts = np.searchsorted(self._pairs.row, np.arange(len(self._order) + 1)).data
        self._by_text = np.argsort(self._pairs.text, kind="stable")
        self._text_starts = np.searchsorted(self._pairs.text[self._by_text], np.arange(self._num_texts + 1))
        hard_first = crowded[np.argsort(self._allowed[self._pairs.text[crowded]], kind="stable")]
        return list(dict.fromkeys(self._pairs.row[hard_first].tolist()))

    def _num(self, batch: int, text: int) -> int:
        """Return how often a text stands in a batch."""
        code = batch * self._num_texts + text
        changed = self._changed.get(code)
        if changed is not None:
            return changed
        place = bisect_left(self._codes, code)
        return self._counts[place] if place < len(self._codes) and self._codes[place] == code else 0

    def _texts(self, row: int) -> list[int]:
        return self._fast.text[self._starts[row] : self._starts[row + 1]].tolist()

    def _move(self, row: int) -> bool:
        """Swap a row away if its batch has one of its texts too often; return whether it was."""
        here, texts = self._fast.batch_at[self._fast.place[row]], self._texts(row)
        crowded = [text for text in texts if self._num(here, text) > self._fast.allowed[text]]
        if not crowded:  # an earlier swap has parted them
            return False
        worst = min(crowded, key=self._fast.allowed.__getitem__)
        sideways: tuple[int, list[int]] | None = None
        for place in self._places(here, worst):
            there = self._fast.batch_at[place]
            if there == here or self._num(there, worst) >= self._fast.allowed[worst]:
                continue
            self._tries -= 1
            theirs = self._texts(self._fast.order[place])
            change = self._change(texts, theirs, here, there)
            if change < 0:
                self._swap(row, place, texts, theirs)
                return True
            if sideways is None and change < _HARD // 2:
                sideways = place, theirs
        if sideways is None or self._fast.allowed[worst] > 1:
            return False
        self._swap(row, sideways[0], texts, sideways[1])  # no better, but elsewhere there may be a way on
        return True

    def _places(self, here: int, text: int) -> Iterator[int]:
        """Yield places to swap with: the nearest or random ones, then those of batches that have room for the text."""
        num = len(self._order)
        if self._is_sorted:
            before, behind = int(self._edges[here]) - 1, int(self._edges[here + 1])
            yield from (p for i in range(_RANDOM_TRIES) for p in (before - i, behind + i) if 0 <= p < num)
        else:
            yield from (self._random.randrange(num) for _ in range(_RANDOM_TRIES))
        rows = self._pairs.row[self._by_text[self._text_starts[text] : self._text_starts[text + 1]]]
        self._tries -= (len(rows) + self._num_batches) // 200  # what this costs
        there = np.bincount(self._batch_at[self._place[rows]], minlength=self._num_batches)
        room = np.nonzero(there < self._allowed[text])[0]
        away = np.abs(room - here) if self._is_sorted else (room - here) % self._num_batches
        places = (
            place
            for batch in room[np.argsort(away, kind="stable")].tolist()
            for place in range(self._edges[batch], self._edges[batch + 1])
        )
        yield from islice(places, max(_ROOM_TRIES, int(self._edges[1])))

    def _change(self, ours: list[int], theirs: list[int], here: int, there: int) -> int:
        """Return by how much a swap of rows with these texts would raise what batches have too much of."""
        change = 0
        for texts, others, source, target in ((ours, theirs, here, there), (theirs, ours, there, here)):
            for text in texts:
                if text not in others:
                    allowed = self._fast.allowed[text]
                    weight = _HARD if allowed == 1 else 1
                    change -= weight * (self._num(source, text) > allowed)
                    change += weight * (self._num(target, text) >= allowed)
        return change

    def _swap(self, row: int, place: int, ours: list[int], theirs: list[int]) -> None:
        other, own_place = self._fast.order[place], self._fast.place[row]
        here, there = self._fast.batch_at[own_place], self._fast.batch_at[place]
        for texts, source, target in ((ours, here, there), (theirs, there, here)):
            for text in texts:
                less, more = self._num(source, text) - 1, self._num(target, text) + 1
                self._changed[source * self._num_texts + text] = less
                self._changed[target * self._num_texts + text] = more
        self._fast.order[own_place], self._fast.order[place] = other, row
        self._fast.place[row], self._fast.place[other] = place, own_place
