"""Which rows make a batch: one subgroup each, no text twice, every row once an epoch, the same for any number of processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler

from dataset_builder.errors import InputError
from dataset_builder.schema import check_subgroup
from trainer.data import negatives_of
from trainer.spread import Pairs, Rows, deal

_SLICE = 10_000  # rows whose texts are in memory at a time


def text_keys(texts: Iterable[str]) -> Rows:
    """Return a number for each text, (texts,) int64, equal for texts that are equal but for the space around them."""
    digests = b"".join(hashlib.blake2b(text.strip().encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def column_keys(rows: Dataset, name: str) -> Rows:
    """Return the key of each text of a column, (rows,) int64, with few of the texts in memory at a time."""
    column = rows[name]
    keys = [text_keys(column[start : start + _SLICE]) for start in range(0, len(column), _SLICE)]
    return np.concatenate([*keys, np.arange(0)])


class ContrastiveBatchSampler(Sampler[list[int]]):
    """Batches of one subgroup each, in an order that is a function of (seed, epoch) only.

    - Batches of bitext also hold one direction (source and target language), where an epoch has rows of it for a batch. The
      rows of rarer directions share batches, with others of the same target language as far as there are any.
    - n rows make ceil(n / batch_size) batches whose sizes differ by 1 at most, so that no epoch ends in a batch with few
      negatives, and every epoch has `len(self)` batches.
    - No text stands twice in a batch unless it occurs in more rows than there are batches; then it is spread evenly, and
      the loss masks it. This holds exactly where a row shares one text with others; where it shares several, there
      can be rows that no way parts, or none that was found (`trainer.spread`).
    - Each process gets its slice of each batch, which is empty where a batch has fewer rows than there are processes.

    Args:
        rows: a dataset with the columns of `trainer.data.load_examples`.
        batch_size: rows in a batch at most, over all processes.
        seed: seed of the order, 0 or above.
        shuffle: False keeps the order of the rows within each subgroup or direction, for evaluation; texts may then meet.
        weights: by subgroup, how often its rows are taken in an epoch. At 1, the default, each is taken once; at 2.5 each
            twice, and every second one once more; at 0.5 every second one, and in the next epoch the others; at 0 none.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        InputError: if `weights` has an unknown subgroup or a number that is no weight, or is given without shuffling.
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
        _check_weights(weights or {}, shuffle=shuffle)
        self.batch_size, self.drop_last = batch_size, False  # read by accelerate
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self.rank, self.world_size = rank, world_size
        self._texts = _TextsByRow(rows) if shuffle else None
        self._groups = list(_groups(rows, batch_size, weights or {}))

    @property
    def batch_sampler(self) -> ContrastiveBatchSampler:
        """Itself: `Trainer` looks for `set_epoch` at this name of the batch sampler of a plain `DataLoader`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, from the next `iter` on."""
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
            if not num_batches:
                continue
            if self._texts is None:
                order, edges = group.members, np.arange(num_batches + 1) * len(group.members) // num_batches
            else:
                taken = group.take(self.seed, number, self.epoch)
                rows, languages = group.members[taken], None if group.languages is None else group.languages[taken]
                dealt, edges = deal(len(rows), self._texts.recurring(rows), num_batches, rng, languages)
                order = rows[dealt]
            batches += [order[start:end].tolist() for start, end in pairwise(edges.tolist())]
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches


def _check_weights(weights: Mapping[str, float], *, shuffle: bool) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise InputError(f"The weight of {check_subgroup(name)} is {weight}; give a number from 0, such as 0.5.")
        check_subgroup(name)
    if weights and not shuffle:
        raise InputError("`weights` are given for rows in their order; leave them out, or shuffle.")


