"""One of several processes that train a tiny model together: `torchrun ... -m tests.train_worker MODEL OUT BATCH`.

Trains three steps for each of some settings, and writes each process's weights, losses and held-out loss to OUT.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from tests.tiny_datasets import example
from trainer.config import ContrastiveTrainingArguments
from trainer.contrastive import ContrastiveTrainer
from trainer.eos import ensure_eos

SETTINGS: dict[str, dict[str, Any]] = {
    "float64": {"dtype": torch.float64},
    "float64, graphs kept": {"dtype": torch.float64, "kept_tokens": 10**6},
    "float64, lora": {"dtype": torch.float64, "lora": True},
    "float64, accumulated": {"dtype": torch.float64, "gradient_accumulation_steps": 2},
    "float32": {"dtype": torch.float32, "optim": "sgd", "learning_rate": 1e-2},
}


def rows() -> Dataset:
    """Batches of unequal size, with and without hard negatives, and two rows with the same positive."""
    several = [example("short-long", i) for i in range(27)] + [example("sts", i) for i in range(13)]
    several += [example("short-short", i) | {"negative": None} for i in range(9)]
    several[3]["positive"] = several[2]["positive"]
    return Dataset.from_list(several)


def train(
    model_folder: Path, out: Path, global_batch: int, name: str, dtype: Any, lora: bool = False, **changes: Any
) -> None:
    """Train with one of the settings and write what came of it."""
    torch.manual_seed(0)
    model: Any = AutoModel.from_pretrained(model_folder).to(dtype)
    if lora:
        config = LoraConfig(task_type="FEATURE_EXTRACTION", target_modules="all-linear", r=4, init_lora_weights=False)
        model = get_peft_model(model, config).to(dtype)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    args = ContrastiveTrainingArguments(
        str(out / "run"),
        per_device_train_batch_size=global_batch // world_size,
        per_device_eval_batch_size=global_batch // world_size,
        max_steps=3,
        warmup_steps=0,
        logging_steps=1,
        max_seq_length=48,
        use_cpu=True,
        disable_tqdm=True,
        temperature=0.05,
        **{"learning_rate": 3e-3, "chunk_tokens": 100, "kept_tokens": 150, **changes},
    )
    tokenizer = ensure_eos(AutoTokenizer.from_pretrained(model_folder))
    trainer = ContrastiveTrainer(model, args, rows(), tokenizer, eval_dataset=rows())
    trainer.train()
    held_out = trainer.evaluate()
    weights = {
        n: weight.detach().contiguous().clone() for n, weight in model.named_parameters() if weight.requires_grad
    }
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    weights["losses"] = torch.tensor(
        [*losses, held_out["eval_loss"], held_out["eval_recall_at_1"]], dtype=torch.float64
    )
    save_file(weights, out / f"{name}-{args.process_index}-of-{args.world_size}.safetensors")
    trainer.accelerator.free_memory()


def main() -> None:
    """Train with all settings."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    torch.set_num_threads(1)
    model_folder, out, global_batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for name, settings in SETTINGS.items():
        train(model_folder, out, global_batch, name, **settings)


if __name__ == "__main__":
    main()
