"""Which rows make a batch: for any data, seed, epoch and number of processes."""

from __future__ import annotations

import random
import time
from collections import Counter
from itertools import chain
from typing import Any

import pytest
from accelerate import skip_first_batches
from datasets import Dataset

from trainer.batches import ContrastiveBatchSampler
from trainer.contrastive import BatchLoader

SUBGROUPS = ["short-long"] * 23 + ["sts"] * 9 + ["bitext"] * 1 + ["short-long"] * 10 + ["sts"] * 7


def _rows(subgroups: list[str], **columns: list[Any]) -> Dataset:
    """Rows whose texts are all different, but for the columns that are given."""
    num = len(subgroups)
    texts = {name: [f"{name} {i}" for i in range(num)] for name in ("query", "positive", "negative")}
    return Dataset.from_dict(
        {**texts, "language": ["en"] * num, "positive_language": ["de"] * num, "subgroup": subgroups} | columns
    )


def _sampler(subgroups: list[str], batch_size: int, seed: int = 0, **arguments: Any) -> ContrastiveBatchSampler:
    return ContrastiveBatchSampler(_rows(subgroups), batch_size, seed, **arguments)


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


def test_without_shuffling_the_order_is_that_of_the_rows() -> None:
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
    rows = _rows(["short-long"] * num, query=queries, positive=positives, negative=negatives)
    sampler = ContrastiveBatchSampler(rows, batch_size, seed)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(row for batch in batches for row in batch) == list(range(num))
        assert {len(batch) for batch in batches} == {batch_size}
        assert _most_often(rows, batches) == 1


def test_what_must_recur_is_spread_evenly() -> None:
    """Five labels over 200 rows in batches of 16: each batch has each about three times."""
    labels = [f"label {i % 5}" for i in range(200)]
    rows = _rows(
        ["long-short"] * 200, positive=labels, negative=[f"label {(i + 1 + i // 5 % 4) % 5}" for i in range(200)]
    )
    for batch in ContrastiveBatchSampler(rows, 16):
        counts = Counter(labels[i] for i in batch)
        assert max(counts.values()) - min(counts.values()) <= 2


def test_missing_and_several_negatives() -> None:
    negatives = [["same", f"n {i}"] if i % 2 else [] for i in range(12)]
    rows = _rows(["sts"] * 12, negative=negatives)
    for batch in ContrastiveBatchSampler(rows, 2):  # six rows have it, and there are six batches
        assert sum("same" in negatives[i] for i in batch) == 1


# Directions


def test_a_direction_with_rows_enough_makes_batches_of_its_own() -> None:
    rng = random.Random(0)
    directions = [("en", "de")] * 20 + [("de", "en")] * 9 + [(a, b) for a in "fghij" for b in ("xx", "yy", "zz")]
    rng.shuffle(directions)
    languages, targets = (list(column) for column in zip(*directions, strict=True))
    sampler = ContrastiveBatchSampler(
        _rows(["bitext"] * len(directions), language=languages, positive_language=targets), 8
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


# Processes and resuming


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_processes_share_the_batches_of_one(world_size: int) -> None:
    whole = list(_sampler(SUBGROUPS, 8, 3))
    parts = [list(_sampler(SUBGROUPS, 8, 3, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole
    for batch in zip(*parts, strict=True):
        assert max(map(len, batch)) - min(map(len, batch)) <= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipping_batches_goes_on_where_the_epoch_was_left(num_workers: int) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(
            range(len(SUBGROUPS)),  # type: ignore[arg-type]
            batch_sampler=_sampler(SUBGROUPS, 8, 3),
            collate_fn=list,
            num_workers=num_workers,
        )

    whole = loader()
    whole.set_epoch(2)
    resumed = skip_first_batches(loader(), 3)
    resumed.batch_sampler.batch_sampler.set_epoch(2)  # as transformers' Trainer does
    assert list(resumed) == list(whole)[3:]


def test_half_a_million_rows() -> None:
    """About 20 s on two slow cores would be too long; it is a few."""
    num = 100_000
    rows = _rows(["short-long"] * num, positive=[f"label {i % 30_000}" for i in range(num)])
    sampler = ContrastiveBatchSampler(rows, 2_048)
    start = time.process_time()
    batches = list(sampler)
    assert time.process_time() - start < 20
    assert len(batches) == 49
    assert _most_often(rows.select(batches[0]), [list(range(len(batches[0])))]) == 1
