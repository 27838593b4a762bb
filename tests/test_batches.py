"""Which rows make a batch: for any data, seed, epoch and number of processes."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from itertools import chain
from typing import Any

import pytest
from datasets import Dataset

from dataset_builder.errors import InputError
from tests.tiny_datasets import distinct_rows
from trainer.batches import ContrastiveBatchSampler

SUBGROUPS = ["short-long"] * 23 + ["sts"] * 9 + ["bitext"] * 1 + ["short-long"] * 10 + ["sts"] * 7


def _sampler(subgroups: list[str], batch_size: int, seed: int = 0, **arguments: Any) -> ContrastiveBatchSampler:
    return ContrastiveBatchSampler(distinct_rows(subgroups), batch_size, seed, **arguments)


@pytest.mark.parametrize("batch_size", [1, 2, 8, 16, 100])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_hold_one_subgroup_and_every_row_once(batch_size: int, shuffle: bool) -> None:
    sampler = _sampler(SUBGROUPS, batch_size, shuffle=shuffle)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(SUBGROUPS)))
    assert len(sampler) == len(batches)
    for batch in batches:
        assert len({SUBGROUPS[row] for row in batch}) == 1
        assert 0 < len(batch) <= batch_size


@pytest.mark.parametrize("batch_size", [2, 8, 16, 100])
def test_batches_of_a_subgroup_are_of_equal_size(batch_size: int) -> None:
    sizes: dict[str, list[int]] = {}
    for batch in _sampler(SUBGROUPS, batch_size):
        sizes.setdefault(SUBGROUPS[batch[0]], []).append(len(batch))
    for subgroup, of_subgroup in sizes.items():
        assert max(of_subgroup) - min(of_subgroup) <= 1
        assert len(of_subgroup) == -(-SUBGROUPS.count(subgroup) // batch_size)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int, before: tuple[int, ...] = ()) -> list[list[int]]:
        sampler = _sampler(SUBGROUPS, 8, seed)
        for earlier in before:
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 3) == order(1, 3, before=(0, 1, 2))
    different = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(one != other for i, one in enumerate(different) for other in different[:i])


def test_batches_are_made_anew_each_epoch() -> None:
    sampler = _sampler(["sts"] * 64, 8)
    first = {frozenset(batch) for batch in sampler}
    sampler.set_epoch(1)
    assert not first & {frozenset(batch) for batch in sampler}


def test_subgroups_are_mixed() -> None:
    sampler = _sampler(["sts"] * 64 + ["bitext"] * 64, 8)
    assert Counter(batch[0] < 64 for batch in list(sampler)[:8]).most_common(1)[0][1] < 8


def test_without_shuffling_the_order_is_that_of_thedistinct_rows() -> None:
    sampler = _sampler(["sts", "bitext", "sts", "sts", "sts"], 2, shuffle=False)
    assert list(sampler) == [[0, 2], [3, 4], [1]]
    sampler.set_epoch(1)
    assert list(sampler) == [[0, 2], [3, 4], [1]]


def test_no_rows_give_no_batches() -> None:
    assert list(_sampler([], 8)) == []


# No text twice


def _most_often(rows: Dataset, batches: list[list[int]]) -> int:
    """How often a text stands in the batch that has it most often, counted once a row."""
    most = 0
    for batch in batches:
        texts = Counter(text for i in batch for text in {rows[i][name] for name in ("query", "positive", "negative")})
        most = max(most, *texts.values())
    return most


@pytest.mark.parametrize("seed", range(5))
def test_no_text_twice_in_a_batch(seed: int) -> None:
    """Texts recur up to as often as there are batches, in any column."""
    rng = random.Random(seed)
    num, batch_size = 160, 16
    positives = [f"label {i // 8}" for i in range(num)]
    rng.shuffle(positives)
    negatives = [f"label {rng.randrange(10_000)}" if i % 2 else f"other {i // 4}" for i in range(num)]
    queries = [f"query {i // 3}" for i in range(num)]
    rows = distinct_rows(["short-long"] * num, query=queries, positive=positives, negative=negatives)
    sampler = ContrastiveBatchSampler(rows, batch_size, seed)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(row for batch in batches for row in batch) == list(range(num))
        assert {len(batch) for batch in batches} == {batch_size}
        assert _most_often(rows, batches) == 1


@pytest.mark.parametrize("epoch", range(3))
def test_what_must_recur_is_spread_evenly(epoch: int) -> None:
    """Five labels over 200 rows in 13 batches: each is the positive of 40 rows, so of three or four in a batch."""
    labels = [f"label {i % 5}" for i in range(200)]
    rows = distinct_rows(["long-short"] * 200, positive=labels, negative=[None] * 200)
    sampler = ContrastiveBatchSampler(rows, 16)
    sampler.set_epoch(epoch)
    for batch in sampler:
        assert sorted(Counter(labels[i] for i in batch).values()) in ([3] * 5, [3] * 4 + [4])


def test_what_must_recur_as_positive_and_negative_is_spread() -> None:
    """Five labels over 200 rows, each the positive of 40 and the negative of 40: six or seven rows in a batch have it."""
    labels = [f"label {i % 5}" for i in range(200)]
    negatives = [f"label {(i + 1 + i // 5 % 4) % 5}" for i in range(200)]
    for batch in ContrastiveBatchSampler(distinct_rows(["long-short"] * 200, positive=labels, negative=negatives), 16):
        positives = Counter(labels[i] for i in batch)
        assert max(positives.values()) - min(positives.values()) <= 2
        assert max(Counter(label for i in batch for label in (labels[i], negatives[i])).values()) <= 7


def test_missing_and_several_negatives() -> None:
    negatives = [["same", f"n {i}"] if i % 2 else [] for i in range(12)]
    rows = distinct_rows(["sts"] * 12, negative=negatives)
    for batch in ContrastiveBatchSampler(rows, 2):  # six rows have it, and there are six batches
        assert sum("same" in negatives[i] for i in batch) == 1


# Directions


def test_a_direction_with_rows_enough_makes_batches_of_its_own() -> None:
    rng = random.Random(0)
    directions = [("en", "de")] * 20 + [("de", "en")] * 9 + [(a, b) for a in "fghij" for b in ("xx", "yy", "zz")]
    rng.shuffle(directions)
    languages, targets = (list(column) for column in zip(*directions, strict=True))
    sampler = ContrastiveBatchSampler(
        distinct_rows(["bitext"] * len(directions), language=languages, positive_language=targets), 8
    )
    batches = [[directions[i] for i in batch] for batch in sampler]
    assert len(batches) == len(sampler) == 3 + 2 + 2
    assert sum(set(batch) == {("en", "de")} for batch in batches) == 3
    assert sum(set(batch) == {("de", "en")} for batch in batches) == 2
    for batch in batches:
        if ("en", "de") not in batch and ("de", "en") not in batch:  # 15 rows with three targets in two batches
            assert len({target for _, target in batch}) == 2


# Weights


def test_weights() -> None:
    sampler = _sampler(
        ["sts"] * 40 + ["bitext"] * 10 + ["short-long"] * 8, 8, weights={"sts": 0.5, "bitext": 2.5, "long-long": 3}
    )
    seen: Counter[int] = Counter()
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 3 + 4 + 1
        assert sum(row < 40 for batch in batches for row in batch) == 20
        assert sum(40 <= row < 50 for batch in batches for row in batch) == 25
        seen.update(row for batch in batches for row in batch)
    assert all(seen[row] == 1 for row in range(40))  # two halves
    assert all(seen[row] == 5 for row in range(40, 50))
    assert all(seen[row] == 2 for row in range(50, 58))
    assert list(_sampler(["sts"] * 4, 8, weights={"sts": 0})) == []


@pytest.mark.parametrize("weight", [0.05, 0.3, 0.75, 1.0, 1.5, 3.2])
def test_a_weight_holds_for_the_whole_subgroup_and_every_row_has_its_turn(weight: float) -> None:
    """Also where bitext falls into many groups."""
    rng = random.Random(7)
    num = 150
    targets = [rng.choice(["de"] * 12 + list("abcdefg")) for _ in range(num)]
    rows = distinct_rows(["bitext"] * num, positive_language=targets)
    sampler = ContrastiveBatchSampler(rows, 8, 1, weights={"bitext": weight})
    seen: Counter[int] = Counter()
    for epoch in range(300):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        taken = Counter(row for batch in batches for row in batch)
        assert len(batches) == len(sampler)
        assert taken.total() == round(weight * num)
        assert max(taken.values()) <= math.ceil(weight)
        assert len(taken) == num or weight < 1
        seen += taken
        if epoch > 2 / weight and len(seen) == num:
            break
    assert len(seen) == num
    assert max(seen.values()) - min(seen.values()) <= max(2, 2 * weight)


def test_rows_that_are_taken_twice_do_not_meet_themselves() -> None:
    sampler = _sampler(["sts"] * 40, 8, weights={"sts": 2.5})
    assert all(len(set(batch)) == len(batch) for batch in sampler)


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_what_is_no_weight(weight: float) -> None:
    with pytest.raises(InputError, match=f"The weight of sts is {weight}; give a number from 0, such as 0.5"):
        _sampler(["sts"], 8, weights={"sts": weight})


def test_weights_of_no_subgroup_or_without_shuffling() -> None:
    with pytest.raises(InputError, match=r"has 'stss'; known subgroups are .* Did you mean 'sts'"):
        _sampler(["sts"], 8, weights={"stss": 1})
    with pytest.raises(InputError, match="`weights` are given for rows in their order; leave them out, or shuffle"):
        _sampler(["sts"], 8, weights={"sts": 2}, shuffle=False)


# Any data


@pytest.mark.parametrize("seed", range(40))
def test_any_data(seed: int) -> None:
    """What holds for every dataset, batch size and number of processes."""
    rng = random.Random(seed)
    num, batch_size, world_size = rng.randrange(1, 120), rng.randrange(1, 20), rng.randrange(1, 4)
    subgroups = [rng.choice(["sts", "bitext", "bitext", "long-short"]) for _ in range(num)]
    labels = [f"label {i}" for i in range(rng.randrange(1, num + 1))]
    columns: dict[str, list[Any]] = {
        "positive": [rng.choice(labels) for _ in range(num)],
        "negative": [[f"n {rng.randrange(40)}" for _ in range(rng.randrange(4))] for _ in range(num)],
        "language": [rng.choice("ab") for _ in range(num)],
        "positive_language": [rng.choice("cddddd") for _ in range(num)],
    }
    rows = distinct_rows(subgroups, **columns)
    of = {i: (subgroups[i], columns["language"][i], columns["positive_language"][i]) for i in range(num)}
    how_many = Counter(of.values())
    for shuffle in (True, False):
        sampler = ContrastiveBatchSampler(rows, batch_size, seed, shuffle=shuffle)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(chain(*batches)) == list(range(num))
        sizes: dict[Any, set[int]] = {}
        for batch in batches:
            directions = {of[i] for i in batch}
            assert len({subgroup for subgroup, *_ in directions}) == 1
            frequent = {of[i] for i in batch if of[i][0] == "bitext" and how_many[of[i]] >= batch_size}
            assert not frequent or directions == frequent
            assert len(frequent) <= 1
            sizes.setdefault((of[batch[0]][0], *frequent), set()).add(len(batch))
        assert all(max(of_group) - min(of_group) <= 1 and max(of_group) <= batch_size for of_group in sizes.values())
        parts = [
            list(ContrastiveBatchSampler(rows, batch_size, seed, shuffle=shuffle, rank=i, world_size=world_size))
            for i in range(world_size)
        ]
        assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == batches


@pytest.mark.parametrize("popular", [False, True])
def test_an_epoch_of_many_rows_is_a_matter_of_seconds(popular: bool) -> None:
    """100,000 rows: half a second, and about three where a few texts are everywhere."""
    num, rng = 100_000, random.Random(0)

    def label(i: int) -> str:
        return f"label {int(rng.paretovariate(0.7)) % 1_000 if popular else i % 30_000}"

    columns = {name: [label(i) for i in range(num)] for name in ("positive", *(["negative"] if popular else []))}
    rows = distinct_rows(["short-long"] * num, **columns)
    sampler = ContrastiveBatchSampler(rows, 2_048)
    start = time.process_time()
    batches = list(sampler)
    assert time.process_time() - start < 20
    assert len(batches) == 49
    if not popular:
        assert _most_often(rows.select(batches[0]), [list(range(len(batches[0])))]) == 1
