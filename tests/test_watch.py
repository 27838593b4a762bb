"""What ends a training loudly, and what it shows of itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoTokenizer

from dataset_builder.errors import InputError, RunError
from tests.tiny_datasets import example
from tests.tiny_models import (
    one_thread,  # noqa: F401  autouse
    save_tiny_model,
)
from trainer.config import ContrastiveTrainingArguments
from trainer.contrastive import ContrastiveTrainer
from trainer.curves import training_curves
from trainer.eos import ensure_eos
from trainer.meter import flops_per_token
from trainer.watch import ProgressLine, Watch

# peft 0.21 asks for it on each PeftModel, transformers 5.23 has renamed it
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"))


def _trainer(
    model: Any, folder: Path, tmp_path: Path, rows: list[dict[str, Any]], **changes: Any
) -> ContrastiveTrainer:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "warmup_steps": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "disable_tqdm": True,
        "max_seq_length": 48,
    }
    return ContrastiveTrainer(
        model,
        ContrastiveTrainingArguments(str(tmp_path), **settings | changes),
        Dataset.from_list(rows),
        ensure_eos(AutoTokenizer.from_pretrained(folder)),
        callbacks=[Watch(), ProgressLine()],
    )


def _rows(num: int = 40) -> list[dict[str, Any]]:
    return [example("short-long", i) for i in range(num)]


def _lora(folder: Path) -> Any:
    config = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", r=4)
    return get_peft_model(AutoModel.from_pretrained(folder), config)


def test_a_sound_training_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = _trainer(_lora(folder), folder, tmp_path, _rows())
    trainer.train()
    assert trainer.state.global_step == 10
    assert "tok/s | eta" in capsys.readouterr().err
    logs = [log for log in trainer.state.log_history if "loss" in log]
    names = {"recall_at_1", "mrr", "positive_similarity", "negative_similarity", "hard_negative_similarity"}
    assert all(log.keys() >= names | {"masked_share", "padding_ratio", "tokens_per_s"} for log in logs)
    assert all(1 <= log["padding_ratio"] < 1.5 for log in logs)
    assert all(0 <= log["recall_at_1"] <= log["mrr"] <= 1 for log in logs)


def test_adapters_that_no_gradient_reaches(folder: Path, tmp_path: Path) -> None:
    model = _lora(folder)
    trainer = _trainer(model, folder, tmp_path, _rows())
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.register_hook(torch.zeros_like)
    with pytest.raises(
        RunError, match=r"LoRA's adapters still do nothing after 3 steps: all their B matrices are zero"
    ):
        trainer.train()


def test_gradients_that_are_not_finite(folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(RunError, match=r"The gradients are nan at step 1; lower --learning_rate"):
        _trainer(model, folder, tmp_path, _rows()).train()


def test_embeddings_that_have_become_the_same(folder: Path, tmp_path: Path) -> None:
    """A final norm that drowns the text in a constant."""
    model = AutoModel.from_pretrained(folder)
    model.norm.register_forward_hook(lambda module, inputs, output: output * 1e-3 + torch.eye(output.shape[-1])[0])
    with pytest.raises(RunError, match=r"All embeddings have become the same \(mean cosine of .* (1\.0000|0\.999\d)"):
        _trainer(model, folder, tmp_path, _rows(), learning_rate=0.0).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subgroup_weights": ["sts=many"]}, "`subgroup_weights` has 'sts=many'; give SUBGROUP=NUMBER"),
        ({"subgroup_weights": ["st=1"]}, "known subgroups are"),
        ({"chunk_tokens": 0}, "`chunk_tokens` is 0; it is a number of tokens, at least 1"),
        ({"kept_tokens": -1}, "`kept_tokens` is -1"),
        ({"matryoshka_dims": [0]}, "`matryoshka_dims` has 0"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ContrastiveTrainingArguments(str(tmp_path), use_cpu=True, **changes)


def test_weights_and_cuts_are_trained_with(folder: Path, tmp_path: Path) -> None:
    rows = _rows(16) + [example("sts", i) for i in range(16)]
    model = AutoModel.from_pretrained(folder)
    trainer = _trainer(model, folder, tmp_path, rows, subgroup_weights=["sts=0.5"], matryoshka_dims=[8])
    assert len(trainer.get_train_dataloader()) == 4 + 2
    plain = _trainer(AutoModel.from_pretrained(folder), folder, tmp_path / "plain", rows, subgroup_weights=["sts=0.5"])
    trainer.train()
    plain.train()
    losses = [[log["loss"] for log in each.state.log_history if "loss" in log] for each in (trainer, plain)]
    assert len(losses[0]) == 6
    assert losses[0][0] != losses[1][0]


def test_operations_of_a_token(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    num = sum(weight.numel() for weight in model.parameters()) - model.embed_tokens.weight.numel()
    assert flops_per_token(model) == 6 * num
    adapted = _lora(folder)
    num_trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert flops_per_token(adapted) == 4 * (num + num_trained) + 2 * num_trained


def test_curves() -> None:
    logs: list[dict[str, Any]] = [
        {
            "step": i,
            "loss": 5 / i,
            "recall_at_1": 0.1 * i,
            "mrr": 0.1 * i,
            "tokens_per_s": 100.0,
            "positive_similarity": 0.5,
        }
        for i in range(1, 5)
    ]
    picture = training_curves([*logs, {"step": 4, "eval_loss": 2.0, "eval_recall_at_1": 0.3}])
    assert picture.startswith(b"\x89PNG")
    assert picture == training_curves([*logs, {"step": 4, "eval_loss": 2.0, "eval_recall_at_1": 0.3}])
    assert picture != training_curves(logs)
