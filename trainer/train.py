"""The verb `train`: dataset in, model folder out; a model that is already there is not trained again."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import transformers
from accelerate.utils import extract_model_from_parallel
from datasets import Dataset
from peft import get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
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
from trainer.base_model import BaseModel, resolve_base_model
from trainer.config import ContrastiveTrainingArguments, DataArguments, EmbeddingModelConfig
from trainer.contrastive import ContrastiveTrainer
from trainer.data import load_examples
from trainer.eos import ensure_eos
from trainer.export import export_model
from trainer.record import RECORD, dataset_identity, outcome, settings


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
    _quiet()
    run_dir = Path(args.output_dir or "")
    folder = run_dir / "model"
    dataset_name = data.dataset_name or str(run_dir / "dataset")
    examples = load_examples(dataset_name, "train", data.subgroups, data.dataset_revision)
    if not len(examples):
        raise InputError(f"The dataset {dataset_name} has no train split with rows; nothing can be trained on it.")
    base = resolve_base_model(model_config.model_name_or_path or "", model_config.model_revision)
    held_out = load_examples(dataset_name, "test", data.subgroups, data.dataset_revision)
    _check(args, held_out)
    record = {
        "base_model": {"name": base.name, "revision": base.revision, "is_hub_id": base.is_hub_id},
        "dataset": dataset_identity(dataset_name, data.dataset_revision, examples),
        "arguments": settings(data, model_config, args),
    }
    if _is_there(folder, record, overwrite=data.overwrite):
        print(f"train: nothing to do, {folder} was trained with these settings on this dataset", file=sys.stderr)
        return f"{folder} is up to date"
    transformers.set_seed(args.seed)  # before the adapters are initialised
    tokenizer = load_tokenizer(base)
    model = _load(base, model_config)
    _check_length(model, args.max_seq_length)
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=examples,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
        callbacks=[ProgressLine()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.monotonic() - started
    record |= outcome(trainer, seconds)
    # under mixed precision accelerate leaves its autocast on the forward; the exported model has none
    model = extract_model_from_parallel(trainer.model, keep_fp32_wrapper=False)
    partial = folder.with_name("model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    export_model(model, tokenizer, partial, max_seq_length=args.max_seq_length, probes=_probes(examples))
    (partial / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    old = folder.with_name("model.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return f"{folder}: {trainer.state.global_step:,} steps on {len(examples):,} examples in {duration(seconds)}"


def _quiet() -> None:
    """Leave stderr to the progress line; what is dropped says nothing about the user's input."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    # peft 0.21 asks for an attribute that transformers 5.23 has renamed
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def _check(args: ContrastiveTrainingArguments, held_out: Dataset) -> None:
    if args.world_size > 1:
        raise InputError(
            f"This is one of {args.world_size} processes; negatives are not yet shared between processes, so that the loss "
            "would be another one. Train in one process, with a larger --per_device_train_batch_size."
        )
    if args.eval_strategy != "no" and not len(held_out):
        raise InputError(
            f"`eval_strategy` is '{args.eval_strategy}' but the dataset has no test split; curate with --test_size above 0."
        )
    resume = args.resume_from_checkpoint
    if resume and not Path(resume).is_dir():
        raise InputError(f"`resume_from_checkpoint` is '{resume}', which is no folder; give a checkpoint-N folder.")


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base model, keeping the EOS contract.

    Raises:
        InputError: if the model comes without a usable tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision if base.is_hub_id else None)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The tokenizer of {base.name} cannot be read ({reason}); it needs a tokenizer.json."
        ) from None
    # without its files a tokenizer comes up with a handful of special tokens, to which every word is unknown
    ids = tokenizer("the quick brown fox jumps", add_special_tokens=False)["input_ids"]
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise InputError(
            f"The tokenizer of {base.name} knows no word of English; are its files (tokenizer.json) there?"
        )
    return ensure_eos(tokenizer)


def _check_length(model: nn.Module, max_seq_length: int) -> None:
    """Refuse texts longer than a model with learned positions can read."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            # XLM-R's positions start behind that of its padding
            longest = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            if max_seq_length > longest:
                raise InputError(
                    f"`max_seq_length` is {max_seq_length} but the model reads at most {longest} tokens; give {longest} or "
                    "less."
                )


def _probes(examples: Dataset, num_each: int = 4) -> list[str]:
    """Texts whose vectors must survive the export: queries, documents, and one that is truncated."""
    first = examples[:num_each]
    queries = [instruct(task, query) for task, query in zip(first["instruction"], first["query"], strict=True)]
    return [*queries, *first["positive"], " ".join(first["positive"] * 200)]


def _is_there(folder: Path, record: dict[str, Any], *, overwrite: bool) -> bool:
    """Tell whether the folder holds the model that `record` would give."""
    if not folder.exists():
        return False
    try:
        theirs = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        theirs = {}
    if not isinstance(theirs, dict) or not any(folder.glob("*.safetensors")):
        theirs = {}
    changed = [
        key for key in ("arguments", "base_model", "dataset") if json.loads(json.dumps(record[key])) != theirs.get(key)
    ]
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
        revision=base.revision if base.is_hub_id else None,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        quantization_config=quantization,
        **({"device_map": {"": 0}} if quantization else {}),
    )
    model.config.use_cache = False
    peft_config = get_peft_config(config)
    try:
        return get_peft_model(model, peft_config) if peft_config else model
    except ValueError as error:
        raise InputError(f"The LoRA settings do not fit {base.name}: {' '.join(str(error).split())}") from None
