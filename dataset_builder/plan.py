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
from bisect import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from dataset_builder.config import PlanArguments
from dataset_builder.rendering import attribute_table, fields, variants
from dataset_builder.schema import BRAINSTORMED, Step, Subgroup

_NUM_OPEN_BRAINSTORMS = 4
"""The first brainstorms of a subgroup roam freely; each later one is given fields of its own, or it would repeat them."""
_FIELDS_PER_BRAINSTORM = 3
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=True).encode  # json.dumps would make a new encoder every time


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
    key = _encode([subgroup, step, prompt, attributes, index, task_slot])
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
            attributes: dict[str, Any] = {"num_tasks": arguments.tasks_per_brainstorm}
            if index >= _NUM_OPEN_BRAINSTORMS:
                attributes["fields"] = rng.sample(fields(), _FIELDS_PER_BRAINSTORM)
            id_ = request_id("brainstorm", subgroup, index, prompt, attributes)
            yield Request(id_, "brainstorm", subgroup, index, prompt, attributes)


class _Choice:
    """Draws what `rng.choices(values, weights)[0]` draws, in a fraction of its time: the weights are cumulated once."""

    __slots__ = ("cumulated", "last", "total", "values")

    def __init__(self, weights: dict[Any, float]) -> None:
        self.values, self.cumulated = list(weights), list(accumulate(weights.values()))
        self.last, self.total = len(weights) - 1, float(self.cumulated[-1])

    def draw(self, rng: random.Random) -> Any:
        """Return one of the values."""
        return self.values[bisect(self.cumulated, rng.random() * self.total, 0, self.last)]


class _Sampler:
    """Draws prompt, languages and attributes of generate requests."""

    def __init__(self, arguments: PlanArguments) -> None:
        self.arguments = arguments
        self.rng = random.Random()
        self.languages = _Choice(arguments.language_weights)
        lengths = dict.fromkeys(arguments.num_words, 1.0)
        self.attributes = {
            subgroup: {
                name: _Choice(lengths if name == "num_words" and lengths else weights)
                for name, weights in attributes.items()
            }
            for subgroup, attributes in attribute_table().items()
        }

    def generate(self, subgroup: Subgroup, index: int) -> Request:
        """Return the generate request number `index` of a subgroup."""
        rng = self.rng
        rng.seed(f"{self.arguments.seed}/{subgroup}/generate/{index}")
        prompt = rng.choice(variants(subgroup, "generate"))
        attributes: dict[str, Any] = {"language": self.languages.draw(rng)}
        if subgroup == "bitext":
            attributes["positive_language"] = self._other_language(attributes["language"])
        for name, choice in self.attributes[subgroup].items():
            attributes[name] = choice.draw(rng)
        if subgroup in ("short-short", "long-long"):
            attributes["hard_negative"] = self.arguments.hard_negatives
        slot = math.floor(index / self.arguments.examples_per_task) if subgroup in BRAINSTORMED else None
        id_ = request_id("generate", subgroup, index, prompt, attributes, slot)
        return Request(id_, "generate", subgroup, index, prompt, attributes, slot)

    def _other_language(self, language: str) -> str:
        for _ in range(100):
            if (other := self.languages.draw(self.rng)) != language:
                return str(other)
        # the weights are so uneven that another one never came
        weights = self.arguments.language_weights
        return str(_Choice({code: weight for code, weight in weights.items() if code != language}).draw(self.rng))
