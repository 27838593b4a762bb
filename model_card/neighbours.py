"""A few held-out queries with their nearest documents: what a score looks like."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from datasets import Dataset

from dataset_builder.schema import instruct
from model_card.batches import TokenBatches
from model_card.judge import Judge
from model_card.scores import NEIGHBOURS, read_neighbours

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


def write_neighbours(judge: Judge, rows: Dataset) -> None:
    """Write `neighbours.jsonl` beside the results of a model, unless it is there for these very rows."""
    path, wanted = judge.folder / NEIGHBOURS, [rows[i]["query"] for i in example_queries(rows)]
    num_documents = len(_documents(rows))
    found = [(row["query"], row["num_documents"]) for row in read_neighbours(judge.folder)]
    if found != [(query, num_documents) for query in wanted]:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in nearest(judge.model, rows)]
        path.write_text("".join(lines), encoding="utf-8")


def _documents(rows: Dataset) -> list[str]:
    return list(dict.fromkeys(text for name in ("positive", "negative") for text in rows[name] if text))


def nearest(model: TokenBatches, rows: Dataset) -> list[dict[str, Any]]:
    """Return query, instruction and the nearest documents of the example queries.

    Args:
        model: the model; queries carry their instruction, documents are bare.
        rows: held-out rows with `query`, `positive`, `negative`, `instruction` and `language`; all their documents
            together are searched.

    Returns:
        One dictionary a query: `query`, `instruction`, `language`, `rank` of the positive from 1, and `nearest`, a list of
        `text`, `similarity` (cosine) and `kind` ('positive', 'hard negative' or 'other').
    """
    if not len(rows):
        return []
    documents = _documents(rows)
    # (documents, dim), unit length
    matrix = model.encode(documents, normalize_embeddings=True)
    found = []
    for i in example_queries(rows):
        row = rows[i]
        text = instruct(row["instruction"], row["query"])
        similarities = matrix @ model.encode([text], normalize_embeddings=True)[0]
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
