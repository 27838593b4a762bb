"""Tiny datasets: a folder as stage 1 writes it, with texts that a tiny model can learn to match."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, Value

from dataset_builder.schema import FIXED_INSTRUCTIONS, TRAIN_COLUMNS

_WORDS = ("quick", "brown", "fox", "lazy", "dog", "cats", "sleep", "warm", "quiet", "sofas", "rains", "morning", "sun")


def example(subgroup: str, number: int) -> dict[str, Any]:
    """Return a row: the query's words come back in the positive, and half of them in the hard negative."""
    rng = random.Random(f"{subgroup}/{number}")
    topic, other = rng.sample(_WORDS, 4), rng.sample(_WORDS, 3)
    positive, negative = rng.sample(topic, 4), [*topic[:2], *other]
    if subgroup in ("short-long", "long-long"):
        positive, negative = positive * 3, negative * 3
    instruction = dict(FIXED_INSTRUCTIONS).get(subgroup, "Given a query, retrieve relevant text.")  # type: ignore[call-overload]
    return {
        "query": f"{' '.join(topic)}? ({number})",
        "positive": f"{' '.join(positive)}. ({number})",
        "negative": f"{' '.join(negative)}. ({number})",
        "instruction": instruction,
        "language": "en",
        "positive_language": "de" if subgroup == "bitext" else "en",
        "subgroup": subgroup,
    }


def write_dataset(folder: Path, rows: dict[str, list[dict[str, Any]]], *, typed: bool = True) -> Path:
    """Write rows by config, or by "config/split", into a dataset folder with a README.md; return the folder.

    Args:
        folder: where to.
        rows: rows of `example`; their `subgroup` is not written.
        typed: False leaves the type of the columns to the values, as foreign datasets do.
    """
    configs: dict[str, list[dict[str, str]]] = {}
    for name, of_split in rows.items():
        config, _, split = name.partition("/")
        split = split or "train"
        path = folder / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {column: [row[column] for row in of_split] for column in TRAIN_COLUMNS if column in of_split[0]}
        features = Features({column: Value("string") for column in columns}) if typed else None
        Dataset.from_dict(columns, features=features).to_parquet(path)
        configs.setdefault(config, []).append({"split": split, "path": f"{config}/{split}-*.parquet"})
    front = {"configs": [{"config_name": config, "data_files": files} for config, files in configs.items()]}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n", encoding="utf-8")
    return folder


def distinct_rows(subgroups: list[str], **columns: list[Any]) -> Dataset:
    """Return rows whose texts are all different, but for the columns that are given."""
    num = len(subgroups)
    texts = {name: [f"{name} {i}" for i in range(num)] for name in ("query", "positive", "negative")}
    return Dataset.from_dict(
        {**texts, "language": ["en"] * num, "positive_language": ["de"] * num, "subgroup": subgroups} | columns
    )
