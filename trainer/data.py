"""From a dataset folder or Hub dataset to batches of one subgroup each."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value, concatenate_datasets, get_dataset_config_names, load_dataset
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from dataset_builder.errors import InputError
from dataset_builder.schema import SUBGROUPS, SYMMETRIC, TRAIN_COLUMNS, Subgroup, instruct
from trainer.base_model import files_digest


def dataset_revision(dataset_name: str, revision: str | None = None) -> str:
    """Return 40 hex digits that name the state of a dataset: its commit on the Hub, or a digest of a folder's data files."""
    folder = Path(dataset_name)
    if folder.is_dir():
        return files_digest(folder, ("**/*.parquet", "**/*.json*", "**/*.csv", "**/*.arrow"))[:40]
    return str(HfApi().dataset_info(dataset_name, revision=revision).sha)


def dataset_subgroups(dataset_name: str, revision: str | None = None) -> list[Subgroup]:
    """Return the subgroups that a dataset has configs for, in the order of `SUBGROUPS`.

    Raises:
        InputError: if there is no such dataset, or it has none of the subgroups.
    """
    try:
        configs = get_dataset_config_names(dataset_name, revision=revision)
    except (OSError, ValueError, DatasetNotFoundError, DataFilesNotFoundError) as error:  # no folder, no name, no Hub
        raise InputError(
            f"`dataset_name` is '{dataset_name}', which is neither a dataset folder nor a dataset on the Hub "
            f"({type(error).__name__}); run `embedsmith curate`, or give --dataset_name."
        ) from None
    known: list[Subgroup] = [subgroup for subgroup in SUBGROUPS if subgroup in configs]
    if not known:
        raise InputError(
            f"The dataset {dataset_name} has none of the configs {', '.join(SUBGROUPS)}; it has {', '.join(configs)}."
        )
    return known


def load_split(dataset_name: str, split: str, subgroup: Subgroup, revision: str | None = None) -> Dataset | None:
    """Return the rows of one subgroup and split with all their columns, or None if there is no such split.

    Raises:
        InputError: if a column that training needs is missing.
    """
    try:
        splits = load_dataset(dataset_name, subgroup, revision=revision)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise InputError(
            f"Config '{subgroup}' of {dataset_name} cannot be read ({' '.join(str(error).split())[:200]}); run `embedsmith "
            "curate` again, or download it again."
        ) from None
    if split not in splits:
        return None
    rows: Dataset = splits[split]
    if missing := [column for column in TRAIN_COLUMNS if column not in rows.column_names]:
        raise InputError(
            f"Config '{subgroup}' of {dataset_name} lacks the column '{missing[0]}'; training needs "
            f"{', '.join(TRAIN_COLUMNS)}, and found {', '.join(rows.column_names)}."
        )
    rows = rows.cast(Features({**rows.features, **dict.fromkeys(TRAIN_COLUMNS, Value("string"))}))
    for column in TRAIN_COLUMNS:
        if column != "negative" and None in rows[column][:]:
            raise InputError(
                f"Config '{subgroup}' of {dataset_name} has a row without `{column}`; only `negative` may be missing."
            )
    return rows


def load_examples(
    dataset_name: str, split: str, subgroups: list[str] | None = None, revision: str | None = None
) -> Dataset:
    """Return the examples of a split with the columns that training needs, and a column `subgroup`.

    Raises:
        InputError: if the dataset, a subgroup or a column is missing. A split that no subgroup has gives no rows.
    """
    known = dataset_subgroups(dataset_name, revision)
    if missing := [subgroup for subgroup in subgroups or [] if subgroup not in known]:
        raise InputError(f"The dataset {dataset_name} has no config '{missing[0]}'; it has {', '.join(known)}.")
    parts = []
    for subgroup in known:
        if subgroups and subgroup not in subgroups:
            continue
        rows = load_split(dataset_name, split, subgroup, revision)
        if rows is not None:
            part = rows.select_columns(list(TRAIN_COLUMNS))
            parts.append(part.add_column("subgroup", [subgroup] * len(part)))
    if not parts:
        empty: dict[str, list[str]] = {column: [] for column in (*TRAIN_COLUMNS, "subgroup")}
        return Dataset.from_dict(empty)
    return concatenate_datasets(parts)


