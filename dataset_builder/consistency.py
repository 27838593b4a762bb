"""Does an embedding model agree? The positive must be found by its query, and be nearer than the hard negative.

Filtering by the rank of the positive is how mined pairs are cleaned (consistency-based filtering, as in Wang et al. 2022,
arXiv 2212.03533, section 3.1); here it asks a model that is not trained on the corpus. It removes hard examples too, so it
is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataset_builder.config import CurationArguments
from dataset_builder.errors import InputError
from dataset_builder.parsing import Rejection
from dataset_builder.progress import Steps
from dataset_builder.schema import TEXT_COLUMNS

_AT_A_TIME = 1_024  # texts


@cache
def load_model(name: str) -> Any:
    """Return a sentence-transformers model.

    Raises:
        InputError: if it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # our own line tells the progress
    try:
        return SentenceTransformer(name)
    except Exception as error:  # OSError, ValueError, ImportError, RuntimeError, the Hub's and its transport's own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"`consistency_model` is '{name}', which cannot be loaded ({reason[:200]}); give the name or folder of a "
            "sentence-transformers model."
        ) from None


def inconsistent_rows(
    batches: Iterable[pa.RecordBatch], rows: list[int], arguments: CurationArguments
) -> dict[int, Rejection]:
    """Return the rejections of those of `rows` with whose texts the model disagrees, by row number.

    Args:
        batches: all rows of one subgroup, with the text columns.
        rows: numbers of the rows to judge, in order; their positives are the corpus that is searched, equal ones counting once.
        arguments: model and k.

    Raises:
        InputError: if the model cannot be loaded.
    """
    import torch

    if not rows:
        return {}
    table = _texts(batches, np.array(rows))
    queries, positives, negatives = (table.column(name).to_pylist() for name in TEXT_COLUMNS)
    corpus = {text: number for number, text in enumerate(dict.fromkeys(positives))}
    with_negative = [i for i, text in enumerate(negatives) if text is not None]
    steps = Steps("consistency", len(queries) + len(corpus) + len(with_negative))
    model = load_model(arguments.consistency_model or "")
    query_vectors = _encoded(model.encode_query, queries, steps)  # (rows, dimension)
    corpus_vectors = _encoded(model.encode_document, list(corpus), steps)  # (texts, dimension)
    negative_scores = torch.full((len(rows),), -2.0)  # below every cosine: no negative
    if with_negative:
        vectors = _encoded(model.encode_document, [negatives[i] for i in with_negative], steps)
        negative_scores[with_negative] = (query_vectors[with_negative] * vectors).sum(1).cpu()
    rejections: dict[int, Rejection] = {}
    for start in range(0, len(rows), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        scores = (query_vectors[part] @ corpus_vectors.T).cpu()  # (queries, texts)
        mine = torch.tensor([corpus[text] for text in positives[part]])
        own = scores.gather(1, mine[:, None])  # (queries, 1)
        ranks = (scores > own).sum(1) + 1
        for i, (rank, score, other) in enumerate(
            zip(ranks.tolist(), own[:, 0].tolist(), negative_scores[part].tolist(), strict=True), start
        ):
            if rank > arguments.consistency_top_k:
                detail = f"the positive is number {rank:,} of {len(corpus):,} by similarity to the query"
                rejections[rows[i]] = Rejection("inconsistent", detail)
            elif other >= score:
                detail = f"cosine {other:.3f} of the hard negative, {score:.3f} of the positive"
                rejections[rows[i]] = Rejection("inconsistent", detail)
    return rejections


def _texts(batches: Iterable[pa.RecordBatch], rows: NDArray[np.int64]) -> pa.Table:
    """Return the text columns of some rows, without holding more of the others than a batch."""
    parts, start = [], 0
    for batch in batches:
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        parts.append(batch.select(list(TEXT_COLUMNS)).take(pa.array(rows[low:high] - start)))
        start += batch.num_rows
    return pa.Table.from_batches(parts)


def _encoded(encode: Callable[..., Any], texts: Sequence[str], steps: Steps) -> Any:
    """(texts, dimension): unit vectors."""
    import torch

    parts = []
    for start in range(0, len(texts), _AT_A_TIME):
        part = texts[start : start + _AT_A_TIME]
        parts.append(encode(part, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False))
        steps.add(len(part))
    return torch.cat(parts)
