"""Toy data for unmodified tasks of mteb, put on the local Hub under the revisions that mteb pins."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mteb
import yaml
from datasets import Dataset

from tests.hub_server import Hub

TOPICS = {
    "garden": "tomato seedling compost trellis pruning watering mulch greenhouse",
    "law": "contract clause breach liability tenant landlord notice damages",
    "sea": "harbour ferry anchor tide lighthouse sailor compass mooring",
    "music": "violin rehearsal tempo melody chorus conductor rhythm concert",
}


def sentences(topic: str, num: int) -> list[str]:
    """Return different short sentences about a topic."""
    pairs = list(itertools.permutations(TOPICS[topic].split(), 2))[:num]
    return [
        f"The {first} needs the {second}, and number {i} of them is late." for i, (first, second) in enumerate(pairs)
    ]


def _rows(num: int) -> list[tuple[str, int]]:
    return [(text, label) for label, topic in enumerate(TOPICS) for text in sentences(topic, num)]


def _pairs(num: int) -> dict[str, list[Any]]:
    garden, law = sentences("garden", num), sentences("law", num)
    near = [text.replace("needs", "wants") for text in garden]
    scores = [4.0 + i / num for i in range(num)] + [1.0 - i / num for i in range(num)]
    return {"sentence1": garden * 2, "sentence2": near + law, "score": scores}


def _texts(num: int) -> Dataset:
    rows = _rows(num)
    return Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


def _clusters(num: int) -> Dataset:
    rows = _rows(num)
    return Dataset.from_dict({"sentences": [[text for text, _ in rows]], "labels": [[label for _, label in rows]]})


def _retrieval() -> dict[str, dict[str, Dataset]]:
    documents = [text for text, _ in _rows(12)]
    queries = [text.split(",")[0] for text in documents[::4]]
    corpus = {"id": [f"d{i}" for i in range(len(documents))], "text": documents, "title": [""] * len(documents)}
    asked = {"id": [f"q{i}" for i in range(len(queries))], "text": queries}
    judged = {
        "query-id": asked["id"],
        "corpus-id": [f"d{4 * i}" for i in range(len(queries))],
        "score": [1] * len(queries),
    }
    return {
        "corpus": {"corpus": Dataset.from_dict(corpus)},
        "queries": {"queries": Dataset.from_dict(asked)},
        "default": {"test": Dataset.from_dict(judged)},
    }


def _data() -> dict[str, dict[str, dict[str, Dataset]]]:
    """Return {task: {config: {split: rows}}}."""
    pairs = _pairs(20)
    labels = [1] * 20 + [0] * 20
    twins = Dataset.from_dict({"sent1": [pairs["sentence1"]], "sent2": [pairs["sentence2"]], "labels": [labels]})
    parallel = {"sentence1": pairs["sentence1"][:20], "sentence2": pairs["sentence2"][:20]}
    return {
        "STS12": {"default": {"test": Dataset.from_dict(pairs)}},
        "STS15": {"default": {"test": Dataset.from_dict(pairs)}},
        "STS16": {"default": {"test": Dataset.from_dict(pairs)}},
        "PoemSentimentClassification": {
            "default": {"train": _texts(20), "validation": _texts(6), "test": _texts(8)},
        },
        "CDSC-E": {"default": {"test": twins}},
        "BornholmBitextMining": {"default": {"test": Dataset.from_dict(parallel)}},
        "MBPPRetrieval": _retrieval(),
        "EightTagsClustering.v2": {"default": {"test": _clusters(30)}},
    }


TASKS = tuple(name for name in _data() if name != "STS15")


def put_toys(hub: Hub, folder: Path, *tasks: str) -> None:
    """Put the toy data of tasks on the Hub, of all `TASKS` by default, each under the repo and revision of the task."""
    data = _data()
    for task in tasks or TASKS:
        configs = data[task]
        dataset = mteb.get_task(task).metadata.dataset
        repo, listed = folder / task, []
        for config, splits in configs.items():
            files = []
            for split, rows in splits.items():
                path = f"data/{config}/{split}.parquet"
                (repo / path).parent.mkdir(parents=True, exist_ok=True)
                rows.to_parquet(repo / path)
                files.append({"split": split, "path": path})
            listed.append({"config_name": config, "data_files": files, "default": config == "default"})
        front = yaml.safe_dump({"configs": listed}, sort_keys=False)
        (repo / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")
        hub.put_folder("dataset", dataset["path"], repo, dataset["revision"])
