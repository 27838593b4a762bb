"""From rows of one subgroup to one block of token ids, with what identifies the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dataset_builder.errors import RunError
from dataset_builder.schema import SYMMETRIC, instruct
from trainer.batches import column_keys, text_keys
from trainer.data import negatives_of


def known_positives(rows: Dataset) -> dict[int, list[int]]:
    """Return the keys of all positives of a query by the key of the query, for queries that have several.

    Args:
        rows: a dataset with the columns `query` and `positive`; texts are equal if they are but for the space around them.

    Returns:
        int64 keys as of `text_keys`; the positives of a query in the order of the rows, each once.
    """
    queries, positives = column_keys(rows, "query"), column_keys(rows, "positive")
    _, inverse, counts = np.unique(queries, return_inverse=True, return_counts=True)
    recurs = counts[inverse] > 1
    found: dict[int, dict[int, None]] = {}
    for query, positive in zip(queries[recurs].tolist(), positives[recurs].tolist(), strict=True):
        found.setdefault(query, {})[positive] = None
    return {query: list(of_query) for query, of_query in found.items() if len(of_query) > 1}


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
    >>> collate = ContrastiveCollator(ensure_eos(tokenizer), max_seq_length=3)
    >>> rows = [
    ...     {"query": "a", "positive": "b c", "negative": "d", "instruction": "t", "subgroup": "short-long"},
    ...     {"query": "e", "positive": "f", "negative": None, "instruction": "t", "subgroup": "short-long"},
    ... ]
    >>> batch = collate(rows)
    >>> batch["input_ids"]  # two queries (cut to three tokens), two positives, a negative; each with its EOS (0)
    tensor([[2, 2, 0],
            [2, 2, 0],
            [4, 5, 0],
            [8, 0, 1],
            [6, 0, 1]])
    >>> batch["lengths"]
    tensor([3, 3, 3, 2, 2])

    Args:
        tokenizer: one that keeps the EOS contract (`trainer.eos`).
        max_seq_length: longest text in tokens, its EOS included.
        known_positives: keys of all positives of a query by the key of the query, see the function of this name.
    """

    tokenizer: PreTrainedTokenizerBase
    max_seq_length: int
    known_positives: Mapping[int, Sequence[int]] | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch; `negative` of a row may be a text, a list of texts, or None, and `rows` may be empty.

        - `input_ids` (texts, longest) int64, padded on the right: all queries, all positives, all negatives that there are.
        - `lengths` (texts,) int64, tokens of each text with its EOS.
        - `query_keys` and `positive_keys` (rows,), `negative_keys` (negatives,) int64, equal for equal texts.
        - `known_positives` (pairs, 2) int64: a row and the key of a text that is known as a positive of its query.
        - `symmetric`, a bool scalar; False if there are no rows, which then says nothing about the batch of all processes.

        Raises:
            RunError: if a text does not end in the EOS.
        """
        symmetric = bool(rows) and rows[0]["subgroup"] in SYMMETRIC
        queries, positives = [row["query"] for row in rows], [row["positive"] for row in rows]
        negatives = [(row, text) for row in rows for text in negatives_of(row)]
        documents = [*zip(rows, positives, strict=True), *negatives]
        texts = [instruct(row["instruction"], row["query"]) for row in rows]
        texts += [instruct(row["instruction"], text) if symmetric else text for row, text in documents]
        query_keys = torch.from_numpy(text_keys(queries))
        known = self.known_positives or {}
        pairs = [(i, key) for i, query in enumerate(query_keys.tolist()) for key in known.get(query, ())]
        return self._encode(texts) | {
            "query_keys": query_keys,
            "positive_keys": torch.from_numpy(text_keys(positives)),
            "negative_keys": torch.from_numpy(text_keys(text for _, text in negatives)),
            "known_positives": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
            "symmetric": torch.tensor(symmetric),
        }

    def _encode(self, texts: list[str]) -> dict[str, Tensor]:
        if not texts:
            return {"input_ids": torch.zeros((0, 1), dtype=torch.int64), "lengths": torch.zeros(0, dtype=torch.int64)}
        encoded = self.tokenizer(
            texts,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.max_seq_length,
            return_tensors="pt",
            return_token_type_ids=False,
            return_attention_mask=True,
        )
        # (texts, longest)
        ids, lengths = encoded["input_ids"], encoded["attention_mask"].sum(dim=1)
        last = ids[torch.arange(len(ids)), lengths - 1]
        if bad := torch.nonzero(last != self.tokenizer.eos_token_id).flatten().tolist():
            raise RunError(
                f"The text {texts[bad[0]][:60]!r} ends in token {int(last[bad[0]])}, not in the EOS "
                f"({self.tokenizer.eos_token_id}); the embedding is taken there. Has the tokenizer been changed?"
            )
        return {"input_ids": ids, "lengths": lengths}
