"""Training a tiny model: the loss falls, equal seeds give equal weights, a resumed run those of an undisturbed one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from dataset_builder.errors import RunError
from tests.tiny_datasets import example
from tests.tiny_models import (
    one_thread,  # noqa: F401  autouse
    save_tiny_model,
)
from trainer.collator import ContrastiveCollator
from trainer.config import ContrastiveTrainingArguments
from trainer.contrastive import ContrastiveTrainer
from trainer.encoding import EosEncoder
from trainer.eos import ensure_eos
from trainer.gradient_cache import embed
from trainer.loss import info_nce

# peft 0.21 asks for it on each PeftModel, transformers 5.23 has renamed it
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = Dataset.from_list([example("short-long", i) for i in range(24)] + [example("sts", i) for i in range(16)])
"""Five batches of eight an epoch."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def model(model_folder: Path) -> Any:
    return AutoModel.from_pretrained(model_folder)


def _model(folder: Path, *, lora: bool, seed: int = 0) -> Any:
    model = AutoModel.from_pretrained(folder)
    if not lora:
        return model
    torch.manual_seed(seed)
    return get_peft_model(
        model, LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", r=4, lora_dropout=0.2)
    )


def _trainer(
    model: Any, model_folder: Path, output_dir: Path, rows: Dataset = ROWS, **changes: Any
) -> ContrastiveTrainer:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 0,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "temperature": 0.05,
        "max_seq_length": 48,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return ContrastiveTrainer(
        model=model,
        args=ContrastiveTrainingArguments(output_dir=str(output_dir), **settings | changes),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=ensure_eos(AutoTokenizer.from_pretrained(model_folder)),
    )


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def _losses(trainer: ContrastiveTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


# The loss of a batch


def _loss(trainer: ContrastiveTrainer, rows: list[dict[str, Any]]) -> float:
    assert trainer.model is not None
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows)))


