"""From a dataset folder to rows: which examples, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from datasets import Dataset

from dataset_builder.errors import InputError
from dataset_builder.schema import TRAIN_COLUMNS
from tests.tiny_datasets import example, write_dataset
from trainer.data import dataset_subgroups, load_examples, negatives_of

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


# Several negatives


def _write_columns(folder: Path, subgroup: str, columns: dict[str, list[Any]], rest: list[dict[str, Any]]) -> None:
    """Replace the columns of negatives that `write_dataset` writes."""
    texts = {name: [row[name] for row in rest] for name in TRAIN_COLUMNS if name != "negative"}
    Dataset.from_dict(texts | columns).to_parquet(folder / subgroup / "train-00000-of-00001.parquet")


ROWS = [example("long-long", i) for i in range(3)]
NEGATIVES: list[tuple[dict[str, list[Any]], list[list[str]]]] = [
    ({"negative": [["a", "b"], [], None]}, [["a", "b"], [], []]),
    ({"negative": [["a", None], ["b"], ["c", "d"]]}, [["a"], ["b"], ["c", "d"]]),
    ({"negative_1": ["a", "b", "c"], "negative_2": ["d", None, "e"]}, [["a", "d"], ["b"], ["c", "e"]]),
    ({"negative_10": ["a", "b", "c"], "negative_2": ["d", "e", "f"]}, [["d", "a"], ["e", "b"], ["f", "c"]]),
    ({"negative_1": ["a", "b", "c"], "negative": ["d", None, "e"]}, [["d", "a"], ["b"], ["e", "c"]]),
    ({"negative": [["a"], [], ["b", "c"]], "negative_1": ["d", "e", "f"]}, [["a", "d"], ["e"], ["b", "c", "f"]]),
    ({"negative_1": [None, None, None]}, [[], [], []]),
]


@pytest.mark.parametrize(("columns", "expected"), NEGATIVES)
def test_several_negatives(tmp_path: Path, columns: dict[str, list[Any]], expected: list[list[str]]) -> None:
    folder = write_dataset(tmp_path, {"long-long": ROWS})
    _write_columns(folder, "long-long", columns, ROWS)
    examples = load_examples(str(folder), "train")
    assert examples.column_names == [*TRAIN_COLUMNS, "subgroup"]
    assert [negatives_of(row) for row in cast(Any, examples)] == expected
    assert examples["query"] == [row["query"] for row in ROWS]


def test_subgroups_with_one_negative_and_with_several_stand_together(tmp_path: Path) -> None:
    one = [example("sts", 0), example("sts", 1) | {"negative": None}]
    folder = write_dataset(tmp_path, {"long-long": ROWS, "sts": one})
    _write_columns(folder, "long-long", {"negative": [["a", "b"], ["c"], ["d"]]}, ROWS)
    examples = load_examples(str(folder), "train")
    assert examples["negative"] == [["a", "b"], ["c"], ["d"], [one[0]["negative"]], []]
    assert examples["subgroup"] == ["long-long"] * 3 + ["sts"] * 2


@pytest.mark.parametrize("columns", [{"negative_x": ["a"] * 3}, {"negative_": ["a"] * 3}, {"negatives": ["a"] * 3}])
def test_other_names_are_no_negatives(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    folder = write_dataset(tmp_path, {"long-long": ROWS})
    _write_columns(folder, "long-long", columns, ROWS)
    with pytest.raises(InputError, match="lacks the column 'negative'; training needs"):
        load_examples(str(folder), "train")


@pytest.mark.parametrize(
    ("column", "value", "needed"),
    [
        ("negative", {"text": "a"}, "text, or lists of text"),
        ("negative", [["a"]], "text, or lists of text"),
        ("positive", ["a"], "text"),
    ],
)
def test_a_column_of_something_else(tmp_path: Path, column: str, value: Any, needed: str) -> None:
    folder = write_dataset(tmp_path, {"long-long": ROWS})
    _write_columns(folder, "long-long", {"negative": ["a"] * 3} | {column: [value] * 3}, ROWS)
    with pytest.raises(
        InputError, match=rf"has .* in the column '{column}'; training needs {needed}, so write it as such"
    ):
        load_examples(str(folder), "train")


@pytest.mark.parametrize("column", ["query", "positive", "instruction", "language"])
def test_a_row_without_a_text(tmp_path: Path, column: str) -> None:
    folder = write_dataset(tmp_path, {"sts": [example("sts", 0), example("sts", 1) | {column: None}]})
    with pytest.raises(InputError, match=f"Config 'sts' of .* has a row without `{column}`; only `negative` may be"):
        load_examples(str(folder), "train")


# Swapped columns


def _of_lengths(query: int, positive: int, num: int) -> list[dict[str, Any]]:
    rows = [example("sts", i) | {"query": "q" * query, "positive": "é" * positive} for i in range(num)]
    rows[0] |= {"query": "q" * 10_000, "positive": "p" * 10_000}  # what a mean would go by
    return rows


@pytest.mark.parametrize("num", [19, 20])
@pytest.mark.parametrize(
    ("subgroup", "query", "positive", "expected"),
    [("short-long", 40, 30, "shorter"), ("long-short", 30, 40, "longer"), ("short-long", 30, 30, "shorter")],
)
def test_swapped_columns(tmp_path: Path, subgroup: str, query: int, positive: int, expected: str, num: int) -> None:
    folder = str(write_dataset(tmp_path, {subgroup: _of_lengths(query, positive, num)}))
    if num < 20:  # too few to tell
        assert len(load_examples(folder, "train")) == num
        return
    sentence = (
        f"queries of {query} characters and positives of {positive} .medians of 20 rows.; queries of {subgroup} are"
    )
    with pytest.raises(
        InputError, match=f"Config '{subgroup}' of .* has {sentence} {expected} than their positives, so"
    ):
        load_examples(folder, "train")


@pytest.mark.parametrize(
    ("subgroup", "query", "positive"),
    [("short-long", 30, 40), ("long-short", 40, 30), ("short-short", 40, 30), ("sts", 30, 40), ("long-long", 30, 30)],
)
def test_columns_in_their_order(tmp_path: Path, subgroup: str, query: int, positive: int) -> None:
    folder = write_dataset(tmp_path, {subgroup: _of_lengths(query, positive, 25)})
    assert len(load_examples(str(folder), "train")) == 25
