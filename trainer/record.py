"""The record of a training: what went in, what was set and what came out, kept as JSON in the model folder."""

from __future__ import annotations

import os
import platform
from collections import Counter
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer

from trainer.data import dataset_revision

RECORD = "embedsmith.json"
"""File in the model folder that holds where the model comes from; card and report are made from it."""
_NOT_SETTINGS = {  # of one machine or one call, of no influence on the weights, or named elsewhere in the record
    *("output_dir", "run_name", "logging_dir", "overwrite", "disable_tqdm", "resume_from_checkpoint", "hub_token"),
    *("accelerator_config", "debug", "remove_unused_columns", "report_to", "project", "local_rank"),
    *("dataset_name", "dataset_revision", "model_name_or_path", "model_revision", "activation_checkpointing"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "dataloader_num_workers"),
    *("chunk_tokens", "kept_tokens", "ddp_find_unused_parameters", "dataloader_pin_memory"),
    *("logging_strategy", "logging_steps", "eval_strategy", "eval_steps", "per_device_eval_batch_size", "use_cpu"),
}
_PACKAGES = ("accelerate", "datasets", "embedsmith", "peft", "sentence-transformers", "torch", "transformers", "trl")


def dataset_identity(name: str, revision: str | None, examples: Dataset) -> dict[str, Any]:
    """Return name and state of the dataset, and the number of examples by subgroup and language."""
    is_folder = Path(name).is_dir()
    identity: dict[str, Any] = {
        "name": Path(name).name if is_folder else name,
        "revision": dataset_revision(name, revision),
        "is_hub_id": not is_folder,
    }
    counts = sorted(Counter(zip(examples["subgroup"], examples["language"], strict=True)).items())
    by_subgroup: dict[str, dict[str, int]] = {}
    for (subgroup, language), count in counts:
        by_subgroup.setdefault(subgroup, {})[language] = count
    return identity | {"num_examples": len(examples), "examples": by_subgroup}


def settings(*groups: Any) -> dict[str, Any]:
    """Return what was set: the method's own settings always, everything else where it is not the default."""
    always = {
        *("temperature", "max_seq_length", "learning_rate", "warmup_steps", "weight_decay", "num_train_epochs", "seed"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "use_peft", "dtype"),
    }
    found: dict[str, Any] = {}
    for group in groups:
        for f in fields(group):
            value = getattr(group, f.name)
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if f.name in _NOT_SETTINGS or value is None or not f.init:
                continue
            if f.name.startswith("lora_") and not getattr(group, "use_peft", True):
                continue
            if f.name in always or f.name.startswith("lora_") or value != default:
                found[f.name] = (
                    value if isinstance(value, (int, float, bool, list)) else str(getattr(value, "value", value))
                )
    return found


def outcome(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """Return steps, seconds, hardware, package versions and the logged losses of a finished training."""
    device = torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else f"{platform.machine()} CPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "num_steps": trainer.state.global_step,
        "training_seconds": round(seconds, 1),
        "hardware": {"device": device, "num_devices": trainer.args.world_size, "cpu_cores": cores},
        "versions": {name: version(name) for name in _PACKAGES},
        "log_history": [log for log in trainer.state.log_history if "loss" in log or "eval_loss" in log],
    }
