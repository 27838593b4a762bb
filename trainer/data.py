"""Rows of a dataset folder or Hub dataset, checked for what training needs."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, Features, Value, concatenate_datasets, get_dataset_config_names, load_dataset
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi

from dataset_builder.errors import InputError
from dataset_builder.schema import SUBGROUPS, TRAIN_COLUMNS, Subgroup
from trainer.base_model import files_digest


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


def load_split(dataset_name: str, split: str, subgroup: Subgroup, revision: str | None = None) -> Dataset | None:
    """Return the rows of one subgroup and split with all their columns, or None if there is no such split.

    Raises:
        InputError: if a column that training needs is missing.
    """
    try:
        splits = load_dataset(dataset_name, subgroup, revision=revision)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise InputError(
            f"Config '{subgroup}' of {dataset_name} cannot be read ({' '.join(str(error).split())[:200]}); run `embedsmith "
            "curate` again, or download it again."
        ) from None
    if split not in splits:
        return None
    rows: Dataset = splits[split]
    if missing := [column for column in TRAIN_COLUMNS if column not in rows.column_names]:
        raise InputError(
            f"Config '{subgroup}' of {dataset_name} lacks the column '{missing[0]}'; training needs "
            f"{', '.join(TRAIN_COLUMNS)}, and found {', '.join(rows.column_names)}."
        )
    rows = rows.cast(Features({**rows.features, **dict.fromkeys(TRAIN_COLUMNS, Value("string"))}))
    for column in TRAIN_COLUMNS:
        if column != "negative" and None in rows[column][:]:
            raise InputError(
                f"Config '{subgroup}' of {dataset_name} has a row without `{column}`; only `negative` may be missing."
            )
    return rows


def load_examples(
    dataset_name: str, split: str, subgroups: list[str] | None = None, revision: str | None = None
) -> Dataset:
    """Return the examples of a split with the columns that training needs, and a column `subgroup`.

    Raises:
        InputError: if the dataset, a subgroup or a column is missing. A split that no subgroup has gives no rows.
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
    if not parts:
        empty: dict[str, list[str]] = {column: [] for column in (*TRAIN_COLUMNS, "subgroup")}
        return Dataset.from_dict(empty)
    return concatenate_datasets(parts)
