"""Stage 3's settings: their fields are the flags and the keys of `recipes/*/model_card.yaml`."""

from __future__ import annotations

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
    eval_batch_size: int = field(default=32, metadata={"help": "Texts encoded at once."})
    model_title: str | None = field(
        default=None, metadata={"help": "Title of the model card. Default: from the names."}
    )
    model_license: str = field(default="apache-2.0", metadata={"help": "Licence id of the model card."})
    model_note: str = field(default="", metadata={"help": "A sentence for the top of the model card."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Where the training dataset is published, for the card's YAML."}
    )

    def __post_init__(self) -> None:
        if self.eval_batch_size < 1:
            raise InputError(f"`eval_batch_size` is {self.eval_batch_size}; it must be at least 1.")

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


MODEL_CARD_ARGUMENTS = (EvaluationArguments, ModelHubArguments)
"""What the verbs of stage 3 read, all of them from the same recipe file."""
