"""InfoNCE over in-batch and hard negatives, on cosine similarity, in memory that is linear in the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Mask = Callable[[int, int], Tensor]
"""From the first and behind the last of some queries to which candidates stay out: (queries, candidates) bool."""
_LOGITS_AT_ONCE = 1 << 22
"""Similarities that are held at once: 16 MiB in float32, a few times over."""


class InfoNCE(NamedTuple):
    """The loss with what one looks at while training; all are scalars.

    Attributes:
        loss: mean cross-entropy over the queries.
        recall_at_1: share of the queries whose positive is nearer than every unmasked candidate.
        mrr: mean reciprocal rank of the positive among the unmasked candidates.
        positive_similarity: mean cosine of query and positive.
        negative_similarity: mean cosine of query and unmasked other candidates.
        hard_negative_similarity: mean cosine of query and unmasked hard negatives of any row; NaN if there are none.
        masked_share: share of the other candidates that are masked.
    """

    loss: Tensor
    recall_at_1: Tensor
    mrr: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    hard_negative_similarity: Tensor
    masked_share: Tensor


@dataclass
class Texts:
    """The texts of one global batch as the loss sees them.

    Attributes:
        queries: (batch, dim) embeddings of any length.
        positives: (batch, dim); row i belongs to query i.
        negatives: (negatives, dim), the hard negatives of all rows.
        query_keys: (batch,) int64, equal for equal texts.
        positive_keys: (batch,) int64.
        negative_keys: (negatives,) int64.
        known_positives: (pairs, 2) int64, rows and keys of further texts that are known as positives of the row's query.
        symmetric: whether positives are queries, too.
    """

    queries: Tensor
    positives: Tensor
    negatives: Tensor
    query_keys: Tensor
    positive_keys: Tensor
    negative_keys: Tensor
    known_positives: Tensor
    symmetric: bool = False


def contrastive_loss(texts: Texts, *, temperature: float, dims: list[int] | None = None) -> InfoNCE:
    """Return the loss of a batch: `info_nce` of its queries, in symmetric batches averaged with that of its positives.

    Args:
        texts: the embeddings of the global batch, with what identifies their texts.
        temperature: divisor of the cosine similarity.
        dims: Matryoshka dimensions; the loss is the mean over the embeddings cut to each (Kusupati et al. 2022). The other
            figures are those of the whole embedding. None: the whole embedding only.
    """
    width = texts.queries.shape[1]
    whole, *cut = [_both_ways(texts, dim, temperature) for dim in [width, *(d for d in dims or [] if d != width)]]
    if not cut:
        return whole
    return whole._replace(loss=torch.stack([whole.loss, *(result.loss for result in cut)]).mean())


def _both_ways(texts: Texts, dim: int, temperature: float) -> InfoNCE:
    queries, positives = texts.queries[:, :dim], texts.positives[:, :dim]
    negatives = texts.negatives[:, :dim]
    known = with_equal_queries(texts.query_keys, texts.positive_keys, texts.known_positives)
    candidate_keys = torch.cat([texts.positive_keys, texts.negative_keys])
    mask = FalseNegatives(texts.query_keys, texts.positive_keys, candidate_keys, known).rows
    # (batch + negatives, dim): every positive, then every hard negative
    forth = info_nce(queries, torch.cat([positives, negatives]), temperature=temperature, mask=mask)
    if not texts.symmetric:
        return forth
    candidate_keys = torch.cat([texts.query_keys, texts.negative_keys])
    known = with_equal_queries(texts.positive_keys, texts.query_keys, known[:0])
    mask = FalseNegatives(texts.positive_keys, texts.query_keys, candidate_keys, known).rows
    # (batch + negatives, dim): every query, then every hard negative
    back = info_nce(positives, torch.cat([queries, negatives]), temperature=temperature, mask=mask)
    return InfoNCE(*((one + other) / 2 for one, other in zip(forth, back, strict=True)))


def with_equal_queries(query_keys: Tensor, positive_keys: Tensor, known: Tensor) -> Tensor:
    """Return `known` with the positives that rows of the batch with an equal query have.

    Args:
        query_keys: (batch,) int64.
        positive_keys: (batch,) int64.
        known: (pairs, 2) int64, rows and keys of their positives.
    """
    _, group, size = torch.unique(query_keys, return_inverse=True, return_counts=True)
    rows = torch.nonzero(size[group] > 1).flatten()
    if not len(rows):
        return known
    one, other = torch.nonzero(group[rows][:, None] == group[rows][None, :]).T
    return torch.cat([known, torch.stack([rows[one], positive_keys[rows[other]]], dim=1)])


@dataclass
class FalseNegatives:
    """Tells which candidates are no negatives of a query although they stand elsewhere in the batch.

    These are the texts equal to the query's positive (duplicates, recurring labels), equal to the query itself, or known
    as a positive of the query. Masks go by text and not by similarity: a hard negative is meant to be similar.

    Attributes:
        query_keys: (batch,) int64, equal for equal texts.
        positive_keys: (batch,) int64; row i is the positive of query i.
        candidate_keys: (batch + negatives,) int64, the positives first.
        known_positives: (pairs, 2) int64, rows and keys of their further positives.
    """

    query_keys: Tensor
    positive_keys: Tensor
    candidate_keys: Tensor
    known_positives: Tensor

    def rows(self, start: int, end: int) -> Tensor:
        """Return the mask of the queries from `start` to `end`, (end - start, batch + negatives) bool.

        A row's own positive is never masked.
        """
        candidates = self.candidate_keys[None, :]
        # (rows, batch + negatives)
        masked = (candidates == self.positive_keys[start:end, None]) | (candidates == self.query_keys[start:end, None])
        row, key = self.known_positives.T
        here = (row >= start) & (row < end)
        hits = torch.nonzero(key[here][:, None] == candidates)
        masked[row[here][hits[:, 0]] - start, hits[:, 1]] = True
        own = torch.arange(end - start, device=masked.device)
        masked[own, own + start] = False
        return masked


def info_nce(queries: Tensor, candidates: Tensor, *, temperature: float, mask: Mask | None = None) -> InfoNCE:
    """Return the mean cross-entropy of picking each query's positive among all candidates (paper, equation 2).

    With one candidate set C of size n, all similarities equal, the loss is exactly log n. The similarities are computed a
    few rows at a time, and again in the backward pass, so that memory grows with the batch and not with its square.

    Args:
        queries: (batch, dim) embeddings of any length; row i belongs to candidate i.
        candidates: (batch + negatives, dim): every positive in the order of the queries, then every hard negative.
        temperature: divisor of the cosine similarity.
        mask: which candidates to take out of which softmax, such as `FalseNegatives.rows`; never a query's own positive.
    """
    # float32 at least, whatever the model computes in: at temperature 0.02, bf16's 3 digits would quantise logits to 0.2
    dtype = torch.promote_types(queries.dtype, torch.float32)
    queries = functional.normalize(queries.to(dtype), dim=-1)
    candidates = functional.normalize(candidates.to(dtype), dim=-1)
    num_rows = max(1, _LOGITS_AT_ONCE // len(candidates))
    some_rows = partial(checkpoint, _some_rows, use_reentrant=False, preserve_rng_state=False)
    sums = [
        some_rows(queries, candidates, start, num_rows, temperature, mask) for start in range(0, len(queries), num_rows)
    ]
    loss, figures = (torch.stack(parts).sum(dim=0) for parts in zip(*sums, strict=True))
    recall, mrr, positive, negative, num_negatives, hard, num_hard = figures
    num, num_others = len(queries), len(queries) * (len(candidates) - 1)
    return InfoNCE(
        loss / num,
        recall / num,
        mrr / num,
        positive / num,
        negative / num_negatives.clamp(min=1),
        hard / num_hard,
        1 - num_negatives / max(num_others, 1) if num_others else torch.zeros_like(recall),
    )


def _some_rows(
    queries: Tensor, candidates: Tensor, start: int, num_rows: int, temperature: float, mask: Mask | None
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of some queries, and sums of the figures (7,) without gradient.

    Args:
        queries: (batch, dim), normalised.
        candidates: (batch + negatives, dim), normalised.
        start: first of the queries.
        num_rows: how many.
        temperature: divisor of the cosine similarity.
        mask: see `info_nce`.
    """
    num = len(queries)
    end = min(start + num_rows, num)
    # (rows, batch + negatives): cosine similarity
    similarities = queries[start:end] @ candidates.T
    masked = torch.zeros_like(similarities, dtype=torch.bool) if mask is None else mask(start, end)
    labels = torch.arange(start, end, device=queries.device)
    logits = (similarities / temperature).masked_fill(masked, -torch.inf)
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    with torch.no_grad():
        positive = similarities.gather(1, labels[:, None])
        is_other = ~masked
        is_other[torch.arange(end - start, device=labels.device), labels] = False
        # (rows,): candidates that are at least as near as the positive; ties count against it
        nearer = ((similarities >= positive) & is_other).sum(dim=1)
        others = similarities * is_other
        figures = [
            *((nearer == 0).sum(), (1 + nearer).to(loss.dtype).reciprocal().sum(), positive.sum()),
            *(others.sum(), is_other.sum(), others[:, num:].sum(), is_other[:, num:].sum()),
        ]
    return loss, torch.stack([figure.to(loss.dtype) for figure in figures])
