"""Duplicates: exact and near ones are found, in either column, and nothing that is merely alike."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from dataset_builder.checks import normalize
from dataset_builder.duplicates import (
    NUM_HASHES,
    Signatures,
    exact_key,
    find_duplicates,
    first_of_kind,
    signature,
)
from dataset_builder.words import words

VOCABULARIES = {
    "en": [f"{a}{b}" for a in ("har", "mel", "tor", "vin", "sal", "pen") for b in ("bour", "ody", "ch", "e", "t", "der", "")],
    "zh": [chr(0x4E00 + n) for n in range(0, 600, 3)],
    "th": [chr(0x0E01 + a) + mark + chr(0x0E01 + b) for a in range(0, 40, 3) for b in range(0, 40, 3) for mark in ("", "ี", "้")],
}  # fmt: skip


def grams(text: Sequence[str]) -> set[tuple[str, ...]]:
    return {(word,) for word in text} | set(itertools.pairwise(text))


def jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def estimate(one: Sequence[str], other: Sequence[str]) -> float:
    return float(np.mean(signature(list(one)) == signature(list(other))))


def text(rng: random.Random, length: int, language: str = "en") -> list[str]:
    parts = [rng.choice(VOCABULARIES[language]) for _ in range(length)]
    return words(normalize(" ".join(parts) if language == "en" else "".join(parts)))[:length]


def changed(rng: random.Random, original: Sequence[str], num: int, language: str = "en") -> list[str]:
    """Return a text with a run of `num` of its words replaced."""
    start = rng.randrange(len(original) - num + 1)
    return [*original[:start], *text(rng, num, language)[:num], *original[start + num :]]


def signed(*columns: list[list[str]]) -> tuple[list[np.ndarray], list[Signatures]]:
    keys = [np.array([exact_key(" ".join(row)) for row in column], np.uint64) for column in columns]
    return keys, [np.stack([signature(row) for row in column]) for column in columns]


def duplicates(*columns: list[list[str]], threshold: float = 0.8) -> dict[int, tuple[int, str]]:
    keys, signatures = signed(*columns)
    return find_duplicates(keys, signatures, threshold)


def test_exact_keys_tell_texts_apart() -> None:
    texts = [f"text {number}" for number in range(2000)]
    assert len({exact_key(text) for text in texts}) == 2000
    assert exact_key("text 1") == exact_key("text 1")
    assert 0 <= exact_key("half a smiley \ud83d") < 2**64


@pytest.mark.parametrize("language", VOCABULARIES)
def test_a_signature_estimates_the_jaccard_similarity(language: str) -> None:
    rng, errors, covered = random.Random(language), [], []
    for number in range(200):
        one = text(rng, rng.randrange(8, 60), language)
        other = changed(rng, one, int(len(one) * number / 200), language)
        covered.append(jaccard(one, other))
        errors.append(estimate(one, other) - covered[-1])
    assert min(covered) < 0.3
    assert max(covered) == 1
    assert abs(np.mean(errors)) < 0.03  # they are not independent: all signatures share the same 64 hash functions
    assert np.std(errors) < 0.07
    assert max(np.abs(errors)) < 0.3


def test_a_signature_is_that_of_a_set() -> None:
    assert signature(["a"]).shape == (NUM_HASHES,)
    assert np.array_equal(signature(["a", "b", "a", "b"]), signature(["a", "b", "a"]))
    assert not np.array_equal(signature(["a", "b"]), signature(["b", "a"]))
    assert estimate(["a"], ["b"]) < 0.1


def test_no_rows_and_no_signatures() -> None:
    none = np.empty(0, np.uint64)
    assert find_duplicates([none, none], [np.empty((0, NUM_HASHES), np.uint32)] * 2, 0.8) == {}
    assert find_duplicates([none], None, 1) == {}
    one, near = [f"word{n}" for n in range(40)], [f"word{n}" for n in range(39)]
    keys, _ = signed([one, near, one, near])
    assert find_duplicates(keys, None, 1) == {2: (0, "equals"), 3: (1, "equals")}


def test_duplicates_in_and_across_columns() -> None:
    rng = random.Random(0)
    queries, positives = ([text(rng, 40) for _ in range(12)] for _ in range(2))
    queries[3] = queries[1]  # query of query
    positives[4] = positives[0]  # positive of positive
    queries[5] = positives[1]  # query of positive
    positives[6] = queries[2]  # positive of query
    queries[7] = queries[1][:-1]
    positives[8] = positives[0][1:]
    queries[9] = positives[2][:-1]
    positives[10] = queries[2][:-1]
    assert duplicates(queries, positives) == {
        3: (1, "equals"), 4: (0, "equals"), 5: (1, "equals"), 6: (2, "equals"),
        7: (1, "is nearly"), 8: (0, "is nearly"), 9: (2, "is nearly"), 10: (2, "is nearly"),
    }  # fmt: skip
    assert duplicates([queries[0]], [queries[0]]) == {}  # query and positive of one row are no duplicates


def test_a_row_that_goes_hides_no_later_one() -> None:
    rng = random.Random(1)
    queries, positives = ([text(rng, 40) for _ in range(4)] for _ in range(2))
    queries[1] = queries[0]  # row 1 goes
    positives[2] = positives[1]  # its positive is free again
    positives[3] = positives[1][:-1]  # but not twice
    assert duplicates(queries, positives) == {1: (0, "equals"), 3: (2, "is nearly")}


@pytest.mark.parametrize("language", VOCABULARIES)
@pytest.mark.parametrize("threshold", [0.8, 0.5, 0.95])
def test_the_threshold_is_respected(language: str, threshold: float) -> None:
    """A pair is found by the estimate of its similarity, so near the threshold it may go either way."""
    rng, found = random.Random(f"{language}/{threshold}"), dict[bool, list[float]]()
    for _ in range(150):
        one = text(rng, 120, language)
        other = changed(rng, one, rng.randrange(1, 80), language)
        found.setdefault(bool(duplicates([one, other], threshold=threshold)), []).append(jaccard(one, other))
    assert min(found[True]) > threshold - 0.2
    assert max(found[False]) < threshold + 0.2
    assert all(jaccard < 0.98 for jaccard in found[False])
    if threshold == 0.8:
        assert sum(jaccard < 0.65 for jaccard in found[True]) <= 1
        assert sum(jaccard > 0.9 for jaccard in found[False]) <= 2


def by_brute_force(columns: Sequence[list[list[str]]], threshold: float) -> dict[int, tuple[int, str]]:
    """Compare each row with all rows that are kept, by the signatures themselves."""
    _, signatures = signed(*columns)
    found: dict[int, tuple[int, str]] = {}
    for row in range(len(columns[0])):
        texts = [column[row] for column in columns]
        kept = [other for other in range(row) if other not in found]
        equal = [other for other in kept if any(column[other] in texts for column in columns)]
        like = [
            other
            for other in kept
            if any(np.mean(mine[row] == theirs[other]) >= threshold for mine in signatures for theirs in signatures)
        ]
        if equal:
            found[row] = equal[0], "equals"
        elif like:
            found[row] = like[0], "is nearly"
    return found


@pytest.mark.parametrize("threshold", [0.8, 0.6, 0.4])
def test_the_index_finds_what_comparing_all_pairs_finds(threshold: float) -> None:
    rng = random.Random(threshold)
    columns: list[list[list[str]]] = [[], []]
    for row in range(200):
        for column in columns:
            if row and rng.random() < 0.4:
                original = rng.choice(rng.choice(columns)[:row] or [text(rng, 30)])
                column.append(changed(rng, original, rng.randrange(min(8, len(original)))))
            else:
                column.append(text(rng, rng.randrange(5, 40)))
    found, expected = duplicates(*columns, threshold=threshold), by_brute_force(columns, threshold)
    assert {row: first for row, (first, how) in found.items() if how == "equals"} == {
        row: first for row, (first, how) in expected.items() if how == "equals"
    }
    assert len(expected) > 40
    assert found.keys() == expected.keys()
    differing = [row for row in expected if found[row] != expected[row]]
    assert len(differing) <= 3  # of two that it repeats, the one nearer to the threshold may have been overlooked


def test_the_first_of_a_kind() -> None:
    rng = random.Random(2)
    one, other = text(rng, 40), text(rng, 40)
    texts = [one, other, one[:-1], one, other[1:], text(rng, 40)]
    assert list(first_of_kind(texts, 0.8)) == [0, 1, 0, 0, 1, 5]
    assert list(first_of_kind(texts, 1)) == [0, 1, 2, 0, 4, 5]
    assert list(first_of_kind([], 0.8)) == []


def test_kinds_are_chained_and_never_change_when_more_texts_come() -> None:
    """Each text is like the one before it, the last is like the first no more; yet all are of one kind."""
    rng = random.Random(3)
    chain = [text(rng, 60)]
    while jaccard(chain[0], chain[-1]) > 0.3:
        chain.append([*chain[-1][2:], *text(rng, 2)])
    others = [text(rng, 60) for _ in chain]
    texts = [text for pair in zip(chain, others, strict=True) for text in pair]
    kinds = list(first_of_kind(texts, 0.8))
    assert kinds == [number if number % 2 else 0 for number in range(len(texts))]
    for length in range(len(texts)):
        assert list(first_of_kind(texts[:length], 0.8)) == kinds[:length]


def test_signatures_are_the_same_in_every_process() -> None:
    code = (
        "from dataset_builder.duplicates import signature, exact_key;"
        "print(signature('the quick brown fox 狐 狸'.split()).tolist(), exact_key('the fox 狐'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {
        f"{signature(['the', 'quick', 'brown', 'fox', '狐', '狸']).tolist()} {exact_key('the fox 狐')}\n"
    }
