"""Stage 2's settings. Defaults are the paper's recipe (section 4.1) where it states one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments
from trl.trainer.model_config import ModelConfig

from dataset_builder.errors import InputError
from dataset_builder.schema import check_subgroup


@dataclass
class DataArguments:
    """What to train on."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset folder or Hub id. Default: <output_dir>/dataset."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch of a Hub dataset."})
    subgroups: list[str] = field(
        default_factory=list, metadata={"help": "Subgroups to train on. Empty: all that the dataset has."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace a model in <output_dir>/model that was trained otherwise."}
    )

    def __post_init__(self) -> None:
        for name in self.subgroups:
            check_subgroup(name)


@dataclass
class EmbeddingModelConfig(ModelConfig):
    """trl's `ModelConfig` with the paper's LoRA.

    Differs from `ModelConfig` in: `use_peft` True, `lora_r` 16, `lora_alpha` 32, `lora_dropout` 0.1,
    `lora_target_modules` all linear layers, `lora_task_type` FEATURE_EXTRACTION (a bare `AutoModel` needs it).
    """

    use_peft: bool = field(default=True, metadata={"help": "Train LoRA adapters (merged at export), not all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of LoRA."})
    lora_alpha: int = field(default=32, metadata={"help": "Alpha of LoRA."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout of LoRA."})
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Modules that get adapters."}
    )
    merge: bool = field(
        default=True,
        metadata={"help": "Merge the adapters into the exported weights; --no_merge exports the adapters."},
    )
    lora_task_type: str = field(default="FEATURE_EXTRACTION", metadata={"help": "Task type of LoRA."})

    def __post_init__(self) -> None:
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise InputError(f"The model settings do not fit together: {error}") from None
        if not self.model_name_or_path:
            raise InputError("`model_name_or_path` is not given; name the model to fine-tune, a folder or a Hub id.")


@dataclass
class ContrastiveTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` and what contrastive training adds.

    Args:
        temperature: divisor of the cosine similarity in InfoNCE (paper, equation 2).
        max_seq_length: longest text in tokens, EOS included.
        chunk_tokens: padded tokens in one forward pass. None: by the memory of the device (`trainer.budget`).
        kept_tokens: padded tokens whose graphs are kept for the backward pass; texts beyond them are computed twice. None:
            by the memory of the device.
        subgroup_weights: how often the rows of a subgroup are taken in an epoch, as in `sts=0.5`; 1 where nothing is said.
        matryoshka_dims: further dimensions to which embeddings may be cut; the loss is the mean over all of them.

    Differs from `TrainingArguments` in: `learning_rate` 1e-4, `warmup_steps` 100, `weight_decay` 0.1,
    `num_train_epochs` 1 (the paper's), `logging_steps` 10, `save_strategy` "no", `report_to` "none",
    `ddp_find_unused_parameters` False, and in `per_device_train_batch_size` times the number of
    processes, which is the number of examples that share their negatives.
    """

    temperature: float = field(default=0.02, metadata={"help": "Temperature of InfoNCE."})
    max_seq_length: int = field(default=512, metadata={"help": "Longest text in tokens, its EOS included."})
    chunk_tokens: int | None = field(
        default=None, metadata={"help": "Padded tokens in one forward pass. Default: by the memory of the device."}
    )
    kept_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Padded tokens whose graphs are kept; the rest is computed twice. Default: by the memory of the device."
        },
    )
    subgroup_weights: list[str] = field(
        default_factory=list,
        metadata={"help": "How often rows of a subgroup are taken in an epoch: sts=0.5 bitext=2. Default: once each."},
    )
    matryoshka_dims: list[int] = field(
        default_factory=list, metadata={"help": "Further dimensions that embeddings may be cut to, such as 256 64."}
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See TrainingArguments."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: float = field(default=100, metadata={"help": "Warm-up steps, or their share if below 1."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs."})
    save_strategy: str = field(default="no", metadata={"help": "When to write checkpoints: no, steps, epoch."})
    report_to: None | str | list[str] = field(  # noqa: RUF036  HfArgumentParser needs None first
        default="none", metadata={"help": "Trackers: trackio, wandb, ..."}
    )

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"`temperature` is {self.temperature}; it must be above 0 (the paper's is 0.02).")
        if self.max_seq_length < 2:
            raise InputError(f"`max_seq_length` is {self.max_seq_length}; a text needs at least a token and the EOS.")
        for name, least in (("chunk_tokens", 1), ("kept_tokens", 0)):
            if (given := getattr(self, name)) is not None and given < least:
                raise InputError(f"`{name}` is {given}; it is a number of tokens, at least {least}.")
        if bad := [dim for dim in self.matryoshka_dims if dim < 1]:
            raise InputError(f"`matryoshka_dims` has {bad[0]}; dimensions are at least 1.")
        _ = self.weights  # a wrong one is told now
        self.remove_unused_columns = False  # the collator needs the text columns
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise InputError(f"The training arguments do not fit together or this machine: {error}") from None

    @property
    def weights(self) -> dict[str, float]:
        """Weights by subgroup; those that are not named have 1.

        Raises:
            InputError: if one is no subgroup, or its weight no number from 0.
        """
        found: dict[str, float] = {}
        for entry in self.subgroup_weights:
            name, _, number = entry.partition("=")
            try:
                weight = float(number)
            except ValueError:
                weight = -1.0
            if not 0 <= weight < math.inf:
                raise InputError(f"`subgroup_weights` has '{entry}'; give SUBGROUP=NUMBER, such as sts=0.5.")
            found[check_subgroup(name)] = weight
        return found


TRAIN_ARGUMENTS = (DataArguments, EmbeddingModelConfig, ContrastiveTrainingArguments)
"""What the verb `train` reads, all of it from the same recipe file."""
