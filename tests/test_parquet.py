"""Parquet shards: row groups, sizes, names with digests, nothing finished after an error, and folders that change whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Features, Value, load_dataset
from huggingface_hub import DatasetCard

from dataset_builder import parquet
from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.dataset import curate
from dataset_builder.parquet import ParquetShards, replace_folder
from tests.replies import answers, fill_journal, read_parquet
from tests.runs import folder_bytes

FEATURES = Features({"id": Value("string"), "text": Value("string")})


def rows(num: int) -> list[dict[str, str]]:
    return [{"id": str(n), "text": hashlib.sha256(str(n).encode()).hexdigest() * 4} for n in range(num)]


def written(stem: Path, num: int, *, even_if_empty: bool = False) -> list[Path]:
    with ParquetShards(stem, FEATURES, even_if_empty=even_if_empty) as writer:
        writer.extend(rows(num))
    assert writer.num_rows == num
    return sorted(stem.parent.glob("*"))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 10 rows, and a new file after about two of them."""
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 10)
    monkeypatch.setattr(parquet, "MAX_SHARD_BYTES", 3_000)


@pytest.mark.parametrize("num", [1, 9, 10, 11, 95])
def test_rows_come_back_in_order(tmp_path: Path, small_shards: None, num: int) -> None:
    assert read_parquet(*written(tmp_path / "sts" / "train", num)) == rows(num)


def test_a_new_shard_begins_when_one_is_full(tmp_path: Path, small_shards: None) -> None:
    paths = written(tmp_path / "sts" / "train", 95)
    metadata = [pq.ParquetFile(path).metadata for path in paths]
    assert len(paths) > 2
    for group in [metadata[n].row_group(k) for n in range(len(paths)) for k in range(metadata[n].num_row_groups)][:-1]:
        assert group.num_rows == 10
    for path in paths[:-1]:
        assert 3_000 < path.stat().st_size < 12_000  # one group more than fits, and the footer
    one = written(tmp_path / "sts" / "test", 5)
    assert len([path for path in one if path.name.startswith("test-00000-of-00001-")]) == 1


def test_names_tell_number_and_content(tmp_path: Path, small_shards: None) -> None:
    paths = written(tmp_path / "sts" / "train", 95)
    for number, path in enumerate(paths):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        assert path.name == f"train-{number:05d}-of-{len(paths):05d}-{digest}.parquet"
    again, other = written(tmp_path / "again" / "train", 95), written(tmp_path / "other" / "train", 94)
    assert [path.name for path in again] == [path.name for path in paths]
    assert again[-1].name != other[-1].name


def test_no_rows_make_no_file_unless_asked_for(tmp_path: Path) -> None:
    assert written(tmp_path / "none" / "train", 0) == []
    assert not (tmp_path / "none").exists()
    (path,) = written(tmp_path / "empty" / "train", 0, even_if_empty=True)
    assert pq.read_table(path).num_rows == 0
    assert pq.read_schema(path).names == ["id", "text"]
    assert len(written(tmp_path / "one" / "train", 1, even_if_empty=True)) == 1


def test_a_full_last_shard_gets_no_empty_one_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_shards: None
) -> None:
    monkeypatch.setattr(parquet, "MAX_SHARD_BYTES", 1)
    paths = written(tmp_path / "sts" / "train", 30, even_if_empty=True)
    assert [pq.read_table(path).num_rows for path in paths] == [10, 10, 10]


@pytest.mark.parametrize("num", [0, 5, 25, 95])
def test_an_error_leaves_no_finished_file(tmp_path: Path, small_shards: None, num: int) -> None:
    def write() -> None:
        with ParquetShards(tmp_path / "sts" / "train", FEATURES, even_if_empty=True) as writer:
            writer.extend(rows(num))
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write()
    assert list(tmp_path.rglob("*.parquet")) == []


def test_what_is_no_column_is_left_away_and_what_is_missing_is_null(tmp_path: Path) -> None:
    with ParquetShards(tmp_path / "train", FEATURES) as writer:
        writer.add({"id": "1", "text": "a", "reply": "b"})
        writer.add({"id": "2"})
    assert read_parquet(*tmp_path.glob("*.parquet")) == [{"id": "1", "text": "a"}, {"id": "2", "text": None}]


def test_a_dataset_in_shards_loads_by_the_names_in_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 5)
    monkeypatch.setattr(parquet, "MAX_SHARD_BYTES", 20_000)
    plan = PlanArguments(str(tmp_path / "run"), 120, subgroups=["sts=2", "short-short"], languages=["en"])
    fill_journal(plan, answers(plan))
    curate(plan, CurationArguments(test_size=0.3))
    folder = plan.run_dir / "dataset"
    configs = {config["config_name"]: config for config in DatasetCard.load(folder / "README.md").data.get("configs")}
    paths = {files["split"]: files["path"] for files in configs["sts"]["data_files"]}
    assert len(paths["train"]) > 1
    for subgroup in ("sts", "short-short"):
        splits = load_dataset(str(folder), subgroup, cache_dir=str(tmp_path / "cache"))
        for split in ("train", "test"):
            files = sorted((folder / subgroup).glob(f"{split}-*.parquet"))
            assert list(splits[split]["id"]) == [row["id"] for row in read_parquet(*files)]
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    named = [
        p
        for c in front["configs"]
        for f in c["data_files"]
        for p in ([f["path"]] if isinstance(f["path"], str) else f["path"])
    ]
    assert sorted(named) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    folder, new = tmp_path / "dataset", tmp_path / "work" / "dataset"
    for text in ("first", "second"):
        new.mkdir(parents=True)
        (new / text).write_text(text)
        replace_folder(folder, new)
        assert [path.name for path in folder.iterdir()] == [text]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "work"]


def crash_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the `number`th rename fail, as if the process were gone."""
    rename, calls = Path.rename, list[Path]()

    def renamed(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == number:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)


def make_folder(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text(text)


@pytest.mark.parametrize("crash", [1, 2])
def test_there_is_always_a_complete_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int) -> None:
    """Also when the process is gone before the first of the two renames, or between them."""
    folder, new = tmp_path / "dataset", tmp_path / "new"
    make_folder(folder, "old")
    make_folder(new, "new")
    with monkeypatch.context() as patch:
        crash_at(patch, crash)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(folder, new)
    assert ((folder if crash == 1 else tmp_path / "dataset.old") / "file").read_text() == "old"
    make_folder(new, "newer")
    replace_folder(folder, new)
    assert folder_bytes(tmp_path).keys() == {"dataset/file"}
    assert (folder / "file").read_text() == "newer"