class _TextsByRow:
    """The keys of the texts of each row, 8 bytes a text instead of the text."""

    def __init__(self, rows: Dataset) -> None:
        parts: list[tuple[Rows, Rows]] = []
        for start in range(0, len(rows), _SLICE):
            part = rows[start : start + _SLICE]
            numbers = np.arange(start, start + len(part["query"]))
            negatives = [negatives_of({"negative": negative}) for negative in part["negative"]]
            texts = [*part["query"], *part["positive"], *(text for of_row in negatives for text in of_row)]
            lengths = [len(of_row) for of_row in negatives]
            parts.append((np.concatenate([numbers, numbers, np.repeat(numbers, lengths)]), text_keys(texts)))
        row, key = (
            (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else (np.zeros(0, np.int64),) * 2
        )
        # (pairs,): a text that stands twice in a row counts once, where it stands first
        order = np.lexsort([key, row])
        is_new = np.ones(len(row), dtype=bool)
        is_new[1:] = (row[order][1:] != row[order][:-1]) | (key[order][1:] != key[order][:-1])
        first = np.sort(order[is_new])
        # (pairs,) by row: the query, then the positive, then the negatives
        first = first[np.argsort(row[first], kind="stable")]
        self._keys = key[first]
        self._starts = np.searchsorted(row[first], np.arange(len(rows) + 1))

    def recurring(self, rows: Rows) -> Pairs:
        """Return the texts that several of these rows have; `rows` may have a row more than once."""
        starts = self._starts[rows]
        lengths = self._starts[rows + 1] - starts
        row = np.repeat(np.arange(len(rows)), lengths)
        keys = self._keys[np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(len(row))]
        _, text, counts = np.unique(keys, return_inverse=True, return_counts=True)
        kept = counts[text] > 1
        numbers = np.cumsum(counts > 1) - 1
        return Pairs(row[kept], numbers[text[kept]])


class _Group:
    """Rows that make batches together.

    Args:
        members: (rows,) their numbers in the dataset.
        languages: (rows, 2) numbers of source and target language where rows of a language are to stay together.
        num_taken: how many an epoch takes.
    """

    def __init__(self, members: Rows, languages: Rows | None, num_taken: int) -> None:
        self.members, self.languages, self.num_taken = members, languages, num_taken

    def take(self, seed: int, number: int, epoch: int) -> Rows:
        """Return which of the members an epoch takes: all as often as that goes, then the next ones in a random order.

        That order is one for all epochs, and begins anew when it is through, so that none is taken more than once more.
        """
        num = len(self.members)
        whole, part = divmod(self.num_taken, num)
        places = (epoch * part + np.arange(part)) % num
        order = np.random.default_rng([seed, number, 1]).permutation(num)
        return np.concatenate([np.tile(np.arange(num), whole), order[places]])


def _groups(rows: Dataset, batch_size: int, weights: Mapping[str, float]) -> Iterator[_Group]:
    names: dict[str, int] = {}
    subgroups = _numbers(rows, "subgroup", names)
    for name, number in names.items():
        members = np.nonzero(subgroups == number)[0]
        weight = weights.get(name, 1.0)
        if name != "bitext":
            yield _Group(members, None, round(weight * len(members)))
            continue
        codes: dict[str, int] = {}
        columns = [_numbers(rows, column, codes)[members] for column in ("language", "positive_language")]
        # (rows, 2)
        languages = np.stack(columns, axis=1)
        _, direction, counts = np.unique(languages, axis=0, return_inverse=True, return_counts=True)
        direction = direction.reshape(-1)
        # repeats of a row are no negatives of each other, so that a weight above 1 makes no direction frequent
        is_frequent = min(weight, 1.0) * counts >= batch_size
        parts = [np.nonzero(~is_frequent[direction])[0]]
        parts += [np.nonzero(direction == i)[0] for i in np.nonzero(is_frequent)[0]]
        # the rare ones come first, where rounding up leaves them a row even if a small weight hardly does
        ends = np.cumsum([len(part) for part in parts])
        shares = np.diff(-(-ends * round(weight * len(members)) // len(members)), prepend=0)
        for i, (part, share) in enumerate(zip(parts, shares.tolist(), strict=True)):
            if len(part):
                yield _Group(members[part], languages[part] if i == 0 else None, share)


def _numbers(rows: Dataset, column: str, names: dict[str, int]) -> Rows:
    """Return a number for each value of a column, (rows,) int64; `names` learns which."""
    values = (value for start in range(0, len(rows), _SLICE) for value in rows[column][start : start + _SLICE])
    return np.fromiter((names.setdefault(value, len(names)) for value in values), np.int64, len(rows))
