"""InfoNCE over in-batch and hard negatives, on cosine similarity."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class InfoNCE(NamedTuple):
    """The loss with what one looks at while training; all are scalars, float32."""

    loss: Tensor
    recall_at_1: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def info_nce(queries: Tensor, candidates: Tensor, *, temperature: float, masked: Tensor | None = None) -> InfoNCE:
    """Return the mean cross-entropy of picking each query's positive among all candidates (paper, equation 2).

    With one candidate set C of size n, all similarities equal, the loss is exactly log n.

    Args:
        queries: (batch, dim) embeddings of any length; row i belongs to candidate i.
        candidates: (batch + negatives, dim): every positive in the order of the queries, then every hard negative.
        temperature: divisor of the cosine similarity.
        masked: (batch, batch + negatives) bool; True takes a candidate out of that row's softmax. The row's own
            positive must not be masked.
    """
    # float32 whatever the model computes in: at temperature 0.02, bf16's 3 digits would quantise the logits to 0.2
    queries = functional.normalize(queries.float(), dim=-1)
    candidates = functional.normalize(candidates.float(), dim=-1)
    # (batch, batch + negatives): cosine similarity
    similarities = queries @ candidates.T
    if masked is not None:
        similarities = similarities.masked_fill(masked, -torch.inf)
    labels = torch.arange(len(queries), device=queries.device)
    loss = functional.cross_entropy(similarities / temperature, labels)
    with torch.no_grad():
        positive = similarities.diagonal()
        others = similarities.masked_fill(functional.one_hot(labels, similarities.shape[1]).bool(), -torch.inf)
        finite = others.isfinite()
        mean_negative = others.masked_fill(~finite, 0.0).sum() / finite.sum().clamp(min=1)
        recall = (positive > others.max(dim=1).values).float().mean()
    return InfoNCE(loss, recall, positive.mean().detach(), mean_negative.detach())


def false_negatives(query_keys: Tensor, positive_keys: Tensor, candidate_keys: Tensor) -> Tensor:
    """Return which candidates are no negatives of a query although they stand elsewhere in the batch.

    These are the texts equal to the query's positive (duplicates, recurring labels), equal to the query itself, or known
    as positive of an equal query.

    Args:
        query_keys: (batch,) int64, equal for equal texts.
        positive_keys: (batch,) int64; row i is the positive of query i.
        candidate_keys: (batch + negatives,) int64, the positives first.

    Returns:
        (batch, batch + negatives) bool mask for `info_nce`; a row's own positive is never masked.
    """
    # (batch, batch): queries of the same text share their positives
    same_query = query_keys[:, None] == query_keys[None, :]
    # (batch, batch, batch + negatives) would be large; the positives of equal queries are found row by row instead
    masked = (candidate_keys[None, :] == positive_keys[:, None]) | (candidate_keys[None, :] == query_keys[:, None])
    for row in torch.nonzero(same_query.sum(dim=1) > 1).flatten().tolist():
        masked[row] |= torch.isin(candidate_keys, positive_keys[same_query[row]])
    own = torch.arange(len(query_keys), device=masked.device)
    masked[own, own] = False
    return masked
