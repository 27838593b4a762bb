"""The verb `train`: dataset in, model folder out; a model that is already there is not trained again."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback

from dataset_builder.errors import InputError
from dataset_builder.progress import duration
from dataset_builder.schema import instruct
from trainer.base_model import resolve_base_model
from trainer.config import ContrastiveTrainingArguments, DataArguments, EmbeddingModelConfig
from trainer.contrastive import ContrastiveTrainer
from trainer.curves import CURVES, training_curves
from trainer.data import load_examples
from trainer.export import export_model
from trainer.loading import load_model, load_tokenizer, whole_model
from trainer.record import RECORD, dataset_identity, outcome, settings
from trainer.watch import ProgressLine, Watch


def train(data: DataArguments, model_config: EmbeddingModelConfig, args: ContrastiveTrainingArguments) -> str | None:
    """Fine-tune a model on a dataset and write `<output_dir>/model`; return a sentence on what was done.

    Started by `accelerate launch` it is one of several processes; the first of them writes the model and has the sentence.

    Raises:
        InputError: if model, dataset or tokenizer cannot be used, or another model is already there.
        RunError: if training fails or the exported model does not give the vectors of the trained one.
    """
    _quiet()
    folder = Path(args.output_dir or "") / "model"
    dataset_name = data.dataset_name or str(Path(args.output_dir or "") / "dataset")
    with args.main_process_first(desc="reading the dataset"):
        examples = load_examples(dataset_name, "train", data.subgroups, data.dataset_revision)
        held_out = load_examples(dataset_name, "test", data.subgroups, data.dataset_revision)
    if not len(examples):
        raise InputError(f"The dataset {dataset_name} has no train split with rows; nothing can be trained on it.")
    _check(args, held_out)
    base = resolve_base_model(model_config.model_name_or_path or "", model_config.model_revision)
    record: dict[str, Any] = {
        "base_model": {"name": base.name, "revision": base.revision, "is_hub_id": base.is_hub_id},
        "dataset": dataset_identity(dataset_name, data.dataset_revision, examples),
        "arguments": settings(data, model_config, args) | _global_batch(args),
    }
    if _is_there(folder, record, overwrite=data.overwrite):
        if not args.process_index:
            print(f"train: nothing to do, {folder} was trained with these settings on this dataset", file=sys.stderr)
        return None if args.process_index else f"{folder} is up to date"
    transformers.set_seed(args.seed)  # before the adapters are initialised
    tokenizer = load_tokenizer(base)
    model = load_model(base, model_config, args)
    trainer = ContrastiveTrainer(
        model=model,
        args=args,
        train_dataset=examples,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
        callbacks=[ProgressLine(), Watch()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    seconds = time.monotonic() - started
    model = whole_model(trainer, lambda: load_model(base, model_config, args))
    if model is None:
        _part(trainer)
        return None
    with _replacing(folder) as partial:
        probes = _probes(examples)
        export_model(
            model, tokenizer, partial, max_seq_length=args.max_seq_length, probes=probes, merge=model_config.merge
        )
        record |= outcome(trainer, seconds)
        (partial / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (partial / CURVES).write_bytes(training_curves(record["log_history"]))
    _part(trainer)
    return f"{folder}: {trainer.state.global_step:,} steps on {len(examples):,} examples in {duration(seconds)}"


def _part(trainer: ContrastiveTrainer) -> None:
    """Let several processes end together: one that leaves while the first still writes would take it down."""
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` at the end, if nothing went wrong."""
    partial, old = folder.with_name("model.partial"), folder.with_name("model.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _global_batch(args: ContrastiveTrainingArguments) -> dict[str, int]:
    """The examples that share their negatives, where they are spread over processes."""
    return {"global_batch_size": args.train_batch_size * args.world_size} if args.world_size > 1 else {}


def _quiet() -> None:
    """Leave stderr to the progress line; what is dropped says nothing about the user's input."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    # peft 0.21 asks for an attribute that transformers 5.23 has renamed
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def _check(args: ContrastiveTrainingArguments, held_out: Dataset) -> None:
    if args.n_gpu > 1:  # torch's DataParallel would split each chunk
        raise InputError(
            f"This one process sees {args.n_gpu} GPUs; start one process for each by `accelerate launch --num_processes "
            f"{args.n_gpu} -m embedsmith train ...`, or choose one by CUDA_VISIBLE_DEVICES=0."
        )
    if args.eval_strategy != "no" and not len(held_out):
        raise InputError(
            f"`eval_strategy` is '{args.eval_strategy}' but the dataset has no test split; curate with --test_size above 0."
        )
    if args.resume_from_checkpoint == "last":
        args.resume_from_checkpoint = _last_checkpoint(Path(args.output_dir or ""))
    resume = args.resume_from_checkpoint
    if resume and not Path(resume).is_dir():
        raise InputError(
            f"`resume_from_checkpoint` is '{resume}', which is no folder; give a checkpoint-N folder, or `last`."
        )


def _last_checkpoint(run_dir: Path) -> str | None:
    """Return the newest checkpoint that was written to its end, or None: from the start, then."""
    # trainer_state.json is written last
    whole = [path.parent for path in run_dir.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.partition("-")[2]))) if whole else None


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
