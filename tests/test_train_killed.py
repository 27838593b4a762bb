"""A training that is killed in the middle of an epoch and resumed gives the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import started, wait_until
from tests.tiny_datasets import example, write_dataset
from tests.tiny_models import save_tiny_model


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_killed_and_resumed(tmp_path: Path, lora: bool) -> None:
    base = save_tiny_model("qwen3", tmp_path / "base")
    rows = {name: [example(name, i) for i in range(60)] for name in ("short-long", "sts")}
    dataset = write_dataset(tmp_path / "dataset", rows)

    def arguments(run: str) -> list[object]:
        settings = {
            "output_dir": tmp_path / run,
            "dataset_name": dataset,
            "model_name_or_path": base,
            "per_device_train_batch_size": 4,
            "max_seq_length": 24,
            "logging_steps": 1,
            "warmup_steps": 0,
            "num_train_epochs": 2,
            "save_strategy": "steps",
            "save_steps": 4,
            "chunk_tokens": 60,
            "use_peft": lora,
            "use_cpu": True,
            "learning_rate": 1e-3,
        }
        return ["train", *(part for name, value in settings.items() for part in (f"--{name}", value))]

    with started(*arguments("undisturbed")) as process:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
    with started(*arguments("killed")) as process:
        # 30 steps an epoch: in the middle of the first, while the next steps are under way
        wait_until((tmp_path / "killed" / "checkpoint-8" / "trainer_state.json").exists, 120)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not (tmp_path / "killed" / "model").exists()
    with started(*arguments("killed"), "--resume_from_checkpoint", "last") as process:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
        output = process.stderr.read() if process.stderr else ""
    assert "train 60/60" in output
    assert "train 4/60" not in output
    whole, resumed = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("undisturbed", "killed"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
