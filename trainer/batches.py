"""Which rows make a batch: one subgroup each, no text twice, every row once an epoch, the same for any number of processes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler

from dataset_builder.schema import TEXT_COLUMNS

Rows = np.ndarray[Any, np.dtype[np.int64]]
"""Row numbers or text keys, int64."""

_TRIES = 2_000  # rows of other batches looked at for a row whose text its batch already has
_ROUNDS = 3  # over all batches: a swap can make room for one that was not found before


def text_keys(texts: Iterable[str]) -> Rows:
    """Return a number for each text, (texts,) int64, equal for texts that are equal but for the space around them."""
    digests = b"".join(hashlib.blake2b(text.strip().encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


class ContrastiveBatchSampler(Sampler[list[int]]):
    """Batches of one subgroup each, in an order that is a function of (seed, epoch) only.

    - Batches of bitext also hold one direction (source and target language), where the direction has rows for a batch. The
      rows of rarer directions share batches, with others of the same target language as far as there are any.
    - n rows make ceil(n / batch_size) batches of near-equal size, so that no epoch ends in a batch with few negatives.
    - No text stands twice in a batch unless it occurs in more rows than there are batches; then it is spread evenly, and
      the loss masks it.
    - Each process gets its slice of each batch, which is empty where a batch has fewer rows than there are processes.

    Args:
        rows: a dataset with the columns of `trainer.data.load_examples`.
        batch_size: rows in a batch at most, over all processes.
        seed: seed of the order.
        shuffle: False keeps the order of the rows within each subgroup, for evaluation.
        weights: by subgroup, how often its rows are taken in an epoch. At 1, the default, each is taken once; at 0.5 each is
            taken in every other epoch; at 0 never.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        rows: Dataset,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        weights: Mapping[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batch_size, self.drop_last = batch_size, False  # read by accelerate
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self.rank, self.world_size = rank, world_size
        self._keys = _keys_by_row(rows)
        self._groups = [
            _Group(members, languages, (weights or {}).get(subgroup, 1.0) if shuffle else 1.0)
            for subgroup, members, languages in _groups(rows, batch_size)
        ]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-group.num_taken // self.batch_size) for group in self._groups)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            num = len(batch)
            yield batch[num * self.rank // self.world_size : num * (self.rank + 1) // self.world_size]

    def global_batches(self) -> list[list[int]]:
        """Return the batches of the epoch as all processes have them together."""
        rng = np.random.default_rng([self.seed, self.epoch])
        batches: list[list[int]] = []
        for number, group in enumerate(self._groups):
            num_batches = -(-group.num_taken // self.batch_size)
            if not self.shuffle:
                batches += _split(group.members.tolist(), num_batches)
            elif num_batches:
                batches += self._deal(group, group.take(self.seed, number, self.epoch), num_batches, rng)
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _deal(self, group: _Group, taken: Rows, num_batches: int, rng: np.random.Generator) -> list[list[int]]:
        members = group.members[taken]
        if group.languages is not None:  # rows of the same direction stay together
            order = np.lexsort([rng.permutation(len(taken)), *_shuffled_ranks(group.languages[taken], rng).T])
            batches = _split(members[order].tolist(), num_batches)
        else:
            # rows with the same recurring text come one after the other, and are dealt out to one batch after the other
            order = np.argsort(_shuffled_ranks(self._recurring(members), rng)[:, 0], kind="stable")
            dealt = members[order]
            batches = [dealt[i::num_batches].tolist() for i in range(num_batches)]
        _part_equals(batches, self._keys, rng)
        return [[batch[i] for i in rng.permutation(len(batch))] for batch in batches]

    def _recurring(self, members: Rows) -> Rows:
        """Return for each row the text that recurs most often, (rows, 1), or its number below zero if none does."""
        keys = self._keys[members]
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        counts[inverse.reshape(keys.shape)[keys == 0]] = 0  # no text
        how_often = counts[inverse.reshape(keys.shape)]
        most = how_often.argmax(axis=1)[:, None]
        alone = -1 - np.arange(len(members))[:, None]
        recurring = np.take_along_axis(inverse.reshape(keys.shape), most, axis=1)
        return np.where(np.take_along_axis(how_often, most, axis=1) > 1, recurring, alone).astype(np.int64)


class _Group:
    """Rows that make batches together.

    Args:
        members: (rows,) their numbers in the dataset.
        languages: (rows, 2) ranks of source and target language where rows of a language are to stay together.
        weight: how often a row is taken in an epoch.
    """

    def __init__(self, members: Rows, languages: Rows | None, weight: float) -> None:
        self.members, self.languages = members, languages
        self.num_taken = round(weight * len(members))

    def take(self, seed: int, number: int, epoch: int) -> Rows:
        """Return which of the members an epoch takes: its part of an endless walk, each round through all of them."""
        start, end, num = epoch * self.num_taken, (epoch + 1) * self.num_taken, len(self.members)
        rounds = range(start // num, -(-end // num))
        walk = np.concatenate([np.random.default_rng([seed, number, i, 1]).permutation(num) for i in rounds])
        return walk[start - rounds[0] * num : end - rounds[0] * num]


def _groups(rows: Dataset, batch_size: int) -> Iterator[tuple[str, Rows, Rows | None]]:
    """Yield (subgroup, row numbers, languages of rows that share batches with other languages)."""
    subgroups = np.array(rows["subgroup"][:], dtype=object)
    for subgroup in dict.fromkeys(subgroups.tolist()):
        members = np.nonzero(subgroups == subgroup)[0]
        if subgroup != "bitext":
            yield subgroup, members, None
            continue
        languages = np.stack(
            [np.array(rows[name][:], dtype=str)[members] for name in ("language", "positive_language")], axis=1
        )
        _, ranks = np.unique(languages, return_inverse=True)
        ranks = ranks.reshape(languages.shape)
        _, direction, counts = np.unique(ranks, axis=0, return_inverse=True, return_counts=True)
        direction = direction.reshape(-1)
        for i in np.nonzero(counts >= batch_size)[0]:
            yield subgroup, members[direction == i], None
        rare = counts[direction] < batch_size
        if rare.any():
            yield subgroup, members[rare], ranks[rare]


def _keys_by_row(rows: Dataset) -> Rows:
    """Return the keys of each row's texts, (rows, texts) int64, 0 where a row has fewer."""
    columns = [text_keys(rows[name][:]) for name in TEXT_COLUMNS[:2]]
    negatives = [_as_list(negative) for negative in rows[TEXT_COLUMNS[2]][:]]
    for i in range(max(map(len, negatives), default=0)):
        has_one = np.array([len(negative) > i for negative in negatives])
        column = np.zeros(len(rows), dtype=np.int64)
        column[has_one] = text_keys(negative[i] for negative in negatives if len(negative) > i)
        columns.append(column)
    return np.stack(columns, axis=1)


def _as_list(negative: str | list[str] | None) -> list[str]:
    return [] if negative is None else [negative] if isinstance(negative, str) else negative


def _shuffled_ranks(values: Rows, rng: np.random.Generator) -> Rows:
    """Return `values` (rows, columns) with a random rank in place of each value, the same for equal values of a column."""
    columns = []
    for column in values.T:
        _, inverse = np.unique(column, return_inverse=True)
        columns.append(rng.permutation(int(inverse.max(initial=-1)) + 1)[inverse])
    return np.stack(columns, axis=1)


def _split(rows: list[int], num_batches: int) -> list[list[int]]:
    edges = [len(rows) * i // num_batches for i in range(num_batches + 1)] if num_batches else [0]
    return [rows[start:end] for start, end in pairwise(edges)]


def _part_equals(batches: list[list[int]], keys: Rows, rng: np.random.Generator) -> None:
    """Swap rows between batches, in place, until no text stands twice in a batch, as far as a few tries find."""
    texts = [Counter(key for row in batch for key in _distinct(keys[row])) for batch in batches]
    for i, batch in [*enumerate(batches)] * _ROUNDS:
        if texts[i].total() == len(texts[i]):
            continue
        for place, row in enumerate(batch):
            if any(texts[i][key] > 1 for key in _distinct(keys[row])):
                _swap_away(i, place, batches, texts, keys, rng)


def _distinct(row_keys: Rows) -> set[int]:
    return set(row_keys.tolist()) - {0}


def _swap_away(
    i: int, place: int, batches: list[list[int]], texts: list[Counter[int]], keys: Rows, rng: np.random.Generator
) -> None:
    """Swap the row at `place` of batch `i` with a row of another batch if both find none of their texts in the new one."""
    ours = _distinct(keys[batches[i][place]])
    if all(texts[i][key] <= 1 for key in ours):  # an earlier swap has parted them
        return
    tries = 0
    for j in rng.permutation(len(batches)).tolist():
        if j == i or any(key in texts[j] for key in ours):
            continue
        for there, row in enumerate(batches[j]):
            theirs = _distinct(keys[row])
            tries += 1
            if all(texts[i][key] - (key in ours) <= 0 for key in theirs):
                _move(texts[i], ours, theirs)
                _move(texts[j], theirs, ours)
                batches[i][place], batches[j][there] = row, batches[i][place]
                return
        if tries > _TRIES:
            return


def _move(texts: Counter[int], gone: set[int], come: set[int]) -> None:
    texts.subtract(gone)
    texts.update(come)
    for key in gone:
        if not texts[key]:
            del texts[key]
