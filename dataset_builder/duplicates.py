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
_BANDS, _ROWS = 16, 4
"""16 bands of 4 hashes: two texts of similarity 0.8 share a band with probability 0.9998, of 0.4 with 0.34."""

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
    keys: Sequence[Keys], signatures: Sequence[Signatures] | None, threshold: float
) -> dict[int, tuple[int, str]]:
    """Return {row: (the earlier row that it repeats, how)} for the rows that are to go; one that goes hides no other.

    Args:
        keys: for each column of texts that is compared, the `exact_key` of every row, (rows,).
        signatures: for each such column, the `signature` of every row, (rows, NUM_HASHES); None: exact duplicates only.
        threshold: similarity from which two texts are near duplicates.
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
            continue
        for key in row_keys:
            seen.setdefault(key, row)
        if near is not None:
            near.keep(row)
    return found


class _Near:
    """Rows kept so far by the bands of their signatures; only bands that occur twice are held."""

    def __init__(self, signatures: Sequence[Signatures], threshold: float) -> None:
        self.signatures, self.num_equal = signatures, threshold * NUM_HASHES
        self._buckets: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        self._bands: list[dict[int, list[tuple[int, int]]]] = [defaultdict(list) for _ in signatures]
        for band in range(_BANDS):
            hashes = [_band_hashes(column, band) for column in signatures]
            values, counts = np.unique(np.concatenate(hashes), return_counts=True)
            repeated = values[counts > 1]
            for column, column_hashes in enumerate(hashes):
                for row in np.flatnonzero(np.isin(column_hashes, repeated)).tolist():
                    self._bands[column][row].append((band, int(column_hashes[row])))

    def first_like(self, row: int) -> int | None:
        """Return the first kept row with a text like one of this row's, or None."""
        likes: list[int] = []
        for column, bands in enumerate(self._bands):
            others = {other for band in bands.get(row, ()) for other in self._buckets.get(band, ())}
            mine = self.signatures[column][row]
            likes += [
                other_row
                for other_column, other_row in others
                if np.count_nonzero(self.signatures[other_column][other_row] == mine) >= self.num_equal
            ]
        return min(likes, default=None)

    def keep(self, row: int) -> None:
        """Let later rows be compared with this one."""
        for column, bands in enumerate(self._bands):
            for band in bands.get(row, ()):
                self._buckets[band].append((column, row))


def _band_hashes(signatures: Signatures, band: int) -> Keys:
    """(rows,): one hash for the band's hashes of each row."""
    part = np.ascontiguousarray(signatures[:, band * _ROWS : (band + 1) * _ROWS]).astype(np.uint64)
    mixed = part[:, 0].copy()
    for column in range(1, _ROWS):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + part[:, column]
        mixed ^= mixed >> np.uint64(29)
    return mixed * np.uint64(_BANDS) + np.uint64(band)


def first_of_kind(texts: Sequence[list[str]], threshold: float) -> Iterator[int]:
    """Yield for each text, given as its words, the number of the first one that it nearly repeats, or its own."""
    if not texts:
        return
    keys = np.array([exact_key(" ".join(text)) for text in texts], dtype=np.uint64)
    signatures = np.stack([signature(text) for text in texts]) if threshold < 1 else None
    found = find_duplicates([keys], None if signatures is None else [signatures], threshold)
    for number in range(len(texts)):
        yield found[number][0] if number in found else number
