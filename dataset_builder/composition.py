"""What a corpus is made of: the counts behind the card, collected while the examples pass by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataset_builder.checks import Row
from dataset_builder.contamination import Overlap
from dataset_builder.curation import Judged, Split
from dataset_builder.schema import TEXT_COLUMNS, Subgroup


@dataclass
class Composition:
    """Counts of a corpus. Token counts and cost are None where no reply told any.

    Attributes:
        examples: by subgroup and split.
        used_tasks: examples by task id; `task_split` has the split of each.
        languages: examples with a text in the language, by BCP-47 code.
        models: examples by the model that wrote them.
        prompts: examples by the name of their prompt.
        lengths: texts by number of words, by subgroup and column.
        samples: of each subgroup the English example with the shortest texts, else the shortest of all.
        rejected: replies that became no example, by subgroup and reason.
        num_unanswered: planned requests without a reply.
        overlaps: what was found of the test sets of evaluation tasks.
        num_repeated_tasks: tasks that nearly repeat an earlier one.
        num_generated_rejected: rejected replies to generate requests; `rejected` has those to brainstorms too.
    """

    examples: Counter[tuple[Subgroup, Split]] = field(default_factory=Counter)
    used_tasks: Counter[str] = field(default_factory=Counter)
    task_split: dict[str, Split] = field(default_factory=dict)
    tasks_of: dict[Subgroup, set[str]] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    lengths: dict[Subgroup, dict[str, Counter[int]]] = field(default_factory=dict)
    samples: dict[Subgroup, Row] = field(default_factory=dict)
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_unanswered: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    overlaps: list[Overlap] = field(default_factory=list)
    num_repeated_tasks: int = 0
    num_generated_rejected: int = 0

    @property
    def num_kept(self) -> int:
        """All examples."""
        return self.examples.total()

    @property
    def reasons(self) -> Counter[str]:
        """Rejected replies by reason."""
        reasons: Counter[str] = Counter()
        for (_, reason), num in self.rejected.items():
            reasons[reason] += num
        return reasons

    def num_rejected(self, subgroup: str) -> int:
        """Rejected replies of one subgroup."""
        return sum(num for (its, _), num in self.rejected.items() if its == subgroup)

    def num_by_split(self, split: Split) -> int:
        """Examples of one split."""
        return sum(num for (_, its), num in self.examples.items() if its == split)

    def add(self, row: Row, subgroup: Subgroup, split: Split, num_words: Mapping[str, int]) -> None:
        """Count an example."""
        self.examples[subgroup, split] += 1
        self.used_tasks[row["task_id"]] += 1
        self.task_split[row["task_id"]] = split
        self.tasks_of.setdefault(subgroup, set()).add(row["task_id"])
        self.languages.update({row["language"], row["positive_language"]})
        self.models[row["model"]] += 1
        self.prompts[row["prompt"]] += 1
        lengths = self.lengths.setdefault(subgroup, {})
        for name in TEXT_COLUMNS:
            if row[name] is not None:
                lengths.setdefault(name, Counter())[num_words[name]] += 1
        if subgroup not in self.samples or _sample_key(row) < _sample_key(self.samples[subgroup]):
            self.samples[subgroup] = row

    def add_rejected(self, rows: Iterable[Row]) -> None:
        """Count replies that became no example."""
        self.rejected.update((row["subgroup"], row["reason"]) for row in rows)

    def add_judged(self, judged: Judged) -> None:
        """Count what was judged by itself: usage, overlaps, and what is missing."""
        self.num_unanswered += judged.num_unanswered
        self.overlaps += judged.overlaps
        for name in ("prompt_tokens", "completion_tokens", "cost_usd"):
            value: Any = getattr(judged, name)
            if value is not None:
                setattr(self, name, (getattr(self, name) or 0) + value)


def _sample_key(row: Row) -> tuple[bool, int, str]:
    names = ("instruction", "query", "positive", "negative")
    return row["language"] != "en", sum(len(row[name] or "") for name in names), row["id"]
