"""Stage 1's settings: one dataclass a concern; their fields are the flags and the keys of `recipes/*/dataset.yaml`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES, check_language
from dataset_builder.llm_config import LLMArguments, parse_weights
from dataset_builder.publish import HubArguments
from dataset_builder.rendering import choices_digest
from dataset_builder.scale_config import ScaleArguments
from dataset_builder.schema import SUBGROUPS, Subgroup, check_subgroup


@dataclass
class PlanArguments:
    """What to ask: from these settings alone follows the list of requests."""

    output_dir: str = field(metadata={"help": "The run folder: journal, dataset, model and results lie in it."})
    num_examples: int = field(default=1000, metadata={"help": "Examples to ask for, over all subgroups."})
    subgroups: list[str] = field(
        default_factory=lambda: list(SUBGROUPS),
        metadata={"help": "Subgroups to make, equally often, or by weight: short-long=2 sts."},
    )
    languages: list[str] = field(
        default_factory=list,
        metadata={"help": "BCP-47 codes, equally often, or by weight: en=40 de zh. Empty: the paper's 93 languages."},
    )
    tasks_per_brainstorm: int = field(default=20, metadata={"help": "Tasks asked for in one brainstorm request."})
    examples_per_task: float = field(
        default=500 / 150, metadata={"help": "Examples per brainstormed task (the paper: 500,000 from 150,000)."}
    )
    num_words: list[int] = field(
        default_factory=list, metadata={"help": "Lengths of long texts in words. Empty: the paper's 50 to 500."}
    )
    hard_negatives: bool = field(
        default=True,
        metadata={"help": "Ask for hard negatives in short-short and long-long too (the paper has none there)."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything sampled."})

    def __post_init__(self) -> None:
        for name in ("num_examples", "tasks_per_brainstorm", "examples_per_task"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be a finite number above 0.")
        if bad := [n for n in self.num_words if n < 1]:
            raise InputError(f"`num_words` has {bad[0]}; lengths are at least 1 word.")
        if not self.subgroups:
            raise InputError(f"`subgroups` is empty; give at least one of {', '.join(SUBGROUPS)}.")
        weights = self.language_weights
        if "bitext" in self.subgroup_weights and len(weights) < 2:
            raise InputError(f"`languages` has only '{next(iter(weights))}'; bitext needs two languages. Add one.")

    @property
    def subgroup_weights(self) -> dict[Subgroup, float]:
        """Weights by subgroup, in the order of `SUBGROUPS`."""
        given = {check_subgroup(name): w for name, w in parse_weights("subgroups", self.subgroups).items()}
        return {subgroup: given[subgroup] for subgroup in SUBGROUPS if subgroup in given}

    @property
    def language_weights(self) -> dict[str, float]:
        """Weights by language code, in the order of the codes."""
        if not self.languages:
            return {code: language.weight for code, language in LANGUAGES.items()}
        given = {check_language(code).code: w for code, w in parse_weights("languages", self.languages).items()}
        return dict(sorted(given.items()))

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.output_dir)

    def identity(self) -> dict[str, Any]:
        """What makes two plans different plans: the settings, and the names that prompts and attributes are drawn from."""
        return self.settings() | {"prompts and attributes": choices_digest()}

    def settings(self) -> dict[str, Any]:
        """The settings that the plan follows from; a larger `num_examples` only continues the same one."""
        settings = asdict(self)
        for name in ("output_dir", "num_examples"):
            del settings[name]
        return settings | {"subgroups": self.subgroup_weights, "languages": self.language_weights}


@dataclass
class CurationArguments:
    """What to keep."""

    test_size: float = field(
        default=0.02,
        metadata={"help": "Share of the tasks (sts and bitext: of the examples) that is held out as split `test`."},
    )
    check_language: bool = field(
        default=True, metadata={"help": "Reject texts that are surely in another language than the one asked for."}
    )
    language_identifier: str = field(
        default="py3langid",
        metadata={
            "help": "Judge of languages: py3langid is built in; glotlid (cis-lmu/glotlid) is fetched from the Hub and "
            "needs `pip install embedsmith[glotlid]`.",
            "choices": ["py3langid", "glotlid"],
        },
    )
    max_length_factor: float = field(
        default=3.0,
        metadata={"help": "Reject texts longer or shorter than asked by more than this factor; 0 switches it off."},
    )
    near_duplicate_threshold: float = field(
        default=0.8,
        metadata={
            "help": "Reject a query or positive this similar to an earlier one (Jaccard, by MinHash); 1: exact ones only."
        },
    )
    contamination_tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "mteb tasks (or benchmarks) with whose test sets no example may overlap, such as STS13 ArguAna."
        },
    )
    contamination_ngram: int = field(
        default=13,
        metadata={"help": "Words in a row that make an overlap; a shorter test text counts when it recurs whole."},
    )
    consistency_model: str | None = field(
        default=None,
        metadata={
            "help": "Embedding model (name or path) that must find the positive among the `consistency_top_k` nearest of its "
            "subgroup and nearer than the hard negative. Default: no such check."
        },
    )
    consistency_top_k: int = field(default=20, metadata={"help": "See `consistency_model`."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that curate. Default: one a core."})
    dataset_license: str = field(default="cc-by-4.0", metadata={"help": "Licence id of the dataset card."})
    dataset_title: str = field(default="Synthetic data for text embeddings", metadata={"help": "Title of the card."})
    dataset_note: str = field(default="", metadata={"help": "A sentence on where the replies come from, for the card."})

    def __post_init__(self) -> None:
        if not 0 <= self.test_size < 1:
            raise InputError(f"`test_size` is {self.test_size}; it is a share from 0 to below 1, such as 0.02.")
        if not 0 < self.near_duplicate_threshold <= 1:
            raise InputError(
                f"`near_duplicate_threshold` is {self.near_duplicate_threshold}; it is a similarity above 0 and up to 1, such "
                "as 0.8."
            )
        if self.max_length_factor != 0 and not 1 < self.max_length_factor < math.inf:
            raise InputError(
                f"`max_length_factor` is {self.max_length_factor}; it is a factor above 1, or 0 for no check."
            )
        for name in ("contamination_ngram", "consistency_top_k", "num_proc"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")

    def settings(self) -> dict[str, Any]:
        """What decides which examples are kept, and in which split; for the card."""
        names = ["test_size", "check_language", "language_identifier", "max_length_factor", "near_duplicate_threshold"]
        if self.contamination_tasks:
            names += ["contamination_tasks", "contamination_ngram"]
        if self.consistency_model:
            names += ["consistency_model", "consistency_top_k"]
        return {name: getattr(self, name) for name in names}


@dataclass
class DatasetHubArguments(HubArguments):
    """Where the dataset is published."""

    hub_dataset_id: str | None = field(default=None, metadata={"help": "Dataset repo on the Hub, as in name/dataset."})


@dataclass
class PreviewArguments:
    """What the verb `plan` shows."""

    num_prompts: int = field(default=2, metadata={"help": "Rendered prompts that the verb `plan` shows."})


@dataclass
class BrowseArguments:
    """What the verb `browse` shows."""

    max_examples: int = field(
        default=5000,
        metadata={
            "help": "Examples that the page of the verb `browse` holds; of a larger corpus it takes a sample, and says so."
        },
    )

    def __post_init__(self) -> None:
        if self.max_examples < 1:
            raise InputError(f"`max_examples` is {self.max_examples}; it must be at least 1.")


DATASET_ARGUMENTS = (
    PlanArguments,
    LLMArguments,
    ScaleArguments,
    CurationArguments,
    DatasetHubArguments,
    PreviewArguments,
    BrowseArguments,
)
"""What the verbs of stage 1 read, all of them from the same recipe file."""
