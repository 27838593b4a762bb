"""Rows of a dataset folder or Hub dataset, checked for what training needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, concatenate_datasets, get_dataset_config_names, load_dataset
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi

from dataset_builder.errors import InputError
from dataset_builder.schema import SUBGROUPS, TRAIN_COLUMNS, Subgroup
from trainer.base_model import files_digest

_ENOUGH_ROWS = 20  # for the lengths of the texts to say that columns are swapped


def dataset_revision(dataset_name: str, revision: str | None = None) -> str:
    """Return 40 hex digits that name the state of a dataset: its commit on the Hub, or a digest of a folder's data files."""
    folder = Path(dataset_name)
    if folder.is_dir():
        return files_digest(folder, ("**/*.parquet", "**/*.json*", "**/*.csv", "**/*.arrow"))[:40]
    return str(HfApi().dataset_info(dataset_name, revision=revision).sha)


def dataset_subgroups(dataset_name: str, revision: str | None = None) -> list[Subgroup]:
    """Return the subgroups that a dataset has configs for, in the order of `SUBGROUPS`.

    Raises:
        InputError: if there is no such dataset, or it has none of the subgroups.
    """
    try:
        configs = get_dataset_config_names(dataset_name, revision=revision)
    except (OSError, ValueError, DatasetNotFoundError, DataFilesNotFoundError) as error:  # no folder, no name, no Hub
        raise InputError(
            f"`dataset_name` is '{dataset_name}', which is neither a dataset folder nor a dataset on the Hub "
            f"({type(error).__name__}); run `embedsmith curate`, or give --dataset_name."
        ) from None
    known: list[Subgroup] = [subgroup for subgroup in SUBGROUPS if subgroup in configs]
    if not known:
        raise InputError(
            f"The dataset {dataset_name} has none of the configs {', '.join(SUBGROUPS)}; it has {', '.join(configs)}."
        )
    return known


def negatives_of(row: Mapping[str, Any]) -> list[str]:
    """Return the hard negatives of a row, whose `negative` is a text, a list of texts, or None."""
    negative = row["negative"]
    return [negative] if isinstance(negative, str) else [text for text in negative or () if text is not None]


def load_split(dataset_name: str, split: str, subgroup: Subgroup, revision: str | None = None) -> Dataset | None:
    """Return the rows of one subgroup and split with all their columns, or None if there is no such split.

    Several hard negatives may stand in `negative` as a list, or in the columns `negative_1`, `negative_2`, ... as
    sentence-transformers' `mine_hard_negatives` writes them; these become a list too, behind that of `negative` if there
    is one.

    Returns:
        The columns of training hold strings; `negative` holds strings or lists of them.

    Raises:
        InputError: if a column that training needs is missing, has another type or no text in a row, or if the lengths
            of queries and positives show that the two are swapped.
    """
    where = f"Config '{subgroup}' of {dataset_name}"
    try:
        splits = load_dataset(dataset_name, subgroup, revision=revision)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise InputError(
            f"{where} cannot be read ({' '.join(str(error).split())[:200]}); run `embedsmith curate` again, or download it "
            "again."
        ) from None
    if split not in splits:
        return None
    rows: Dataset = splits[split]
    numbered = sorted((name for name in rows.column_names if re.fullmatch(r"negative_\d+", name)), key=_number)
    known = {*rows.column_names, "negative"} if numbered else {*rows.column_names}
    if missing := [column for column in TRAIN_COLUMNS if column not in known]:
        raise InputError(
            f"{where} lacks the column '{missing[0]}'; training needs {', '.join(TRAIN_COLUMNS)}, and found "
            f"{', '.join(rows.column_names)}."
        )
    rows = _as_strings(rows, numbered, where)
    if numbered:
        rows = _with_lists(rows, [name for name in ("negative", *numbered) if name in rows.column_names])
    _check_texts(rows, where)
    _check_order(rows, subgroup, where)
    return rows


def _number(column: str) -> int:
    return int(column.rpartition("_")[2])


