"""The verb `train`: a model folder is written once, whole, and replaced only when asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from dataset_builder.errors import InputError
from tests.tiny_datasets import example, write_dataset
from tests.tiny_models import (
    one_thread,  # noqa: F401  autouse
    save_tiny_model,
)
from trainer.config import ContrastiveTrainingArguments, DataArguments, EmbeddingModelConfig
from trainer.record import RECORD
from trainer.train import train

# peft 0.21 asks for it on each PeftModel, transformers 5.23 has renamed it
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SHORT = {"per_device_train_batch_size": 4, "max_seq_length": 24, "logging_steps": 1, "warmup_steps": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("base") / "tiny-qwen3")


def _write_dataset(folder: Path, num: int = 8) -> Path:
    rows = {
        "short-long": [example("short-long", i) for i in range(num)],
        "bitext": [example("bitext", i) for i in range(5)],
    }
    return write_dataset(folder, rows | {"short-long/test": [example("short-long", i) for i in range(100, 104)]})


def _train(run_dir: Path, base: Path, **changes: Any) -> str:
    """Call the verb with the real settings, given flat as on the command line."""
    groups: list[dict[str, Any]] = [{}, {}, {}]
    settings = {"output_dir": str(run_dir), "model_name_or_path": str(base), "use_cpu": True} | SHORT | changes
    kinds: tuple[Any, ...] = (DataArguments, EmbeddingModelConfig, ContrastiveTrainingArguments)
    for name, value in settings.items():
        place = next(i for i, kind in enumerate(kinds) if name in kind.__dataclass_fields__)
        groups[place][name] = value
    data, model, arguments = (kind(**group) for kind, group in zip(kinds, groups, strict=True))
    done = train(data, model, arguments)
    assert done
    return done


def _files(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def _record(run_dir: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run_dir / "model" / RECORD).read_text())
    return record


@pytest.fixture(scope="module")
def _first_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("first") / "run"
    _write_dataset(run_dir / "dataset")
    _train(run_dir, base)
    return run_dir


@pytest.fixture
def run_dir(_first_run: Path, tmp_path: Path) -> Path:
    """A run whose model is trained, the test's own."""
    return Path(shutil.copytree(_first_run, tmp_path / "run"))


def test_train_writes_the_model_folder(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_dataset(tmp_path / "dataset")
    said = _train(tmp_path, base)
    assert said.startswith(f"{tmp_path / 'model'}: 4 steps on 13 examples in ")
    out, err = capsys.readouterr()
    assert out == ""
    assert "train 4/4 (100.0%) | loss " in err
    assert "| recall@1 " in err
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "model"}
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["cats"]).shape == (1, 32)


def test_record(run_dir: Path, base: Path) -> None:
    record = _record(run_dir)
    assert record["base_model"]["name"] == "tiny-qwen3"
    assert len(record["base_model"]["revision"]) == 40
    assert record["dataset"]["num_examples"] == 13
    assert record["dataset"]["examples"] == {"short-long": {"en": 8}, "bitext": {"en": 5}}
    arguments = record["arguments"]
    assert arguments["lora_r"] == 16
    assert arguments["lora_target_modules"] == "all-linear"
    assert arguments["temperature"] == 0.02
    assert arguments["learning_rate"] == 1e-4
    assert arguments["max_seq_length"] == 24
    assert record["num_steps"] == 4
    assert [log["step"] for log in record["log_history"]] == [1, 2, 3, 4]
    assert set(record["log_history"][0]) >= {"loss", "recall_at_1", "positive_similarity", "negative_similarity"}
    assert set(record["versions"]) >= {"torch", "transformers", "peft"}
    text = (run_dir / "model" / RECORD).read_text()
    assert str(base.parent) not in text
    assert str(run_dir.parent) not in text


