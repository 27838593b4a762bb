"""Exact and near duplicates: MinHash signatures, and which rows repeat an earlier one.

The signatures are datasketch's. The index over them is ours, because `MinHashLSH` holds a Python set for each band of each
text, some gigabytes for a million texts, where an array holds 256 bytes a text.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from dataset_builder.words import ngram_hashes

NUM_HASHES = 64
_SURE = 0.99  # probability with which two texts as similar as the threshold are compared at all

Keys = NDArray[np.uint64]
Signatures = NDArray[np.uint32]


def exact_key(text: str) -> int:
    """Return a 64-bit digest of a normalized text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())


@cache
def _permutations() -> Any:
    return MinHash(num_perm=NUM_HASHES, scheme="affine32").permutations


def signature(words: list[str]) -> Signatures:
    """Return the MinHash signature (NUM_HASHES,) of the set of single words and pairs of words of a text.

    Its expected share of equal entries with another one is the Jaccard similarity of the two sets (Broder, 1997). Pairs
    make the order count, single words keep short texts comparable.
    """
    shingles = np.concatenate([ngram_hashes(words, 1), ngram_hashes(words, 2)])
    sketch = MinHash(num_perm=NUM_HASHES, permutations=_permutations(), hashfunc=_same, scheme="affine32")
    sketch.update_batch((shingles >> np.uint64(32)).tolist())
    return np.asarray(sketch.hashvalues, dtype=np.uint32)


def _same(value: int) -> int:
    return value


def find_duplicates(
    keys: Sequence[Keys], signatures: Sequence[Signatures] | None, threshold: float, *, chained: bool = False
) -> dict[int, tuple[int, str]]:
    """Return {row: (the earlier row that it repeats, how)} for the rows that repeat one.

    Args:
        keys: for each column of texts that is compared, the `exact_key` of every row, (rows,).
        signatures: for each such column, the `signature` of every row, (rows, NUM_HASHES); None: exact duplicates only.
        threshold: similarity from which two texts are near duplicates.
        chained: compare with all earlier rows, also with those that repeat one themselves. Else these are taken to be
            gone, and hide no later row.
    """
    seen: dict[int, int] = {}
    near = _Near(signatures, threshold) if signatures is not None and len(keys[0]) else None
    found: dict[int, tuple[int, str]] = {}
    for row, row_keys in enumerate(zip(*(column.tolist() for column in keys), strict=True)):
        first = next((seen[key] for key in row_keys if key in seen), None)
        how = "equals"
        if first is None and near is not None:
            first, how = near.first_like(row), "is nearly"
        if first is not None:
            found[row] = first, how
            if not chained:
                continue
        for key in row_keys:
            seen.setdefault(key, row)
        if near is not None:
            near.keep(row)
    return found


class _Near:
    """Rows kept so far by the bands of their signatures; only bands that occur twice are held.

    The texts are numbered through: those of the second column come after those of the first.
    """

    def __init__(self, signatures: Sequence[Signatures], threshold: float) -> None:
        self.signatures, self.num_rows = np.concatenate(signatures), len(signatures[0])
        self.num_equal = threshold * NUM_HASHES
        self._buckets: dict[int, list[int]] = defaultdict(list)
        self._bands: dict[int, list[int]] = defaultdict(list)
        for hashes in _band_hashes(self.signatures, _band_size(threshold)):
            values, counts = np.unique(hashes, return_counts=True)
            texts = np.flatnonzero(np.isin(hashes, values[counts > 1]))
            for text, band in zip(texts.tolist(), hashes[texts].tolist(), strict=True):
                self._bands[text].append(band)

    def first_like(self, row: int) -> int | None:
        """Return the first kept row with a text like one of this row's, or None."""
        likes: list[int] = []
        for text in range(row, len(self.signatures), self.num_rows):
            others = {other for band in self._bands.get(text, ()) for other in self._buckets.get(band, ())}
            if others:
                numbers = np.fromiter(others, np.int64, len(others))
                num_equal = (self.signatures[numbers] == self.signatures[text]).sum(1)  # (others,)
                likes += (numbers[num_equal >= self.num_equal] % self.num_rows).tolist()
        return min(likes, default=None)

    def keep(self, row: int) -> None:
        """Let later rows be compared with this one."""
        for text in range(row, len(self.signatures), self.num_rows):
            for band in self._bands.get(text, ()):
                self._buckets[band].append(text)


def _band_size(threshold: float) -> int:
    """Return how many hashes make a band: the more, the fewer texts are compared, as long as no near duplicate is missed.

    Two texts of similarity s share one of n bands of r hashes with probability 1 - (1 - s^r)^n (Leskovec et al., Mining
    of Massive Datasets, section 3.4): with bands of 4, those of 0.8 with 0.9998, of 0.4 with 0.34.
    """
    return next((size for size in (8, 4, 2) if 1 - (1 - threshold**size) ** (NUM_HASHES // size) > _SURE), 1)


def _band_hashes(signatures: Signatures, size: int) -> Iterator[Keys]:
    """Yield for each band of `size` hashes (texts,): one hash for the band of each text."""
    for start in range(0, NUM_HASHES, size):
        mixed = signatures[:, start].astype(np.uint64) + np.uint64(start)
        for column in range(start + 1, start + size):
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + signatures[:, column]
            mixed ^= mixed >> np.uint64(29)
        yield mixed * np.uint64(NUM_HASHES) + np.uint64(start)


def first_of_kind(texts: Sequence[list[str]], threshold: float) -> Iterator[int]:
    """Yield for each text, given as its words, the number of the first text of its kind.

    A text is of the kind of the first earlier one that it nearly repeats, whatever kind that is; so later texts never
    change the kind of an earlier one.
    """
    if not texts:
        return
    keys = np.array([exact_key(" ".join(text)) for text in texts], dtype=np.uint64)
    signatures = np.stack([signature(text) for text in texts]) if threshold < 1 else None
    found = find_duplicates([keys], None if signatures is None else [signatures], threshold, chained=True)
    kinds: list[int] = []
    for number in range(len(texts)):
        kinds.append(kinds[found[number][0]] if number in found else number)
        yield kinds[-1]
