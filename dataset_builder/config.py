"""Stage 1's settings: one dataclass a concern; their fields are the flags and the keys of `recipes/*/dataset.yaml`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES, check_language
from dataset_builder.publish import HubArguments
from dataset_builder.rendering import choices_digest
from dataset_builder.schema import SUBGROUPS, Subgroup, check_subgroup

K = TypeVar("K", bound=str)


def parse_weights(name: str, entries: list[str]) -> dict[str, float]:
    """Read `['en=40', 'de']` as `{'en': 40.0, 'de': 1.0}`.

    Raises:
        InputError: if a weight is no positive number or a name stands twice.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        key, _, text = entry.partition("=")
        try:
            weight = float(text) if text else 1.0
        except ValueError:
            weight = math.nan
        if not (0 < weight < math.inf):
            raise InputError(f"`{name}` has '{entry}'; a weight is a number above 0, as in '{key}=2'.")
        if key in weights:
            raise InputError(f"`{name}` has '{key}' twice; give each name once.")
        weights[key] = weight
    return weights


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
class LLMArguments:
    """Whom to ask."""

    llm: str = field(
        default="recorded",
        metadata={
            "help": "recorded: replies from a batch output file; live: an OpenAI-compatible endpoint.",
            "choices": ["recorded", "live"],
        },
    )
    recorded_replies: str | None = field(
        default=None, metadata={"help": "Batch output file (.jsonl or .jsonl.gz). Default: the one that is shipped."}
    )
    llm_model: str | None = field(default=None, metadata={"help": "Model name that the endpoint knows."})
    base_url: str | None = field(
        default=None, metadata={"help": "URL of the endpoint, such as http://localhost:8000/v1. Default: OpenAI's."}
    )
    batch_out: str | None = field(
        default=None, metadata={"help": "Write the requests as batch files into this folder instead of asking."}
    )
    batch_format: str = field(
        default="json_schema",
        metadata={
            "help": "How batch files ask for JSON; vLLM and OpenAI take json_schema.",
            "choices": ["json_schema", "json_object", "text"],
        },
    )
    batch_in: list[str] = field(
        default_factory=list, metadata={"help": "Result files of batches to take the replies from, in any order."}
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the key (never the key itself)."}
    )
    llm_temperature: float | None = field(
        default=None, metadata={"help": "Sampling temperature of the LLM. Default: the endpoint's own."}
    )
    llm_top_p: float | None = field(
        default=None, metadata={"help": "Nucleus sampling of the LLM. Default: the endpoint's own."}
    )
    max_completion_tokens: int = field(
        default=4096, metadata={"help": "Longest reply in tokens, a reasoning model's thinking included."}
    )
    max_concurrency: int = field(default=64, metadata={"help": "Requests in flight at once."})
    timeout_s: float = field(default=300.0, metadata={"help": "Seconds to wait for one reply."})
    max_attempts: int = field(
        default=3, metadata={"help": "Replies asked for at most per request, when they cannot be parsed."}
    )
    max_retries: int = field(
        default=8, metadata={"help": "Tries per reply after a rate limit, a server error or a dropped connection."}
    )
    retry_refused: bool = field(
        default=False, metadata={"help": "Ask again what the endpoint refused for good before (HTTP 400, 413, 422)."}
    )
    input_price: float | None = field(default=None, metadata={"help": "US dollars per million prompt tokens."})
    output_price: float | None = field(default=None, metadata={"help": "US dollars per million completion tokens."})
    max_cost_usd: float | None = field(
        default=None, metadata={"help": "Stop asking once the journal has cost this much; needs both prices."}
    )

    def __post_init__(self) -> None:
        for name in ("max_completion_tokens", "max_concurrency", "timeout_s", "max_attempts", "max_retries"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        for name in ("input_price", "output_price", "max_cost_usd"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"`{name}` is {value}; it is an amount of US dollars, 0 or more.")
        if self.batch_out and self.batch_in:
            raise InputError(
                "`batch_out` and `batch_in` are both given; write the requests first, take the replies later."
            )
        if self.max_cost_usd is not None and (self.input_price is None or self.output_price is None):
            raise InputError(
                f"`max_cost_usd` is {self.max_cost_usd} but the price of a token is unknown; give --input_price and "
                "--output_price, in US dollars per million tokens."
            )


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
    dataset_license: str = field(default="cc-by-4.0", metadata={"help": "Licence id of the dataset card."})
    dataset_title: str = field(default="Synthetic data for text embeddings", metadata={"help": "Title of the card."})
    dataset_note: str = field(default="", metadata={"help": "A sentence on where the replies come from, for the card."})

    def __post_init__(self) -> None:
        if not 0 <= self.test_size < 1:
            raise InputError(f"`test_size` is {self.test_size}; it is a share from 0 to below 1, such as 0.02.")


@dataclass
class DatasetHubArguments(HubArguments):
    """Where the dataset is published."""

    hub_dataset_id: str | None = field(default=None, metadata={"help": "Dataset repo on the Hub, as in name/dataset."})


@dataclass
class PreviewArguments:
    """What the verb `plan` shows."""

    num_prompts: int = field(default=2, metadata={"help": "Rendered prompts that the verb `plan` shows."})


DATASET_ARGUMENTS = (PlanArguments, LLMArguments, CurationArguments, DatasetHubArguments, PreviewArguments)
"""What the verbs of stage 1 read, all of them from the same recipe file."""
