"""A few held-out queries with their nearest documents: what a score looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from dataset_builder.schema import instruct
from model_card.encoder import InstructEncoder

NUM_QUERIES, NUM_NEAREST = 3, 3


def example_queries(rows: Dataset) -> list[int]:
    """Return the rows to show: the first English ones with a short query, one per language if English lacks."""
    short = [i for i in range(len(rows)) if len(rows[i]["query"]) <= 200]
    english_first = sorted(short, key=lambda i: (rows[i]["language"] != "en", i))
    chosen: list[int] = []
    for i in english_first:  # different tasks, so that three queries show three things
        if rows[i]["instruction"] not in {rows[j]["instruction"] for j in chosen}:
            chosen.append(i)
    return chosen[:NUM_QUERIES]


def nearest(encoder: InstructEncoder, rows: Dataset) -> list[dict[str, Any]]:
    """Return query, instruction and the nearest documents of the example queries.

    Args:
        encoder: the model; queries carry their instruction, documents are bare.
        rows: held-out rows with `query`, `positive`, `negative`, `instruction` and `language`; all their documents
            together are searched.

    Returns:
        One dictionary a query: `query`, `instruction`, `language`, `rank` of the positive from 1, and `nearest`, a list of
        `text`, `similarity` (cosine) and `kind` ('positive', 'hard negative' or 'other').
    """
    if not len(rows):
        return []
    documents = list(dict.fromkeys(t for name in ("positive", "negative") for t in rows[name] if t))
    # (documents, dim), unit length
    matrix = encoder.model.encode(documents, normalize_embeddings=True, show_progress_bar=False)
    found = []
    for i in example_queries(rows):
        row = rows[i]
        text = instruct(row["instruction"], row["query"])
        similarities = matrix @ encoder.model.encode(text, normalize_embeddings=True, show_progress_bar=False)
        order = np.argsort(-similarities)
        kinds = {row["positive"]: "positive", row["negative"]: "hard negative"}
        found.append(
            {
                "query": row["query"],
                "instruction": row["instruction"],
                "language": row["language"],
                "rank": 1 + [documents[j] for j in order].index(row["positive"]),
                "num_documents": len(documents),
                "nearest": [
                    {
                        "text": documents[j],
                        "similarity": round(float(similarities[j]), 4),
                        "kind": kinds.get(documents[j], "other"),
                    }
                    for j in order[:NUM_NEAREST]
                ],
            }
        )
    return found
