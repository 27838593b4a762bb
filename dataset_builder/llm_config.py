"""Whom stage 1 asks: endpoints, their prices, and how hard to ask them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from dataset_builder.errors import InputError


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


@dataclass(frozen=True)
class Endpoint:
    """One model behind one URL: its share of the requests, and what it costs in US dollars per million tokens."""

    model: str
    weight: float = 1.0
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    input_price: float | None = None
    output_price: float | None = None

    def cost_usd(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """Return what a reply cost; None if a price is unknown or the endpoint told no token counts."""
        if self.input_price is None or self.output_price is None or (prompt_tokens, completion_tokens) == (None, None):
            return None
        return ((prompt_tokens or 0) * self.input_price + (completion_tokens or 0) * self.output_price) / 1e6


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
    llm_model: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Model name that the endpoint knows; several share the requests by weight: gpt-4=75 gpt-3.5-turbo=25."
        },
    )
    base_url: list[str] = field(
        default_factory=list,
        metadata={
            "help": "URL of the endpoint, such as http://localhost:8000/v1: one, or one for each model. Default: OpenAI's."
        },
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
    batch_submit: bool = field(
        default=False,
        metadata={
            "help": "Ask through the endpoint's Batch API: upload, wait, take the results, submit again what expired."
        },
    )
    batch_poll_s: float = field(default=60.0, metadata={"help": "Seconds between two looks at a submitted batch."})
    api_key_env: list[str] = field(
        default_factory=lambda: ["OPENAI_API_KEY"],
        metadata={
            "help": "Environment variable that holds the key (never the key itself): one, or one for each model."
        },
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
    max_concurrency: int = field(
        default=64, metadata={"help": "Requests in flight at each endpoint, at most; fewer while it pushes back."}
    )
    num_workers: int = field(
        default=1, metadata={"help": "Processes that ask; more than one pays off above some hundred replies a second."}
    )
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
    input_price: list[float] = field(
        default_factory=list,
        metadata={"help": "US dollars per million prompt tokens: one price, or one for each model."},
    )
    output_price: list[float] = field(
        default_factory=list,
        metadata={"help": "US dollars per million completion tokens: one price, or one for each model."},
    )
    max_cost_usd: float | None = field(
        default=None,
        metadata={
            "help": "Stop asking once the journal has cost this much (between two submissions of batches); needs both prices."
        },
    )

    def __post_init__(self) -> None:
        positive = ("max_completion_tokens", "max_concurrency", "timeout_s", "max_attempts", "max_retries")
        for name in (*positive, "num_workers", "batch_poll_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        limit = [] if self.max_cost_usd is None else [self.max_cost_usd]
        for name, values in (
            ("input_price", self.input_price),
            ("output_price", self.output_price),
            ("max_cost_usd", limit),
        ):
            for value in values:
                if not 0 <= value < math.inf:
                    raise InputError(f"`{name}` is {value}; it is an amount of US dollars, 0 or more.")
        if len(ways := [name for name in ("batch_out", "batch_in", "batch_submit") if getattr(self, name)]) > 1:
            raise InputError(
                f"`{ways[0]}` and `{ways[1]}` are both given; write requests, take replies or submit them: one at a time."
            )
        if self.max_cost_usd is not None and not (self.input_price and self.output_price):
            raise InputError(
                f"`max_cost_usd` is {self.max_cost_usd} but the price of a token is unknown; give --input_price and "
                "--output_price, in US dollars per million tokens."
            )
        self.endpoints()

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints to ask, one for each of `llm_model`, in that order; a nameless one if there is none.

        Raises:
            InputError: if another setting is given neither once nor once for each model.
        """
        weights = parse_weights("llm_model", self.llm_model) or {"": 1.0}
        settings: dict[str, list[Any]] = {
            "base_url": self.base_url or [None],
            "api_key_env": self.api_key_env,
            "input_price": self.input_price or [None],
            "output_price": self.output_price or [None],
        }
        for name, values in settings.items():
            if len(values) not in (1, len(weights)):
                raise InputError(
                    f"`{name}` has {len(values)} values for {len(weights)} of `llm_model`; give one, or one for each model."
                )
        columns = [values if len(values) > 1 else values * len(weights) for values in settings.values()]
        return [Endpoint(*row) for row in zip(weights, weights.values(), *columns, strict=True)]
