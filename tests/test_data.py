"""From a dataset folder to batches: which examples, in which batches, with which texts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from dataset_builder.errors import InputError
from dataset_builder.schema import TRAIN_COLUMNS, instruct
from tests.tiny_datasets import example, write_dataset
from tests.tiny_models import tiny_tokenizer
from trainer.data import ContrastiveCollator, SubgroupBatchSampler, dataset_subgroups, load_examples
from trainer.eos import ensure_eos

SUBGROUPS = ["short-long"] * 23 + ["sts"] * 9 + ["bitext"] * 1 + ["short-long"] * 10 + ["sts"] * 7


# Batches


@pytest.mark.parametrize("batch_size", [1, 2, 8, 16, 100])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_hold_one_subgroup_and_every_row_once(batch_size: int, shuffle: bool) -> None:
    sampler = SubgroupBatchSampler(SUBGROUPS, batch_size, shuffle=shuffle)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(SUBGROUPS)))
    assert len(sampler) == len(batches)
    for batch in batches:
        assert len({SUBGROUPS[row] for row in batch}) == 1
        assert 0 < len(batch) <= batch_size


@pytest.mark.parametrize("batch_size", [2, 8, 16, 100])
def test_batches_of_a_subgroup_are_of_equal_size(batch_size: int) -> None:
    sizes: dict[str, list[int]] = {}
    for batch in SubgroupBatchSampler(SUBGROUPS, batch_size):
        sizes.setdefault(SUBGROUPS[batch[0]], []).append(len(batch))
    for subgroup, of_subgroup in sizes.items():
        assert max(of_subgroup) - min(of_subgroup) <= 1
        assert len(of_subgroup) == -(-SUBGROUPS.count(subgroup) // batch_size)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int, before: tuple[int, ...] = ()) -> list[list[int]]:
        sampler = SubgroupBatchSampler(SUBGROUPS, 8, seed)
        for earlier in before:
            sampler.set_epoch(earlier)
            list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 3) == order(1, 3, before=(0, 1, 2))
    different = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(one != other for i, one in enumerate(different) for other in different[:i])


def test_batches_are_made_anew_each_epoch() -> None:
    sampler = SubgroupBatchSampler(["sts"] * 64, 8)
    first = {frozenset(batch) for batch in sampler}
    sampler.set_epoch(1)
    assert not first & {frozenset(batch) for batch in sampler}


def test_subgroups_are_mixed() -> None:
    sampler = SubgroupBatchSampler(["sts"] * 64 + ["bitext"] * 64, 8)
    assert Counter(batch[0] < 64 for batch in list(sampler)[:8]).most_common(1)[0][1] < 8


def test_without_shuffling_the_order_is_that_of_the_rows() -> None:
    sampler = SubgroupBatchSampler(["sts", "bitext", "sts", "sts", "sts"], 2, shuffle=False)
    assert list(sampler) == [[0, 2], [3, 4], [1]]
    sampler.set_epoch(1)
    assert list(sampler) == [[0, 2], [3, 4], [1]]


def test_no_rows_give_no_batches() -> None:
    assert list(SubgroupBatchSampler([], 8)) == []


# The collator


def _collate(rows: list[dict[str, Any]], max_seq_length: int = 64, family: str = "qwen3") -> dict[str, Any]:
    return ContrastiveCollator(ensure_eos(tiny_tokenizer(family)), max_seq_length)(rows)


def _texts(batch: dict[str, Any], name: str, family: str = "qwen3") -> list[str]:
    tokenizer = tiny_tokenizer(family)
    rows = zip(batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"], strict=True)
    return [str(tokenizer.decode(ids[mask.bool()])) for ids, mask in rows]


def test_queries_carry_the_instruction_and_documents_are_bare() -> None:
    rows = [example("short-long", 0), example("short-long", 1)]
    batch = _collate(rows)
    eos = "<|endoftext|>"
    assert _texts(batch, "query") == [instruct(row["instruction"], row["query"]) + eos for row in rows]
    assert _texts(batch, "positive") == [row["positive"] + eos for row in rows]
    assert _texts(batch, "negative") == [row["negative"] + eos for row in rows]
    assert not batch["symmetric"]


@pytest.mark.parametrize("subgroup", ["sts", "bitext"])
def test_both_sides_of_symmetric_subgroups_carry_it(subgroup: str) -> None:
    rows = [example(subgroup, 0), example(subgroup, 1)]
    batch = _collate(rows)
    for name in ("query", "positive", "negative"):
        assert _texts(batch, name) == [instruct(row["instruction"], row[name]) + "<|endoftext|>" for row in rows]
    assert batch["symmetric"]


def test_only_the_negatives_that_exist() -> None:
    rows = [example("sts", 0), example("sts", 1) | {"negative": None}, example("sts", 2)]
    batch = _collate(rows)
    assert _texts(batch, "negative") == [
        instruct(rows[i]["instruction"], rows[i]["negative"]) + "<|endoftext|>" for i in (0, 2)
    ]
    assert len(batch["candidate_keys"]) == 3 + 2


def test_no_negatives_at_all() -> None:
    batch = _collate([example("short-long", i) | {"negative": None} for i in range(2)])
    assert not any(name.startswith("negative") for name in batch)
    assert batch["candidate_keys"].tolist() == batch["positive_keys"].tolist()


@pytest.mark.parametrize("family", ["llama2", "llama3", "qwen3", "gemma3", "xlm-roberta", "bert"])
@pytest.mark.parametrize("max_seq_length", [8, 24, 200])
def test_every_row_ends_in_the_eos(family: str, max_seq_length: int) -> None:
    batch = _collate([example("short-long", i) for i in range(5)], max_seq_length, family)
    eos = ensure_eos(tiny_tokenizer(family)).eos_token_id
    for name in ("query", "positive", "negative"):
        ids, mask = batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"]
        assert ids.dtype == mask.dtype == torch.int64
        assert ids.shape == mask.shape
        assert ids.shape[1] <= max_seq_length
        lengths = mask.sum(dim=1)
        assert (mask == (torch.arange(mask.shape[1]) < lengths[:, None])).all()
        assert (ids[torch.arange(5), lengths - 1] == eos).all()
        assert (ids[torch.arange(5), lengths - 2] != eos).all()


def test_names_of_the_tensors() -> None:
    names = {f"{name}_{part}" for name in ("query", "positive", "negative") for part in ("input_ids", "attention_mask")}
    keys = {"query_keys", "positive_keys", "candidate_keys", "symmetric"}
    assert set(_collate([example("sts", 0)], family="bert")) == names | keys


def test_keys_are_equal_for_equal_texts() -> None:
    rows = [
        example("long-short", 0) | {"query": "a", "positive": "label", "negative": "other"},
        example("long-short", 1) | {"query": "b", "positive": " label\n", "negative": None},
        example("long-short", 2) | {"query": "label", "positive": "other", "negative": "a"},
    ]
    batch = _collate(rows)
    a, b, label = batch["query_keys"].tolist()
    other = batch["positive_keys"][2].item()
    assert len({a, b, label, other}) == 4
    assert batch["positive_keys"].tolist() == [label, label, other]
    assert batch["candidate_keys"].tolist() == [label, label, other, other, a]
    assert batch["candidate_keys"].dtype == torch.int64


# Loading


def test_load_examples(tmp_path: Path) -> None:
    rows = {"sts": [example("sts", i) for i in range(3)], "short-long": [example("short-long", i) for i in range(4)]}
    folder = write_dataset(tmp_path, rows | {"sts/test": [example("sts", 9)]})
    examples = load_examples(str(folder), "train")
    assert examples.column_names == [*TRAIN_COLUMNS, "subgroup"]
    assert examples["subgroup"] == ["short-long"] * 4 + ["sts"] * 3
    assert examples["query"] == [row["query"] for name in ("short-long", "sts") for row in rows[name]]
    assert load_examples(str(folder), "test")["query"] == [example("sts", 9)["query"]]
    assert load_examples(str(folder), "train", ["sts"])["query"] == [row["query"] for row in rows["sts"]]
    assert dataset_subgroups(str(folder)) == ["short-long", "sts"]


def test_a_split_that_is_nowhere_has_no_rows(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"sts": [example("sts", 0)]})
    examples = load_examples(str(folder), "test")
    assert len(examples) == 0
    assert examples.column_names == [*TRAIN_COLUMNS, "subgroup"]


def test_a_subgroup_without_negatives_stands_beside_others(tmp_path: Path) -> None:
    bare = [example("short-short", i) | {"negative": None} for i in range(2)]
    folder = write_dataset(tmp_path, {"short-short": bare, "sts": [example("sts", 0)]}, typed=False)
    assert load_examples(str(folder), "train")["negative"] == [None, None, example("sts", 0)["negative"]]


@pytest.mark.parametrize("name", ["no/such-dataset", "no-such-folder/data/set", "not a name"])
def test_missing_dataset(name: str) -> None:
    with pytest.raises(InputError, match=f"`dataset_name` is '{name}', which is neither"):
        load_examples(name, "train")


def test_foreign_configs(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"pairs": [example("sts", 0)], "triplets": [example("sts", 1)]})
    with pytest.raises(InputError, match=r"none of the configs short-long, .*; it has pairs, triplets"):
        load_examples(str(folder), "train")


def test_a_folder_of_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(InputError, match=str(tmp_path)):
        load_examples(str(tmp_path), "train")


@pytest.mark.parametrize("column", TRAIN_COLUMNS)
def test_missing_column(tmp_path: Path, column: str) -> None:
    row = {name: text for name, text in example("sts", 0).items() if name != column}
    folder = write_dataset(tmp_path, {"sts": [row]})
    with pytest.raises(InputError, match=f"Config 'sts' of .* lacks the column '{column}'; training needs"):
        load_examples(str(folder), "train")


def test_unknown_subgroup(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"sts": [example("sts", 0)]})
    with pytest.raises(InputError, match=r"has no config 'bitext'; it has sts"):
        load_examples(str(folder), "train", ["sts", "bitext"])


def test_a_broken_file(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"sts": [example("sts", 0)]})
    (folder / "sts" / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=str(folder)):
        load_examples(str(folder), "train")


def test_collating_rows_of_a_dataset() -> None:
    rows = Dataset.from_list([example("sts", 0), example("sts", 1) | {"negative": None}])
    assert len(_collate([rows[0], rows[1]])["candidate_keys"]) == 3
