"""`accelerate launch` with two processes trains what one process does on the same global batch, by DDP and by FSDP2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset
from safetensors.torch import load_file

from embedsmith import RECIPES_DIR
from tests.runs import embedsmith
from tests.tiny_datasets import example
from tests.tiny_models import save_tiny_model

FLAGS = ("--max_seq_length", "48", "--max_steps", "5", "--logging_steps", "1", "--warmup_steps", "0", "--use_cpu")
FULL = ("--no_use_peft", "--learning_rate", "1e-3", "--save_strategy", "steps", "--save_steps", "2")
LAUNCH = {"distributed_type": "MULTI_GPU", "use_cpu": False, "mixed_precision": "no", "main_process_port": 0}
LORA = ("--optim", "sgd", "--learning_rate", "0.3", "--lora_dropout", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A dataset and a base model, as flags."""
    folder = tmp_path_factory.mktemp("data")
    rows = [example("short-long", i) for i in range(40)]
    (folder / "dataset" / "short-long").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(folder / "dataset" / "short-long" / "train.parquet")
    configs = [{"config_name": "short-long", "data_files": [{"split": "train", "path": "short-long/train.parquet"}]}]
    (folder / "dataset" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    base = save_tiny_model("qwen3", folder)
    return ("--dataset_name", str(folder / "dataset"), "--model_name_or_path", str(base))


def launch(kind: str, num_processes: int, folder: Path, *flags: str) -> dict[str, torch.Tensor]:
    """Train in one or two processes; return the weights, the losses and the gradients of the token embeddings."""
    out = folder.with_suffix(".safetensors")
    size = ("--per_device_train_batch_size", str(8 // num_processes))
    command = [sys.executable, "-m", "tests.launched"]
    if num_processes > 1:
        config = folder.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(LAUNCH | {"num_processes": num_processes}))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, kind, str(out), "train", "--output_dir", str(folder), *FLAGS, *size, *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((folder / "model" / "embedsmith.json").read_text())
    assert record["hardware"]["num_devices"] == num_processes
    losses = torch.tensor([log["loss"] for log in record["log_history"]])
    return load_file(folder / "model" / "model.safetensors") | load_file(out) | {"losses": losses}


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the norm of the difference, by the norm of the first."""
    return float((one - other).double().norm() / one.double().norm().clamp_min(1e-30))


@pytest.fixture(scope="module")
def full_ddp(data: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """All weights trained by two DDP processes, with checkpoints."""
    folder = tmp_path_factory.mktemp("ddp") / "full"
    return folder, launch("ddp", 2, folder, *data, *FULL)


def compare(alone: dict[str, torch.Tensor], both: dict[str, torch.Tensor], base: Path) -> None:
    """Compare loss, gradients of the token embeddings and weights after five steps."""
    before = load_file(base / "model.safetensors")
    changed = max(relative_error(before[name], alone[name]) for name in before if name in alone)
    assert changed > 1e-3  # else the comparison would say nothing
    assert both.keys() == alone.keys()
    for name, tensor in both.items():
        if name != "is_sharded":
            assert relative_error(alone[name], tensor) <= 1e-5, name


def test_loss_gradients_and_weights_are_those_of_one_process(
    data: tuple[str, ...], tmp_path: Path, full_ddp: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    alone, base = launch("ddp", 1, tmp_path / "alone", *data, *FULL), Path(data[3])
    assert "step 4" in alone
    compare(alone, full_ddp[1], base)
    sharded = launch("fsdp2", 2, tmp_path / "fsdp2", *data, *FULL)
    assert sharded["is_sharded"]
    assert not full_ddp[1]["is_sharded"]
    compare(alone, sharded, base)


def test_sharded_adapters_are_those_of_one_process(data: tuple[str, ...], tmp_path: Path) -> None:
    alone = launch("ddp", 1, tmp_path / "alone", *data, *LORA)
    sharded = launch("fsdp2", 2, tmp_path / "fsdp2", *data, *LORA)
    assert sharded["is_sharded"]
    compare(alone, sharded, Path(data[3]))


def test_two_processes_resumed_in_the_middle_of_an_epoch_give_the_weights_of_an_undisturbed_run(
    data: tuple[str, ...], tmp_path: Path, full_ddp: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder, whole = full_ddp
    shutil.copytree(folder / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = launch("ddp", 2, tmp_path / "resumed", *data, *FULL, "--resume_from_checkpoint", "last")
    assert "step 1" not in resumed  # it did not start from the beginning
    for name in load_file(folder / "model" / "model.safetensors"):
        assert torch.equal(whole[name], resumed[name]), name


@pytest.mark.parametrize("path", sorted((RECIPES_DIR / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_recipes(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    expected = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert str(config.distributed_type.value) == expected[path.stem]


def test_they_are_no_recipes_of_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert embedsmith("train", "--config", "accelerate") == 2
    assert "shipped recipes: demo, paper" in capsys.readouterr().err
