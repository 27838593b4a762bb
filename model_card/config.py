"""Stage 3's settings: their fields are the flags and the keys of `recipes/*/model_card.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from dataset_builder.errors import InputError
from dataset_builder.publish import HubArguments


@dataclass
class EvaluationArguments:
    """What to judge, on which data, and how the model is presented."""

    output_dir: str = field(metadata={"help": "The run folder: model, dataset and results lie in it."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model folder made by `embedsmith train`. Default: <output_dir>/model."}
    )
    base_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to compare with. Default: the one that the training started from."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset whose test split is judged. Default: <output_dir>/dataset."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch of a Hub dataset."})
    held_out: bool = field(default=True, metadata={"help": "Judge on the dataset's held-out examples."})
    tasks: list[str] | None = field(
        default=None, metadata={"help": "mteb tasks to judge on, such as STS17 Banking77Classification."}
    )
    benchmarks: list[str] | None = field(
        default=None, metadata={"help": "mteb benchmarks to judge on, such as 'MTEB(eng, v2)' BEIR."}
    )
    eval_languages: list[str] | None = field(
        default=None, metadata={"help": "Languages of mteb's tasks to judge on, such as en de. Default: all of a task."}
    )
    reference_models: list[str] | None = field(
        default=None, metadata={"help": "Models judged beside ours: Hub ids or folders, and bm25 for retrieval."}
    )
    published_models: list[str] | None = field(
        default=None,
        metadata={"help": "Models whose published scores are shown beside ours. Default: a few known ones."},
    )
    task_instructions: str | None = field(
        default=None,
        metadata={"help": "YAML file of instructions by mteb task or task type, before the built-in ones."},
    )
    eval_batch_tokens: int | None = field(
        default=None, metadata={"help": "Tokens encoded at once, padding included. Default: by the device."}
    )
    eval_devices: list[str] | None = field(
        default=None,
        metadata={"help": "Devices to encode on at once, such as cuda:0 cuda:1. Default: the one that is there."},
    )
    model_title: str | None = field(
        default=None, metadata={"help": "Title of the model card. Default: from the names."}
    )
    model_license: str = field(default="apache-2.0", metadata={"help": "Licence id of the model card."})
    model_note: str = field(default="", metadata={"help": "A sentence for the top of the model card."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Where the training dataset is published, for the card's YAML."}
    )

    training_datasets: list[str] | None = field(
        default=None,
        metadata={"help": "mteb data sets that training texts were taken from, for the leaderboard. Default: none."},
    )
    training_code_url: str | None = field(
        default=None, metadata={"help": "Where your training code is public, for the leaderboard."}
    )
    check: bool = field(
        default=False,
        metadata={"help": "Write no report, but fail if the one that is there no longer agrees with the files."},
    )

    def __post_init__(self) -> None:
        if self.eval_batch_tokens is not None and self.eval_batch_tokens < 1:
            raise InputError(f"`eval_batch_tokens` is {self.eval_batch_tokens}; it must be at least 1.")
        for device in self.eval_devices or ():
            if not re.fullmatch(r"cpu|(cuda|xpu|npu|mps)(:\d+)?", device):
                raise InputError(
                    f"`eval_devices` has '{device}'; a device is cpu, or cuda with a number, such as cuda:1."
                )

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.output_dir)

    @property
    def model_dir(self) -> Path:
        """The model folder that is judged, described and pushed."""
        return Path(self.model_name_or_path) if self.model_name_or_path else self.run_dir / "model"

    @property
    def dataset(self) -> str:
        """Folder or Hub id of the dataset."""
        return self.dataset_name or str(self.run_dir / "dataset")


@dataclass
class ModelHubArguments(HubArguments):
    """Where the model is published."""

    hub_model_id: str | None = field(default=None, metadata={"help": "Model repo on the Hub, as in name/model."})


@dataclass
class TryArguments:
    """What to look for, and in which texts."""

    query: list[str] | None = field(
        default=None, metadata={"help": "Queries. Default: typed at a prompt, or one a line from standard input."}
    )
    corpus: str | None = field(
        default=None, metadata={"help": "File with one text a line to search. Default: the documents of the dataset."}
    )
    instruction: str | None = field(default=None, metadata={"help": "Task of the queries. Default: that of retrieval."})
    top_k: int = field(default=5, metadata={"help": "Texts shown for each query."})
    max_texts: int = field(default=5000, metadata={"help": "Texts of the corpus that are searched, the first ones."})
    html: bool = field(default=False, metadata={"help": "Write try.html, a page with a map of the corpus."})

    def __post_init__(self) -> None:
        for name in ("top_k", "max_texts"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")


MODEL_CARD_ARGUMENTS = (EvaluationArguments, ModelHubArguments, TryArguments)
"""What the verbs of stage 3 read, all of them from the same recipe file."""
