"""From rows of one subgroup to tensors: which texts, in which order, ending how."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from datasets import Dataset

import trainer.collator
from dataset_builder.errors import RunError
from dataset_builder.schema import instruct
from tests.tiny_datasets import example
from tests.tiny_models import tiny_tokenizer
from trainer.collator import ContrastiveCollator, known_positives
from trainer.eos import ensure_eos


def _collate(rows: list[dict[str, Any]], max_seq_length: int = 64, family: str = "qwen3") -> dict[str, Any]:
    return ContrastiveCollator(ensure_eos(tiny_tokenizer(family)), max_seq_length)(rows)


def _texts(batch: dict[str, Any], family: str = "qwen3") -> list[str]:
    tokenizer = tiny_tokenizer(family)
    rows = zip(batch["input_ids"], batch["lengths"], strict=True)
    return [str(tokenizer.decode(ids[:length])) for ids, length in rows]


def test_queries_carry_the_instruction_and_documents_are_bare() -> None:
    rows = [example("short-long", 0), example("short-long", 1)]
    batch = _collate(rows)
    expected = [instruct(row["instruction"], row["query"]) for row in rows]
    expected += [row[name] for name in ("positive", "negative") for row in rows]
    assert _texts(batch) == [text + "<|endoftext|>" for text in expected]
    assert not batch["symmetric"]


@pytest.mark.parametrize("subgroup", ["sts", "bitext"])
def test_both_sides_of_symmetric_subgroups_carry_it(subgroup: str) -> None:
    rows = [example(subgroup, 0), example(subgroup, 1)]
    batch = _collate(rows)
    texts = [row[name] for name in ("query", "positive", "negative") for row in rows]
    assert _texts(batch) == [instruct(rows[0]["instruction"], text) + "<|endoftext|>" for text in texts]
    assert batch["symmetric"]


def test_only_the_negatives_that_exist() -> None:
    rows = [example("sts", 0), example("sts", 1) | {"negative": None}, example("sts", 2) | {"negative": ["one", "two"]}]
    batch = _collate(rows)
    texts = [rows[0]["negative"], "one", "two"]
    assert _texts(batch)[6:] == [instruct(rows[0]["instruction"], text) + "<|endoftext|>" for text in texts]
    assert len(batch["negative_keys"]) == 3


def test_no_negatives_at_all() -> None:
    batch = _collate([example("short-long", i) | {"negative": None} for i in range(2)])
    assert len(batch["input_ids"]) == 4
    assert batch["negative_keys"].shape == (0,)


@pytest.mark.parametrize("num_negatives", [0, 1, 3])
def test_lists_of_negatives(num_negatives: int) -> None:
    rows = [example("long-long", i) for i in range(3)]
    for i, row in enumerate(rows):
        row["negative"] = [f"negative {i} {j}" for j in range(num_negatives)]
    batch = _collate(rows)
    negatives = [text for row in rows for text in row["negative"]]
    assert _texts(batch)[6:] == [text + "<|endoftext|>" for text in negatives]
    assert len(set(batch["negative_keys"].tolist())) == len(batch["negative_keys"]) == 3 * num_negatives


def test_one_negative_and_a_list_of_one_are_the_same() -> None:
    rows = [example("sts", i) for i in range(3)]
    batch, listed = _collate(rows), _collate([row | {"negative": [row["negative"], None]} for row in rows])
    assert set(batch) == set(listed)
    assert all(torch.equal(batch[name], listed[name]) for name in batch)


def test_no_rows() -> None:
    batch = _collate([])
    assert batch["input_ids"].shape == (0, 1)
    assert all(len(batch[name]) == 0 for name in ("lengths", "query_keys", "positive_keys", "negative_keys"))
    assert batch["known_positives"].shape == (0, 2)
    assert {value.dtype for name, value in batch.items() if name != "symmetric"} == {torch.int64}
    assert not batch["symmetric"]
    assert set(batch) == set(_collate([example("sts", 0)]))


@pytest.mark.parametrize("family", ["llama2", "llama3", "qwen3", "gemma3", "xlm-roberta", "bert"])
@pytest.mark.parametrize("max_seq_length", [8, 24, 200])
def test_every_row_ends_in_the_eos(family: str, max_seq_length: int) -> None:
    batch = _collate([example("short-long", i) for i in range(5)], max_seq_length, family)
    eos = ensure_eos(tiny_tokenizer(family)).eos_token_id
    ids, lengths = batch["input_ids"], batch["lengths"]
    assert ids.dtype == lengths.dtype == torch.int64
    assert ids.shape == (15, lengths.max())
    assert ids.shape[1] <= max_seq_length
    assert (ids[torch.arange(15), lengths - 1] == eos).all()
    assert (ids[torch.arange(15), lengths - 2] != eos).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stands_on_the_right_whatever_the_tokenizer_says(side: str) -> None:
    tokenizer = ensure_eos(tiny_tokenizer("qwen3"))
    tokenizer.padding_side = side
    batch = ContrastiveCollator(tokenizer, 64)([example("short-long", i) for i in range(3)])
    assert torch.equal(batch["input_ids"], _collate([example("short-long", i) for i in range(3)])["input_ids"])


def test_a_text_that_does_not_end_in_the_eos_is_told() -> None:
    with pytest.raises(RunError, match=r"The text 'Instruct: .*' ends in token \d+, not in the EOS \(\d+\)"):
        ContrastiveCollator(tiny_tokenizer("qwen3"), 64)([example("short-long", 0)])


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
    assert batch["negative_keys"].tolist() == [other, a]


def test_known_positives() -> None:
    """Those of the whole dataset, for queries that have several."""
    texts = [("q", "one"), ("q", "two"), ("r", "three"), ("q", "one"), ("s", "one"), ("s", "two")]
    rows = [
        example("short-long", i) | {"query": query, "positive": positive} for i, (query, positive) in enumerate(texts)
    ]
    known = known_positives(Dataset.from_list(rows))
    assert len(known) == 2
    assert known_positives(Dataset.from_list(rows[1:3])) == {}
    batch = ContrastiveCollator(ensure_eos(tiny_tokenizer("qwen3")), 64, known)([rows[2], rows[0], rows[5]])
    one, two = batch["positive_keys"][1:].tolist()
    assert batch["known_positives"].tolist() == [[1, one], [1, two], [2, one], [2, two]]


def test_collating_rows_of_a_dataset() -> None:
    rows = Dataset.from_list([example("sts", 0), example("sts", 1) | {"negative": None}])
    assert len(_collate([rows[0], rows[1]])["negative_keys"]) == 1


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(trainer.collator).attempted > 5
    assert not doctest.testmod(trainer.collator).failed
