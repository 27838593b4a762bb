"""The verb `train`: what it refuses, and that nothing is left half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataset_builder.errors import InputError, RunError
from tests.test_train import SHORT, _files, _first_run, _train, _write_dataset, base, run_dir  # noqa: F401  fixtures
from tests.tiny_datasets import example, write_dataset
from tests.tiny_models import (
    MODEL_FAMILIES,
    one_thread,  # noqa: F401  autouse
    save_tiny_model,
)
from trainer.config import ContrastiveTrainingArguments, DataArguments, EmbeddingModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# What cannot be used


def test_missing_dataset(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"`dataset_name` is '{tmp_path / 'run' / 'dataset'}'"):
        _train(tmp_path / "run", base)
    assert not (tmp_path / "run").exists()


def test_dataset_without_rows_to_train_on(base: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", {"sts/test": [example("sts", 0)]})
    with pytest.raises(InputError, match="has no train split with rows"):
        _train(tmp_path, base)


def test_model_folder_without_config(tmp_path: Path) -> None:
    _write_dataset(tmp_path / "dataset")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a folder without config\.json"):
        _train(tmp_path, tmp_path / "empty")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_model_folder_without_tokenizer(tmp_path: Path, family: str) -> None:
    _write_dataset(tmp_path / "dataset")
    bare = save_tiny_model(family, tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match="tokenizer"):
        _train(tmp_path, bare)
    assert not (tmp_path / "model").exists()


def test_texts_longer_than_the_model_has_positions(tmp_path: Path) -> None:
    _write_dataset(tmp_path / "dataset")
    base = save_tiny_model("bert", tmp_path / "bert")
    with pytest.raises(InputError, match="`max_seq_length` is 513"):
        _train(tmp_path, base, max_seq_length=513)


def test_missing_checkpoint(base: Path, tmp_path: Path) -> None:
    _write_dataset(tmp_path / "dataset")
    with pytest.raises(InputError, match="`resume_from_checkpoint` is '/no/such/checkpoint'"):
        _train(tmp_path, base, resume_from_checkpoint="/no/such/checkpoint")


@pytest.mark.parametrize("name", ["no/such-model", "no such folder", "/no/such/folder"])
def test_missing_model(tmp_path: Path, name: str) -> None:
    _write_dataset(tmp_path / "dataset")
    with pytest.raises(InputError, match=f"`model_name_or_path` is '{name}', which is neither"):
        _train(tmp_path, Path(name))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (DataArguments, {"subgroups": ["shortlong"]}, r"'shortlong'; known .* Did you mean 'short-long'\?"),
        (EmbeddingModelConfig, {}, r"`model_name_or_path` is not given"),
        (ContrastiveTrainingArguments, {"temperature": 0.0}, r"`temperature` is 0\.0; it must be above 0"),
        (ContrastiveTrainingArguments, {"temperature": float("nan")}, r"`temperature` is nan"),
        (ContrastiveTrainingArguments, {"max_seq_length": 1}, r"`max_seq_length` is 1"),
    ],
)
def test_settings_that_cannot_be_used(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**changes)


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    arguments = ContrastiveTrainingArguments(output_dir=str(tmp_path))
    config = EmbeddingModelConfig(model_name_or_path="x")
    assert (arguments.temperature, arguments.learning_rate, arguments.warmup_steps) == (0.02, 1e-4, 100)
    assert (arguments.weight_decay, arguments.num_train_epochs, arguments.max_seq_length) == (0.1, 1, 512)
    assert (config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_task_type) == (
        16,
        32,
        0.1,
        "FEATURE_EXTRACTION",
    )


# Nothing half-written


def test_failed_training_leaves_no_model(base: Path, tmp_path: Path) -> None:
    _write_dataset(tmp_path / "dataset")
    with pytest.raises(RunError, match="The loss is nan"):
        _train(tmp_path, base, learning_rate=1e30, max_grad_norm=0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"dataset"}


def test_failed_export_leaves_the_old_model(run_dir: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _files(run_dir / "model")
    monkeypatch.setattr("trainer.export.MIN_COSINE", 1.1)
    with pytest.raises(RunError, match="not exported"):
        _train(run_dir, base, learning_rate=2e-3, overwrite=True)
    assert _files(run_dir / "model") == before
    assert {path.name for path in run_dir.iterdir()} <= {"dataset", "model", "model.partial"}
    monkeypatch.undo()
    _train(run_dir, base, learning_rate=2e-3, overwrite=True)
    assert {path.name for path in run_dir.iterdir()} == {"dataset", "model"}
