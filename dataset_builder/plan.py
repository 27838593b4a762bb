"""The plan: from the recipe and its seed alone follows the list of requests, as a stream.

It is prefix-stable: the first 1,000 requests of a plan for 5,000 examples are those of a plan for 1,000. So the share of
every subgroup is dealt out one request at a time (smooth weighted round-robin), and everything else about the i-th
request of a subgroup depends on (seed, subgroup, step, i) only.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dataset_builder.config import PlanArguments
from dataset_builder.rendering import attribute_table, variants
from dataset_builder.schema import BRAINSTORMED, Step, Subgroup


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the plan. `task_slot` counts the brainstormed tasks of the subgroup, over all its brainstorms."""

    id: str
    step: Step
    subgroup: Subgroup
    index: int
    prompt: str
    attributes: dict[str, Any]
    task_slot: int | None = None


def request_id(
    step: Step, subgroup: Subgroup, index: int, prompt: str, attributes: dict[str, Any], task_slot: int | None = None
) -> str:
    """Return a readable id with a digest of everything but the wording; at most 64 characters, as batch APIs ask."""
    key = json.dumps([subgroup, step, prompt, attributes, index, task_slot], sort_keys=True, ensure_ascii=True)
    return f"{subgroup}-{step}-{index:06d}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def subgroup_sequence(weights: dict[Subgroup, float], num_examples: int) -> Iterator[Subgroup]:
    """Deal out the subgroups by weight so that every prefix is as close to the weights as it can be."""
    total, credit = sum(weights.values()), dict.fromkeys(weights, 0.0)
    for _ in range(num_examples):
        for subgroup, weight in weights.items():
            credit[subgroup] += weight
        chosen = max(credit, key=credit.__getitem__)
        credit[chosen] -= total
        yield chosen


def generate_requests(arguments: PlanArguments) -> Iterator[Request]:
    """Yield the requests for examples, in the order in which they are asked."""
    counts: Counter[Subgroup] = Counter()
    sampler = _Sampler(arguments)
    for subgroup in subgroup_sequence(arguments.subgroup_weights, arguments.num_examples):
        yield sampler.generate(subgroup, counts[subgroup])
        counts[subgroup] += 1


def num_examples_by_subgroup(arguments: PlanArguments) -> dict[Subgroup, int]:
    """Return how many generate requests each subgroup has, in the order of the subgroups."""
    counts = Counter(subgroup_sequence(arguments.subgroup_weights, arguments.num_examples))
    return {subgroup: counts[subgroup] for subgroup in arguments.subgroup_weights if counts[subgroup]}


def num_brainstorms(arguments: PlanArguments) -> dict[Subgroup, int]:
    """Return how many brainstorm requests each subgroup has: as many as the planned examples need."""
    counts = num_examples_by_subgroup(arguments)
    num_tasks: dict[Subgroup, int] = {
        s: math.ceil(counts[s] / arguments.examples_per_task) for s in BRAINSTORMED if s in counts
    }
    return {subgroup: math.ceil(num / arguments.tasks_per_brainstorm) for subgroup, num in num_tasks.items()}


def brainstorm_requests(arguments: PlanArguments) -> Iterator[Request]:
    """Yield the requests for tasks: as many as the planned examples need."""
    for subgroup, num in num_brainstorms(arguments).items():
        for index in range(num):
            rng = random.Random(f"{arguments.seed}/{subgroup}/brainstorm/{index}")
            prompt = rng.choice(variants(subgroup, "brainstorm"))
            attributes = {"num_tasks": arguments.tasks_per_brainstorm}
            id_ = request_id("brainstorm", subgroup, index, prompt, attributes)
            yield Request(id_, "brainstorm", subgroup, index, prompt, attributes)


class _Sampler:
    """Draws prompt, languages and attributes of generate requests; keeps the cumulated weights between draws."""

    def __init__(self, arguments: PlanArguments) -> None:
        self.arguments = arguments
        weights = arguments.language_weights
        self.codes, self.language_weights = list(weights), list(weights.values())
        table = {subgroup: dict(attributes) for subgroup, attributes in attribute_table().items()}
        if arguments.num_words:
            for attributes in table.values():
                if "num_words" in attributes:
                    attributes["num_words"] = dict.fromkeys(arguments.num_words, 1.0)
        self.table = table

    def generate(self, subgroup: Subgroup, index: int) -> Request:
        """Return the generate request number `index` of a subgroup."""
        rng = random.Random(f"{self.arguments.seed}/{subgroup}/generate/{index}")
        prompt = rng.choice(variants(subgroup, "generate"))
        language = self._language(rng)
        attributes: dict[str, Any] = {"language": language}
        if subgroup == "bitext":
            for _ in range(100):
                if (other := self._language(rng)) != language:
                    break
            else:  # the weights are so uneven that another one never came
                others = {c: w for c, w in zip(self.codes, self.language_weights, strict=True) if c != language}
                other = rng.choices(list(others), list(others.values()))[0]
            attributes["positive_language"] = other
        for name, values in self.table[subgroup].items():
            attributes[name] = rng.choices(list(values), list(values.values()))[0]
        if subgroup in ("short-short", "long-long"):
            attributes["hard_negative"] = self.arguments.hard_negatives
        slot = math.floor(index / self.arguments.examples_per_task) if subgroup in BRAINSTORMED else None
        id_ = request_id("generate", subgroup, index, prompt, attributes, slot)
        return Request(id_, "generate", subgroup, index, prompt, attributes, slot)

    def _language(self, rng: random.Random) -> str:
        return rng.choices(self.codes, self.language_weights)[0]
