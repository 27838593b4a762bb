"""The held-out examples as mteb tasks: rows with several hard negatives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

from model_card.tasks import held_out_tasks
from tests.tiny_datasets import example, write_dataset


def _write(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    written = {f"{subgroup}/test": of_subgroup for subgroup, of_subgroup in rows.items()}
    write_dataset(folder, {name: [row | {"negative": None} for row in of] for name, of in written.items()})
    for subgroup, of_subgroup in rows.items():
        columns = {name: [row[name] for row in of_subgroup] for name in of_subgroup[0] if name != "subgroup"}
        Dataset.from_dict(columns).to_parquet(folder / subgroup / "test-00000-of-00001.parquet")
    return folder


def test_several_negatives_are_documents_of_the_corpus(tmp_path: Path) -> None:
    rows = [example("short-long", i) | {"negative": negatives} for i, negatives in enumerate([["a", "b"], [], ["b"]])]
    (task,) = held_out_tasks(str(_write(tmp_path, {"short-long": rows})), None, "0" * 40)
    task.load_data()
    documents = task.dataset["short-long"]["test"]["corpus"]["text"]  # type: ignore[index]
    assert list(documents) == [*(row["positive"] for row in rows), "a", "b"]


def test_the_asked_similarity_is_that_of_an_only_negative(tmp_path: Path) -> None:
    attributes = json.dumps({"high_score": "4.5", "low_score": "2"})
    rows = [example("sts", i) | {"negative": of, "attributes": attributes} for i, of in enumerate([["a"], ["b", "c"]])]
    (task,) = held_out_tasks(str(_write(tmp_path, {"sts": rows})), None, "0" * 40)
    task.load_data()
    pairs = task.dataset["test"]  # type: ignore[index]
    assert list(pairs["sentence2"]) == [rows[0]["positive"], "a", rows[1]["positive"]]
    assert list(pairs["score"]) == [4.5, 2.0, 4.5]