def test_second_call_does_nothing(run_dir: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(run_dir)
    assert _train(run_dir, base) == f"{run_dir / 'model'} is up to date"
    assert "train: nothing to do" in capsys.readouterr().err
    assert _files(run_dir) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 2e-4}, r"`learning_rate` was 0\.0001 and is 0\.0002"),
        ({"lora_r": 4}, r"`lora_r` was 16 and is 4"),
        ({"use_peft": False}, r"`use_peft` was True and is False"),
        ({"subgroups": ["bitext"]}, r"`subgroups` .*\['bitext'\]"),
        ({"seed": 1}, r"`seed` was 42 and is 1"),
        ({"max_steps": 3}, r"`max_steps` was None and is 3"),
        ({"temperature": 0.05}, r"`temperature` was 0\.02 and is 0\.05"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_changed_settings_are_refused(run_dir: Path, base: Path, changes: dict[str, Any], message: str) -> None:
    before = _files(run_dir)
    with pytest.raises(InputError, match=message):
        _train(run_dir, base, **changes)
    assert _files(run_dir) == before


@pytest.mark.parametrize(
    "changes",
    [{"save_strategy": "steps", "save_steps": 2}, {"dataloader_num_workers": 1}],
    ids=lambda value: next(iter(value)),
)
def test_settings_that_do_not_touch_the_weights_may_change(run_dir: Path, base: Path, changes: dict[str, Any]) -> None:
    assert _train(run_dir, base, **changes) == f"{run_dir / 'model'} is up to date"


def test_changed_dataset_is_refused(run_dir: Path, base: Path) -> None:
    _write_dataset(run_dir / "dataset", num=9)
    with pytest.raises(InputError, match=r"its dataset differ.*--overwrite"):
        _train(run_dir, base)


def test_changed_dataset_of_another_layout_is_refused(base: Path, tmp_path: Path) -> None:
    """The files may lie anywhere, as long as README.md names them."""
    for query in ("cats", "dogs"):
        rows = [example("sts", i) | {"query": query} for i in range(4)]
        (tmp_path / "dataset").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "dataset" / "sts.jsonl").write_text(lines)
        (tmp_path / "dataset" / "README.md").write_text(
            "---\nconfigs:\n- config_name: sts\n  data_files: sts.jsonl\n---\n"
        )
        if query == "cats":
            _train(tmp_path, base)
    with pytest.raises(InputError, match="its dataset differ"):
        _train(tmp_path, base)


def test_changed_base_model_is_refused(run_dir: Path, base: Path, tmp_path: Path) -> None:
    other = save_tiny_model("qwen3", tmp_path / "other" / base.name, seed=1)
    with pytest.raises(InputError, match=r"`revision` was '\w{40}' and is '\w{40}'"):
        _train(run_dir, other)


def test_a_moved_run_is_still_up_to_date(run_dir: Path, base: Path, tmp_path: Path) -> None:
    moved = run_dir.rename(tmp_path / "elsewhere")
    base_moved = Path(shutil.copytree(base, tmp_path / base.name))
    assert _train(moved, base_moved) == f"{moved / 'model'} is up to date"


def test_a_folder_that_is_no_model_of_ours_is_refused(run_dir: Path, base: Path) -> None:
    (run_dir / "model" / RECORD).unlink()
    with pytest.raises(InputError, match=r"another --output_dir, or --overwrite"):
        _train(run_dir, base)


def test_overwrite(run_dir: Path, base: Path) -> None:
    (run_dir / "model" / "of-the-old-one.txt").write_text("x")
    before = _files(run_dir / "model")
    _train(run_dir, base, learning_rate=2e-2, overwrite=True)
    after = _files(run_dir / "model")
    assert _record(run_dir)["arguments"]["learning_rate"] == 2e-2
    assert "of-the-old-one.txt" not in after
    assert after["model.safetensors"][0] != before["model.safetensors"][0]
    assert {path.name for path in run_dir.iterdir()} == {"dataset", "model"}


def test_overwrite_with_nothing_changed_does_nothing(run_dir: Path, base: Path) -> None:
    before = _files(run_dir)
    assert _train(run_dir, base, overwrite=True).endswith("is up to date")
    assert _files(run_dir) == before


def test_full_fine_tuning_and_the_same_seed(base: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("one", "other"):
        _write_dataset(tmp_path / name / "dataset")
        _train(tmp_path / name, base, use_peft=False, max_steps=2)
        weights.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert not [key for key in _record(tmp_path / "one")["arguments"] if key.startswith("lora_")]


def test_resumed_from_a_checkpoint(base: Path, tmp_path: Path, run_dir: Path) -> None:
    """A run broken off in mid-epoch goes on from its checkpoint to the same weights as one never broken off."""
    _write_dataset(tmp_path / "dataset")
    _train(tmp_path, base, save_strategy="steps", save_steps=3)
    shutil.rmtree(tmp_path / "model")
    _train(tmp_path, base, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (tmp_path, run_dir)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("use_peft", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("precision", [{"bf16": True}, {"dtype": "bfloat16"}], ids=lambda value: next(iter(value)))
def test_bf16(base: Path, tmp_path: Path, use_peft: bool, precision: dict[str, Any]) -> None:
    """Mixed precision, and weights in bfloat16."""
    _write_dataset(tmp_path / "dataset")
    _train(tmp_path, base, use_peft=use_peft, learning_rate=1e-2, **precision)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    dtype = torch.bfloat16 if "dtype" in precision else torch.float32
    assert {tensor.dtype for tensor in weights.values()} == {dtype}


def test_evaluation_on_the_test_split(base: Path, tmp_path: Path) -> None:
    _write_dataset(tmp_path / "dataset")
    _train(tmp_path, base, eval_strategy="steps", eval_steps=2)
    assert (tmp_path / "model" / RECORD).is_file()


def test_evaluation_without_a_test_split_is_refused(base: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {"sts": [example("sts", i) for i in range(4)]})
    with pytest.raises(InputError, match="test"):
        _train(tmp_path, base, eval_strategy="epoch")
