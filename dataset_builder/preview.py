"""The verb `plan`: what a recipe would ask, in which languages and subgroups, at what cost, without asking anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from dataset_builder.config import PlanArguments, PreviewArguments
from dataset_builder.languages import LANGUAGES
from dataset_builder.llm_config import LLMArguments
from dataset_builder.plan import Request, brainstorm_requests, generate_requests
from dataset_builder.rendering import render
from dataset_builder.schema import SUBGROUPS

CHARACTERS_PER_TOKEN = 4.0
"""Of English prompts, by common tokenizers; a rule of thumb, as all token figures of the preview are."""
TOKENS_PER_WORD = 1.4
"""Of replies in English; texts in other scripts take two to four times as many with most tokenizers."""
_WORDS_PER_TASK, _WORDS_LONG, _WORDS_SHORT = 22, 330, 14
_WORDS_BY_UNIT = {"phrase": 8, "sentence": 18, "passage": 60}
_PLACEHOLDER = "(a task that the LLM will have brainstormed)"


def preview(plan: PlanArguments, llm: LLMArguments, arguments: PreviewArguments) -> str:
    """Return what the plan would ask: requests, languages, estimated tokens and dollars, and some rendered prompts."""
    table: Counter[tuple[str, str]] = Counter()
    languages: Counter[str] = Counter()
    prompt_tokens = completion_tokens = 0.0
    for requests in (brainstorm_requests(plan), generate_requests(plan)):
        for request in requests:  # streamed: a plan of half a million requests is never in memory
            table[request.subgroup, request.step] += 1
            languages.update(_languages(request))
            prompt_tokens += len(_rendered(request)) / CHARACTERS_PER_TOKEN
            completion_tokens += reply_words(request) * TOKENS_PER_WORD
    lines = [f"{plan.num_examples:,} examples, seed {plan.seed}", "", "subgroup     brainstorms  examples"]
    lines += [
        f"{subgroup:12} {table[subgroup, 'brainstorm']:11,}  {table[subgroup, 'generate']:8,}"
        for subgroup in SUBGROUPS
        if table[subgroup, "generate"]
    ]
    lines += [f"{'all':12} {_total(table, 'brainstorm'):11,}  {_total(table, 'generate'):8,}", ""]
    shares = [f"{LANGUAGES[code].name} {count / languages.total():.1%}" for code, count in languages.most_common(12)]
    rest = f", {len(languages) - 12} others" if len(languages) > 12 else ""
    lines += [f"{len(languages)} languages: {', '.join(shares)}{rest}", ""]
    lines.append(
        f"about {prompt_tokens / 1e6:,.2f} million prompt tokens and {completion_tokens / 1e6:,.2f} million completion "
        "tokens, if all were English (other scripts take more)"
    )
    endpoints = llm.endpoints()
    costs = [endpoint.cost_usd(round(prompt_tokens), round(completion_tokens)) for endpoint in endpoints]
    if None not in costs:
        total = sum(endpoint.weight for endpoint in endpoints)
        cost = sum((cost or 0.0) * endpoint.weight / total for cost, endpoint in zip(costs, endpoints, strict=True))
        prices = ", ".join(f"{endpoint.input_price} and {endpoint.output_price}" for endpoint in endpoints)
        lines.append(f"about ${cost:,.2f} at {prices} dollars per million tokens")
    else:
        lines.append("give --input_price and --output_price, in dollars per million tokens, to see what it would cost")
    return "\n".join(lines + _prompts(plan, arguments.num_prompts))


def reply_words(request: Request) -> float:
    """Return about how many words a reply to a request has, from the lengths that its attributes ask for."""
    attributes = request.attributes
    if request.step == "brainstorm":
        return _WORDS_PER_TASK * float(attributes["num_tasks"])
    num_texts = 2 + attributes.get("hard_negative", True)
    match request.subgroup:
        case "short-long":
            return _WORDS_SHORT + 2.0 * float(attributes["num_words"])
        case "long-short":
            return float(attributes["num_words"]) + _WORDS_SHORT
        case "short-short":
            return float(_WORDS_SHORT * num_texts)
        case "long-long":
            return float(_WORDS_LONG * num_texts)
        case _:
            return 3.0 * _WORDS_BY_UNIT[attributes["unit"]]


def _rendered(request: Request) -> str:
    return render(request.prompt, request.attributes, _PLACEHOLDER)


def _languages(request: Request) -> list[str]:
    return [request.attributes[key] for key in ("language", "positive_language") if key in request.attributes]


def _total(table: Counter[tuple[str, str]], step: str) -> int:
    return sum(count for (_, its_step), count in table.items() if its_step == step)


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
