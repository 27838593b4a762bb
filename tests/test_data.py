"""From a dataset folder to rows: which examples, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_builder.errors import InputError
from dataset_builder.schema import TRAIN_COLUMNS
from tests.tiny_datasets import example, write_dataset
from trainer.data import dataset_subgroups, load_examples

# Loading


def test_load_examples(tmp_path: Path) -> None:
    rows = {"sts": [example("sts", i) for i in range(3)], "short-long": [example("short-long", i) for i in range(4)]}
    folder = write_dataset(tmp_path, rows | {"sts/test": [example("sts", 9)]})
    examples = load_examples(str(folder), "train")
    assert examples.column_names == [*TRAIN_COLUMNS, "subgroup"]
    assert examples["subgroup"] == ["short-long"] * 4 + ["sts"] * 3
    assert examples["query"] == [row["query"] for name in ("short-long", "sts") for row in rows[name]]
    assert load_examples(str(folder), "test")["query"] == [example("sts", 9)["query"]]
    assert load_examples(str(folder), "train", ["sts"])["query"] == [row["query"] for row in rows["sts"]]
    assert dataset_subgroups(str(folder)) == ["short-long", "sts"]


def test_a_split_that_is_nowhere_has_no_rows(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"sts": [example("sts", 0)]})
    examples = load_examples(str(folder), "test")
    assert len(examples) == 0
    assert examples.column_names == [*TRAIN_COLUMNS, "subgroup"]


def test_a_subgroup_without_negatives_stands_beside_others(tmp_path: Path) -> None:
    bare = [example("short-short", i) | {"negative": None} for i in range(2)]
    folder = write_dataset(tmp_path, {"short-short": bare, "sts": [example("sts", 0)]}, typed=False)
    assert load_examples(str(folder), "train")["negative"] == [None, None, example("sts", 0)["negative"]]


@pytest.mark.parametrize("name", ["no/such-dataset", "no-such-folder/data/set", "not a name"])
def test_missing_dataset(name: str) -> None:
    with pytest.raises(InputError, match=f"`dataset_name` is '{name}', which is neither"):
        load_examples(name, "train")


def test_foreign_configs(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"pairs": [example("sts", 0)], "triplets": [example("sts", 1)]})
    with pytest.raises(InputError, match=r"none of the configs short-long, .*; it has pairs, triplets"):
        load_examples(str(folder), "train")


def test_a_folder_of_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(InputError, match=str(tmp_path)):
        load_examples(str(tmp_path), "train")


@pytest.mark.parametrize("column", TRAIN_COLUMNS)
def test_missing_column(tmp_path: Path, column: str) -> None:
    row = {name: text for name, text in example("sts", 0).items() if name != column}
    folder = write_dataset(tmp_path, {"sts": [row]})
    with pytest.raises(InputError, match=f"Config 'sts' of .* lacks the column '{column}'; training needs"):
        load_examples(str(folder), "train")


def test_unknown_subgroup(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"sts": [example("sts", 0)]})
    with pytest.raises(InputError, match=r"has no config 'bitext'; it has sts"):
        load_examples(str(folder), "train", ["sts", "bitext"])


def test_a_broken_file(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, {"sts": [example("sts", 0)]})
    (folder / "sts" / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=str(folder)):
        load_examples(str(folder), "train")