def _as_strings(rows: Dataset, numbered: list[str], where: str) -> Dataset:
    """Cast the columns of training to strings, and negatives to strings or lists of strings."""
    features = dict(rows.features)
    for name in (*TRAIN_COLUMNS, *numbered):
        if name not in features:
            continue
        is_list = name.startswith("negative") and isinstance(features[name], List)
        if not isinstance(features[name].feature if is_list else features[name], Value):
            needed = "text, or lists of text" if name.startswith("negative") else "text"
            raise InputError(
                f"{where} has {features[name]} in the column '{name}'; training needs {needed}, so write it as such."
            )
        features[name] = List(Value("string")) if is_list else Value("string")
    return rows.cast(Features(features))


def _with_lists(rows: Dataset, columns: list[str]) -> Dataset:
    """Return the rows with one list of texts in `negative`, in place of these columns."""
    features = {name: feature for name, feature in rows.features.items() if name not in columns}
    return rows.map(
        _gathered,
        batched=True,
        fn_kwargs={"columns": columns},
        remove_columns=columns,
        features=Features({**features, "negative": List(Value("string"))}),
        desc="Gathering negatives",
    )


def _gathered(rows: dict[str, list[Any]], columns: list[str]) -> dict[str, list[list[str]]]:
    by_row = zip(*(rows[name] for name in columns), strict=True)
    return {"negative": [[text for of in row for text in negatives_of({"negative": of})] for row in by_row]}


def _check_texts(rows: Dataset, where: str) -> None:
    texts: Any = rows.with_format("arrow")  # whose columns stay on disk
    for column in TRAIN_COLUMNS:
        if column != "negative" and texts[column][:].null_count:
            raise InputError(f"{where} has a row without `{column}`; only `negative` may be missing.")


def _check_order(rows: Dataset, subgroup: Subgroup, where: str) -> None:
    """Refuse short queries that are longer than the long texts they are to find, and the other way round."""
    if subgroup not in ("short-long", "long-short") or len(rows) < _ENOUGH_ROWS:
        return
    texts: Any = rows.with_format("arrow")
    lengths = (pc.call_function("utf8_length", [texts[name][:]]) for name in ("query", "positive"))
    query, positive = (float(np.median(of_column.to_numpy())) for of_column in lengths)
    if query >= positive if subgroup == "short-long" else query <= positive:
        expected = "shorter" if subgroup == "short-long" else "longer"
        raise InputError(
            f"{where} has queries of {query:.0f} characters and positives of {positive:.0f} (medians of {len(rows)} rows); "
            f"queries of {subgroup} are {expected} than their positives, so swap the two columns, or name the config by "
            "the subgroup that its texts are of."
        )


def load_examples(
    dataset_name: str, split: str, subgroups: list[str] | None = None, revision: str | None = None
) -> Dataset:
    """Return the examples of a split with the columns that training needs, and a column `subgroup`.

    `negative` holds strings, or lists of strings if a subgroup has several hard negatives in a row.

    Raises:
        InputError: if the dataset, a subgroup or a column is missing, or the rows of one cannot be trained on
            (`load_split`). A split that no subgroup has gives no rows.
    """
    known = dataset_subgroups(dataset_name, revision)
    if missing := [subgroup for subgroup in subgroups or [] if subgroup not in known]:
        raise InputError(f"The dataset {dataset_name} has no config '{missing[0]}'; it has {', '.join(known)}.")
    parts = []
    for subgroup in known:
        if subgroups and subgroup not in subgroups:
            continue
        rows = load_split(dataset_name, split, subgroup, revision)
        if rows is not None:
            part = rows.select_columns(list(TRAIN_COLUMNS))
            parts.append(part.add_column("subgroup", [subgroup] * len(part)))
    if any(isinstance(part.features["negative"], List) for part in parts):  # parts can only be joined if all have lists
        parts = [
            part if isinstance(part.features["negative"], List) else _with_lists(part, ["negative"]) for part in parts
        ]
    if not parts:
        empty: dict[str, list[str]] = {column: [] for column in (*TRAIN_COLUMNS, "subgroup")}
        return Dataset.from_dict(empty)
    return concatenate_datasets(parts)