class SubgroupBatchSampler(Sampler[list[int]]):
    """Batches of one subgroup each; every example once an epoch; the order a function of (seed, epoch) only.

    The last rows of a subgroup are spread over its batches instead of making one small batch with few negatives.

    Args:
        subgroups: subgroup of each row.
        batch_size: rows in a batch at most.
        seed: seed of the order.
        shuffle: False keeps the order of the rows, for evaluation.
    """

    def __init__(self, subgroups: list[str], batch_size: int, seed: int = 0, *, shuffle: bool = True) -> None:
        self.batch_size, self.seed, self.shuffle, self.epoch = batch_size, seed, shuffle, 0
        self.drop_last = False  # read by accelerate
        self._rows: dict[str, list[int]] = {}
        for row, subgroup in enumerate(subgroups):
            self._rows.setdefault(subgroup, []).append(row)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate calls this at the start of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(rows) // self.batch_size) for rows in self._rows.values())

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        batches = []
        for rows in self._rows.values():
            order = rng.sample(rows, len(rows)) if self.shuffle else rows
            num_batches = -(-len(rows) // self.batch_size)
            edges = [len(rows) * i // num_batches for i in range(num_batches + 1)]
            batches += [order[start:end] for start, end in pairwise(edges)]
        if self.shuffle:
            rng.shuffle(batches)
        yield from batches


@dataclass
class ContrastiveCollator:
    """Turns rows of one subgroup into tensors.

    Queries carry the instruction, documents are bare; in the symmetric subgroups (sts, bitext) both sides carry it.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> from trainer.eos import ensure_eos
    >>> words = Tokenizer(models.WordLevel({w: i for i, w in enumerate("</s> <pad> <unk> a b c d e f".split())}, "<unk>"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    >>> collate = ContrastiveCollator(ensure_eos(tokenizer), max_seq_length=8)
    >>> rows = [
    ...     {"query": "a", "positive": "b c", "negative": "d", "instruction": "t", "subgroup": "short-long"},
    ...     {"query": "e", "positive": "f", "negative": None, "instruction": "t", "subgroup": "short-long"},
    ... ]
    >>> collate(rows)["positive_input_ids"]  # each row ends in the EOS (0), then padding (1)
    tensor([[4, 5, 0],
            [8, 0, 1]])

    Args:
        tokenizer: one that keeps the EOS contract (`trainer.eos`).
        max_seq_length: longest text in tokens, its EOS included.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `{query,positive,negative}_{input_ids,attention_mask}`, each (texts, length) int64, and text keys.

        The negative tensors hold only the negatives that exist, and are left out if no row has one. `query_keys`,
        `positive_keys` and `candidate_keys` are (texts,) int64, equal for equal texts; `symmetric` is a bool scalar.
        """
        symmetric = rows[0]["subgroup"] in SYMMETRIC
        queries = [instruct(row["instruction"], row["query"]) for row in rows]
        documents = [(row["positive"], row["instruction"]) for row in rows]
        negatives = [(row["negative"], row["instruction"]) for row in rows if row["negative"] is not None]
        texts = {
            "query": queries,
            "positive": [instruct(task, text) if symmetric else text for text, task in documents],
            "negative": [instruct(task, text) if symmetric else text for text, task in negatives],
        }
        batch: dict[str, Tensor] = {}
        for name, column in texts.items():
            if column:
                encoded = self.tokenizer(
                    column,
                    padding=True,
                    truncation=True,
                    max_length=self.max_seq_length,
                    return_tensors="pt",
                    return_token_type_ids=False,
                )
                batch |= {f"{name}_{key}": value for key, value in encoded.items()}
        batch["query_keys"] = _keys([row["query"] for row in rows])
        batch["positive_keys"] = _keys([text for text, _ in documents])
        batch["candidate_keys"] = _keys([text for text, _ in documents + negatives])
        batch["symmetric"] = torch.tensor(symmetric)
        return batch


def _keys(texts: list[str]) -> Tensor:
    digests = (hashlib.blake2b(text.strip().encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, signed=True) for digest in digests], dtype=torch.int64)