def test_loss_of_a_batch(model: Any, model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(model, model_folder, tmp_path)
    rows = [example("short-long", i) for i in range(4)]
    batch = ContrastiveCollator(trainer.processing_class, 48)(rows)  # type: ignore[arg-type]
    with torch.no_grad():
        encode = partial(EosEncoder(model.eval()), model)
        query, positive, negative = embed(encode, batch["input_ids"], batch["lengths"], 2_048).tensor_split(3)
    expected = info_nce(query, torch.cat([positive, negative]), temperature=0.05).loss.item()
    assert _loss(trainer, rows) == pytest.approx(expected, rel=1e-5)


def test_symmetric_loss_is_the_mean_of_both_ways(model: Any, model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(model, model_folder, tmp_path)
    rows = [example("sts", i) for i in range(4)]
    swapped = [row | {"query": row["positive"], "positive": row["query"]} for row in rows]
    assert _loss(trainer, swapped) == pytest.approx(_loss(trainer, rows), rel=1e-5)
    one_way = [[row | {"subgroup": "long-long"} for row in each] for each in (rows, swapped)]
    assert _loss(trainer, one_way[0]) != pytest.approx(_loss(trainer, one_way[1]), rel=1e-5)


def test_false_negatives_are_left_out(model: Any, model_folder: Path, tmp_path: Path) -> None:
    """A batch with an example twice has the loss of the batch with it once, were both rows to see the same."""
    trainer = _trainer(model, model_folder, tmp_path)
    row = example("long-short", 0) | {"negative": None}
    assert _loss(trainer, [row, row]) == 0
    assert _loss(trainer, [row, example("long-short", 1) | {"positive": row["positive"], "negative": None}]) == 0
    pair = [example("sts", i) | {"negative": None, "query": "cats"} for i in range(2)]
    assert _loss(trainer, pair) == 0


def test_a_loss_that_is_not_finite_stops_the_training(model: Any, model_folder: Path, tmp_path: Path) -> None:
    torch.nn.init.constant_(model.norm.weight, torch.nan)
    with pytest.raises(RunError, match=r"The loss is nan at step 0; lower --learning_rate"):
        _trainer(model, model_folder, tmp_path).train()


# Training


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_training(model_folder: Path, tmp_path: Path, lora: bool) -> None:
    model = _model(model_folder, lora=lora)
    before = _weights(model)
    trainer = _trainer(model, model_folder, tmp_path, num_train_epochs=5, learning_rate=1e-2 if lora else 3e-3)
    at_first = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses, after = _losses(trainer), _weights(model)
    assert len(losses) == 25
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert trainer.evaluate()["eval_loss"] < 0.6 * at_first
    recalls = [log["recall_at_1"] for log in trainer.state.log_history if "loss" in log]
    assert sum(recalls[-5:]) > sum(recalls[:5])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name} if lora else changed == set(before)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_resumed_run_equals_an_undisturbed_one(model_folder: Path, tmp_path: Path, lora: bool) -> None:
    """Ten steps in two epochs; checkpoints in the middle of each."""
    models = [_model(model_folder, lora=lora, seed=seed) for seed in (0, 0, 1, 2)]
    whole = _trainer(models[0], model_folder, tmp_path, save_strategy="steps", save_steps=3)
    whole.train()
    same_seed = _trainer(models[1], model_folder, tmp_path / "again")
    same_seed.train()
    _assert_same_bits(_weights(models[0]), _weights(models[1]))
    assert _losses(whole) == _losses(same_seed)
    for model, step in ((models[2], 3), (models[3], 9)):
        resumed = _trainer(model, model_folder, tmp_path / f"resumed-{step}")
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.state.global_step == 10
        assert _losses(resumed) == _losses(whole)
        _assert_same_bits(_weights(models[0]), _weights(model))


def test_another_seed_gives_other_weights(model_folder: Path, tmp_path: Path) -> None:
    models = [_model(model_folder, lora=False) for _ in range(2)]
    for model, seed in zip(models, (1, 2), strict=True):
        _trainer(model, model_folder, tmp_path, seed=seed, max_steps=2).train()
    assert not torch.equal(models[0].norm.weight, models[1].norm.weight)


def test_every_row_once_an_epoch_and_in_another_order(model: Any, model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(model, model_folder, tmp_path)
    collate, seen = trainer.data_collator, []

    def recorded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        seen.append([row["query"] for row in rows])
        return collate(rows)

    trainer.data_collator = recorded
    trainer.train()
    epochs = seen[:5], seen[5:]
    for epoch in epochs:
        assert sorted(query for batch in epoch for query in batch) == sorted(ROWS["query"])
    assert epochs[0] != epochs[1]


def test_accumulated_gradients_are_the_mean_over_batches(model_folder: Path, tmp_path: Path) -> None:
    rows = ROWS.select(range(24, 40))  # two batches
    models = [_model(model_folder, lora=False) for _ in range(2)]
    alone, together = (
        _trainer(
            model,
            model_folder,
            tmp_path,
            rows,
            learning_rate=0.0,
            gradient_accumulation_steps=steps,
            num_train_epochs=1,
        )
        for model, steps in zip(models, (1, 2), strict=True)
    )
    alone.train()
    together.train()
    assert _losses(together) == [pytest.approx(sum(_losses(alone)) / 2, abs=1e-3)]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_activation_checkpointing_changes_nothing(model_folder: Path, tmp_path: Path, lora: bool) -> None:
    models = [_model(model_folder, lora=lora) for _ in range(2)]
    for model, checkpointing in zip(models, (False, True), strict=True):
        _trainer(model, model_folder, tmp_path, activation_checkpointing=checkpointing, max_steps=3).train()
    for name, tensor in _weights(models[0]).items():
        torch.testing.assert_close(_weights(models[1])[name], tensor, atol=1e-5, rtol=1e-4)


def test_evaluation(model_folder: Path, tmp_path: Path) -> None:
    """The loss is the mean over the held-out examples, without dropout, and leaves the training's means alone."""
    model = _model(model_folder, lora=True)
    trainer = _trainer(model, model_folder, tmp_path)
    held_out = Dataset.from_list(
        [example("bitext", i) for i in range(8)] + [example("short-long", i) for i in range(3)]
    )
    batches = [[held_out[i] for i in rows] for rows in (range(8), range(8, 11))]
    expected = (8 * _loss(trainer, batches[0]) + 3 * _loss(trainer, batches[1])) / 11
    model.train()
    metrics = trainer.evaluate(held_out)
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.evaluate(held_out)["eval_loss"] == metrics["eval_loss"]
    assert not trainer.meter.training()


def test_evaluation_while_training(model: Any, model_folder: Path, tmp_path: Path) -> None:
    trainer = _trainer(model, model_folder, tmp_path, eval_strategy="steps", eval_steps=5)
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_adapters_are_saved_in_checkpoints_alone(model_folder: Path, tmp_path: Path) -> None:
    model = _model(model_folder, lora=True)
    _trainer(model, model_folder, tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    assert isinstance(model, PeftModel)
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint-2")
    assert tokenizer("cats")["input_ids"][-1] == tokenizer.eos_token_id


def test_embeddings_have_room_to_move(model: Any, model_folder: Path) -> None:
    """The tiny model tells texts apart, else the tests above would say little."""
    tokenizer = ensure_eos(AutoTokenizer.from_pretrained(model_folder))
    batch = tokenizer(ROWS["positive"][:16], padding=True, return_tensors="pt")
    vectors = functional.normalize(
        EosEncoder(model)(model, batch["input_ids"], batch["attention_mask"].sum(dim=1)), dim=-1
    )
    assert (vectors @ vectors.T).mean() < 0.95
