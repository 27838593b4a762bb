"""Does an embedding model agree? The positive must be found by its query, and be nearer than the hard negative.

Filtering by the rank of the positive is how mined pairs are cleaned (consistency-based filtering, as in Wang et al. 2022,
arXiv 2212.03533, section 3.1); here it asks a model that is not trained on the corpus. It removes hard examples too, so it
is off unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pyarrow as pa

from dataset_builder.config import CurationArguments
from dataset_builder.errors import InputError
from dataset_builder.parsing import Rejection

_QUERIES_AT_A_TIME = 1_024


@cache
def _model(name: str) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"`consistency_model` is '{name}', which cannot be loaded ({reason}); give a sentence-transformers model."
        ) from None


def inconsistent_rows(
    batches: Iterable[pa.RecordBatch], rows: list[int], arguments: CurationArguments
) -> dict[int, Rejection]:
    """Return the rejections of those of `rows` with whose texts the model disagrees, by row number.

    Args:
        batches: all rows of one subgroup, with the text columns.
        rows: numbers of the rows to judge; their positives are the corpus that is searched, equal ones counting once.
        arguments: model and k.

    Raises:
        InputError: if the model cannot be loaded.
    """
    import torch

    table = pa.Table.from_batches(list(batches)).select(["query", "positive", "negative"]).take(rows)
    model = _model(arguments.consistency_model or "")
    queries, positives, negatives = (table.column(name).to_pylist() for name in table.column_names)
    corpus = {text: number for number, text in enumerate(dict.fromkeys(positives))}
    encode: dict[str, Any] = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
    query_vectors = model.encode_query(queries, **encode)  # (rows, dimension)
    corpus_vectors = model.encode_document(list(corpus), **encode)  # (texts, dimension)
    with_negative = [i for i, text in enumerate(negatives) if text is not None]
    negative_scores = torch.full((len(rows),), -2.0)  # below every cosine: no negative
    if with_negative:
        vectors = model.encode_document([negatives[i] for i in with_negative], **encode)
        negative_scores[with_negative] = (query_vectors[with_negative] * vectors).sum(1).cpu()
    rejections: dict[int, Rejection] = {}
    for start in range(0, len(rows), _QUERIES_AT_A_TIME):
        part = slice(start, start + _QUERIES_AT_A_TIME)
        scores = (query_vectors[part] @ corpus_vectors.T).cpu()  # (queries, texts)
        mine = torch.tensor([corpus[text] for text in positives[part]])
        own = scores.gather(1, mine[:, None])  # (queries, 1)
        ranks = (scores > own).sum(1) + 1
        for i, (rank, score, other) in enumerate(
            zip(ranks.tolist(), own[:, 0].tolist(), negative_scores[part].tolist(), strict=True), start
        ):
            if rank > arguments.consistency_top_k:
                rejections[rows[i]] = Rejection("inconsistent", f"the positive comes {rank:,}th of {len(corpus):,}")
            elif other >= score:
                detail = f"cosine {other:.3f} of the hard negative, {score:.3f} of the positive"
                rejections[rows[i]] = Rejection("inconsistent", detail)
    return rejections
