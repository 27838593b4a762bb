"""The verb `plan`: what a recipe would ask, in which languages and subgroups, at what cost, without asking anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice

from dataset_builder.config import PlanArguments, PreviewArguments
from dataset_builder.languages import LANGUAGES
from dataset_builder.llm_config import LLMArguments
from dataset_builder.plan import Request, brainstorm_requests, generate_requests, num_brainstorms
from dataset_builder.rendering import render
from dataset_builder.schema import SUBGROUPS, Step, Subgroup
from dataset_builder.token_estimate import CHARACTERS_PER_TOKEN, reply_tokens, schema_tokens

MAX_SAMPLE = 20_000
"""Requests that are rendered to estimate tokens; all are counted."""
_NUM_LANGUAGES_NAMED = 14  # English and the 13 that the paper has much of
_PLACEHOLDER = "(here stands a task, one sentence, that the LLM has brainstormed before)"  # as long as most tasks


@dataclass
class _Part:
    """The requests of one step of one subgroup: their number, and the tokens of those in the sample."""

    num_requests: int = 0
    num_sampled: int = 0
    tokens: list[float] = field(default_factory=lambda: [0.0] * 4)  # prompt, schema, reply at least, reply at most

    def add(self, request: Request, stride: int) -> None:
        """Count a request, and estimate it if it is one of every `stride`."""
        self.num_requests += 1
        if request.index % stride == 0:
            self.num_sampled += 1
            counts = (len(_rendered(request)) / CHARACTERS_PER_TOKEN, schema_tokens(request), *reply_tokens(request))
            self.tokens = [total + count for total, count in zip(self.tokens, counts, strict=True)]

    def total_tokens(self) -> list[float]:
        """Return the tokens of all requests, scaled up from those of the sample."""
        return [total * self.num_requests / max(1, self.num_sampled) for total in self.tokens]


def preview(plan: PlanArguments, llm: LLMArguments, arguments: PreviewArguments) -> str:
    """Return what the plan would ask: requests, languages, estimated tokens and dollars, and some rendered prompts."""
    parts: dict[tuple[Step, Subgroup], _Part] = {
        (step, subgroup): _Part() for step in ("brainstorm", "generate") for subgroup in SUBGROUPS
    }
    num_asked = sum(num_brainstorms(plan).values())
    # every n-th of each subgroup, not of the plan: the subgroups take turns in it
    stride = math.ceil((plan.num_examples + num_asked) / (MAX_SAMPLE - len(parts)))
    languages: Counter[str] = Counter()
    for request in chain(brainstorm_requests(plan), generate_requests(plan)):  # streamed: half a million fit in no list
        parts[request.step, request.subgroup].add(request, stride)
        languages.update(_languages(request))
    head = f"{plan.num_examples:,} examples"
    if num_asked:
        num_tasks = num_asked * plan.tasks_per_brainstorm
        head += f" from {num_tasks:,} tasks ({num_asked:,} brainstorms of {plan.tasks_per_brainstorm})"
    lines = [f"{head}, seed {plan.seed}", "", *_table(parts), ""]
    lines += [_language_line(languages, bitext="bitext" in plan.subgroup_weights), ""]
    lines += [*_token_lines(parts), *_cost_lines(parts, llm)]
    return "\n".join(lines + _prompts(plan, arguments.num_prompts))


def _table(parts: dict[tuple[Step, Subgroup], _Part]) -> list[str]:
    counts = [(s, parts["brainstorm", s].num_requests, parts["generate", s].num_requests) for s in SUBGROUPS]
    rows: list[tuple[str, int, int]] = [row for row in counts if row[2]]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return ["subgroup     brainstorms  examples", *(f"{name:12} {b:11,}  {g:8,}" for name, b, g in rows)]


def _language_line(languages: Counter[str], *, bitext: bool) -> str:
    ranked = languages.most_common()
    shares = [f"{LANGUAGES[code].name} {n / languages.total():.1%}" for code, n in ranked[:_NUM_LANGUAGES_NAMED]]
    line = f"{len(ranked)} language{'s' if len(ranked) > 1 else ''}{' (bitext has two)' * bitext}: {', '.join(shares)}"
    if rest := ranked[_NUM_LANGUAGES_NAMED:]:
        line += f", {len(rest)} others with {rest[0][1] / languages.total():.2%} or less each"
    return line


def _total_tokens(parts: dict[tuple[Step, Subgroup], _Part]) -> list[float]:
    return [sum(column) for column in zip(*(part.total_tokens() for part in parts.values()), strict=True)]


def _token_lines(parts: dict[tuple[Step, Subgroup], _Part]) -> list[str]:
    prompt, schema, low, high = _total_tokens(parts)
    num_sampled, num_requests = (
        sum(getattr(p, name) for p in parts.values()) for name in ("num_sampled", "num_requests")
    )
    sample = (
        f", estimated from a sample of {num_sampled:,} requests"
        if num_sampled < num_requests
        else ", estimated from the lengths asked for"
    )
    return [
        f"about {_millions(prompt)} prompt tokens and {_span(_millions(low), _millions(high))} completion tokens{sample}",
        "  completion tokens: by the model's vocabulary, from o200k_base (GPT-4o and later) to cl100k_base (GPT-4)",
        f"  not counted: {_millions(schema)} prompt tokens where an endpoint bills the JSON schema sent along; replies asked "
        "for again; a reasoning model's thinking",
    ]


def _cost_lines(parts: dict[tuple[Step, Subgroup], _Part], llm: LLMArguments) -> list[str]:
    endpoints = llm.endpoints()
    if any(endpoint.input_price is None or endpoint.output_price is None for endpoint in endpoints):
        return ["give --input_price and --output_price, in dollars per million tokens, to see what it would cost"]
    prompt, _, low, high = _total_tokens(parts)
    weight = sum(endpoint.weight for endpoint in endpoints)
    lines: list[str] = []
    total = [0.0, 0.0]
    for endpoint in endpoints:
        share = endpoint.weight / weight
        costs = [endpoint.cost_usd(round(prompt * share), round(tokens * share)) or 0.0 for tokens in (low, high)]
        total = [sum(pair) for pair in zip(total, costs, strict=True)]
        prices = f"at ${endpoint.input_price:g} and ${endpoint.output_price:g} per million prompt and completion tokens"
        if len(endpoints) == 1:
            return [f"about {_dollars(total)} {prices}"]
        lines.append(f"  {endpoint.model}, {share:.0%} of the requests: {_dollars(costs)} {prices}")
    return [f"about {_dollars(total)}", *lines]


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.{2 if tokens < 1e7 else 1 if tokens < 1e8 else 0}f} million"


def _dollars(costs: list[float]) -> str:
    return _span(*(f"${cost:,.2f}" if cost < 1000 else f"${cost:,.0f}" for cost in costs))


def _span(low: str, high: str) -> str:
    """`1.2 million` and `1.4 million` are `1.2 to 1.4 million`."""
    return low if low == high else f"{low.removesuffix(' million')} to {high}"


def _rendered(request: Request) -> str:
    return render(request.prompt, request.attributes, _PLACEHOLDER)


def _languages(request: Request) -> list[str]:
    return [request.attributes[key] for key in ("language", "positive_language") if key in request.attributes]


def _prompts(plan: PlanArguments, num_prompts: int) -> list[str]:
    """The first prompts of the plan, brainstorms and examples in turn."""
    pairs = zip(_one_each(brainstorm_requests(plan)), _one_each(generate_requests(plan)), strict=False)
    shown = [request for pair in pairs for request in pair]
    shown += list(islice(generate_requests(plan), num_prompts))[len(shown) :]
    lines: list[str] = []
    for request in shown[:num_prompts]:
        lines += ["", f"--- {request.id} ({request.prompt})", _rendered(request)]
    return lines


def _one_each(requests: Iterable[Request]) -> list[Request]:
    """The first request of each subgroup."""
    first: dict[str, Request] = {}
    for request in islice(requests, 1000):
        first.setdefault(request.subgroup, request)
    return list(first.values())
