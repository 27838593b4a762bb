"""The verb `train`: dataset in, model folder out; a model that is already there is not trained again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections import Counter
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from huggingface_hub import HfApi
from peft import get_peft_model
from transformers import (
    AutoModel,
    AutoTokenizer,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.utils import get_peft_config, get_quantization_config

from dataset_builder.errors import InputError
from dataset_builder.progress import duration
from dataset_builder.schema import instruct
from trainer.base_model import BaseModel, files_digest, resolve_base_model
from trainer.config import ContrastiveTrainingArguments, DataArguments, EmbeddingModelConfig
from trainer.contrastive import ContrastiveTrainer
from trainer.data import load_examples
from trainer.eos import ensure_eos
from trainer.export import export_model

RECORD = "embedsmith.json"
"""File in the model folder that holds where the model comes from; card and report are made from it."""
_NOT_SETTINGS = {  # of one machine or one call, of no influence on the weights, or named elsewhere in the record
    *("output_dir", "run_name", "logging_dir", "overwrite", "disable_tqdm", "resume_from_checkpoint", "hub_token"),
    *("accelerator_config", "debug", "remove_unused_columns", "report_to", "project", "local_rank"),
    *("dataset_name", "dataset_revision", "model_name_or_path", "model_revision", "activation_checkpointing"),
}
_PACKAGES = ("accelerate", "datasets", "embedsmith", "peft", "sentence-transformers", "torch", "transformers", "trl")


class ProgressLine(TrainerCallback):
    """One line on stderr at each log: step, loss, recall@1, similarities and ETA."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; a resumed run has steps behind it that took no time now."""
        self._start, self._first_step = time.monotonic(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        done = max(state.global_step - self._first_step, 1)
        left_s = (time.monotonic() - self._start) / done * (state.max_steps - state.global_step)
        print(
            f"train {state.global_step:,}/{state.max_steps:,} ({state.global_step / state.max_steps:.1%})"
            f" | loss {logs['loss']:.3f} | recall@1 {logs['recall_at_1']:.2f}"
            f" | cosine {logs['positive_similarity']:.2f} positive, {logs['negative_similarity']:.2f} negative"
            f" | eta {duration(left_s)}",
            file=sys.stderr,
            flush=True,
        )


def train(data: DataArguments, model_config: EmbeddingModelConfig, args: ContrastiveTrainingArguments) -> str:
    """Fine-tune a model on a dataset and write `<output_dir>/model`; return a sentence on what was done.

    Raises:
        InputError: if model, dataset or tokenizer cannot be used, or another model is already there.
        RunError: if training fails or the exported model does not give the vectors of the trained one.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    run_dir = Path(args.output_dir or "")
    folder = run_dir / "model"
    dataset_name = data.dataset_name or str(run_dir / "dataset")
    examples = load_examples(dataset_name, "train", data.subgroups, data.dataset_revision)
    if not len(examples):
        raise InputError(f"The dataset {dataset_name} has no train split with rows; nothing can be trained on it.")
    base = resolve_base_model(model_config.model_name_or_path or "", model_config.model_revision)
    record = {
        "base_model": {"name": base.name, "revision": base.revision, "is_hub_id": base.is_hub_id},
        "dataset": _dataset_identity(dataset_name, data.dataset_revision, examples),
        "arguments": _settings(data, model_config, args),
    }
    if _is_there(folder, record, overwrite=data.overwrite):
        print(f"train: nothing to do, {folder} was trained with these settings on this dataset", file=sys.stderr)
        return f"{folder} is up to date"
    transformers.set_seed(args.seed)  # before the adapters are initialised
    tokenizer = ensure_eos(AutoTokenizer.from_pretrained(base.path, revision=model_config.model_revision))
    model = _load(base, model_config)
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=examples,
        eval_dataset=load_examples(dataset_name, "test", data.subgroups, data.dataset_revision),
        processing_class=tokenizer,
        callbacks=[ProgressLine()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.monotonic() - started
    if not trainer.is_world_process_zero():
        return ""
    partial = folder.with_name("model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    first = examples[:8]
    probes = [instruct(task, query) for task, query in zip(first["instruction"], first["query"], strict=True)]
    export_model(model, tokenizer, partial, max_seq_length=args.max_seq_length, probes=probes)
    record |= _outcome(trainer, seconds)
    (partial / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return f"{folder}: {trainer.state.global_step:,} steps on {len(examples):,} examples in {duration(seconds)}"


def _is_there(folder: Path, record: dict[str, Any], *, overwrite: bool) -> bool:
    """Tell whether the folder holds the model that `record` would give."""
    if not folder.exists():
        return False
    try:
        theirs = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        theirs = {}
    changed = [key for key in record if json.loads(json.dumps(record[key])) != theirs.get(key)]
    if changed and not overwrite:
        raise InputError(
            f"{folder} holds a model that was trained otherwise (its {' and '.join(changed)} differ: "
            f"{_first_difference(record, theirs, changed[0])}); use another --output_dir, or --overwrite to replace it."
        )
    return not changed


def _first_difference(record: dict[str, Any], theirs: dict[str, Any], key: str) -> str:
    ours, other = record[key], theirs.get(key) or {}
    name = next((name for name in {**ours, **other} if ours.get(name) != other.get(name)), key)
    return f"`{name}` was {other.get(name)!r} and is {ours.get(name)!r}"


def _load(base: BaseModel, config: EmbeddingModelConfig) -> Any:
    quantization = get_quantization_config(config)
    model = AutoModel.from_pretrained(
        base.path,
        revision=config.model_revision,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        quantization_config=quantization,
        **({"device_map": {"": 0}} if quantization else {}),
    )
    model.config.use_cache = False
    peft_config = get_peft_config(config)
    return get_peft_model(model, peft_config) if peft_config else model


def _dataset_identity(name: str, revision: str | None, examples: Dataset) -> dict[str, Any]:
    folder = Path(name)
    if folder.is_dir():
        identity = {"name": folder.name, "revision": files_digest(folder, ("*/*.parquet",))[:40], "is_hub_id": False}
    else:
        identity = {"name": name, "revision": HfApi().dataset_info(name, revision=revision).sha, "is_hub_id": True}
    counts = sorted(Counter(zip(examples["subgroup"], examples["language"], strict=True)).items())
    by_subgroup: dict[str, dict[str, int]] = {}
    for (subgroup, language), count in counts:
        by_subgroup.setdefault(subgroup, {})[language] = count
    return identity | {"num_examples": len(examples), "examples": by_subgroup}


def _settings(*groups: Any) -> dict[str, Any]:
    """Return what was set: the method's own settings always, everything else where it is not the default."""
    always = {
        *("temperature", "max_seq_length", "learning_rate", "warmup_steps", "weight_decay", "num_train_epochs", "seed"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type", "use_peft", "dtype"),
    }
    settings: dict[str, Any] = {}
    for group in groups:
        for f in fields(group):
            value = getattr(group, f.name)
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if f.name in _NOT_SETTINGS or value is None or not f.init:
                continue
            if f.name.startswith("lora_") and not getattr(group, "use_peft", True):
                continue
            if f.name in always or f.name.startswith("lora_") or value != default:
                settings[f.name] = value if isinstance(value, (int, float, str, bool, list, type(None))) else str(value)
    return settings


def _outcome(trainer: ContrastiveTrainer, seconds: float) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "num_steps": trainer.state.global_step,
        "training_seconds": round(seconds, 1),
        "hardware": {"device": device, "num_devices": trainer.args.world_size, "cpu_cores": cores},
        "versions": {name: version(name) for name in _PACKAGES},
        "log_history": [log for log in trainer.state.log_history if "loss" in log],
    }
