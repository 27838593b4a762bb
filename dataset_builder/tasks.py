"""The brainstormed tasks, as the journal's replies hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

from dataset_builder.config import PlanArguments
from dataset_builder.journal import Journal
from dataset_builder.parsing import Rejection, parse_tasks
from dataset_builder.plan import Request, num_brainstorms
from dataset_builder.schema import FIXED_INSTRUCTIONS, Subgroup


@dataclass
class Tasks:
    """The brainstormed tasks by subgroup: one list per brainstorm request, empty where its reply was unusable."""

    per_brainstorm: int
    lists: dict[Subgroup, list[list[str]]] = field(default_factory=dict)

    def has(self, subgroup: Subgroup) -> bool:
        """Tell whether a subgroup has a task, fixed or brainstormed."""
        return subgroup in FIXED_INSTRUCTIONS or any(self.lists.get(subgroup, []))

    @property
    def num_missing(self) -> int:
        """Brainstorms without a usable reply."""
        return sum(not tasks for lists in self.lists.values() for tasks in lists)

    def task(self, request: Request) -> str | None:
        """Return the task of a generate request; None if its subgroup has no usable brainstorm at all.

        The slots of an unusable brainstorm fall to the one before it (to the next, if there is none before), so that
        a longer plan never changes the task of an earlier request.
        """
        if request.task_slot is None:
            return FIXED_INSTRUCTIONS[request.subgroup]
        lists: list[list[str]] = self.lists.get(request.subgroup, [])
        index, position = divmod(request.task_slot, self.per_brainstorm)
        for candidate in chain(range(min(index, len(lists) - 1), -1, -1), range(index + 1, len(lists))):
            if lists[candidate]:
                task: str = lists[candidate][position % len(lists[candidate])]
                return task
        return None


def read_tasks(plan: PlanArguments, journal: Journal) -> Tasks:
    """Return the tasks that the journal's brainstorm replies hold."""
    tasks = Tasks(plan.tasks_per_brainstorm)
    for subgroup, num in num_brainstorms(plan).items():
        lists = tasks.lists[subgroup] = [[] for _ in range(num)]
        for entry in journal.entries("brainstorm", subgroup, 0, num):
            parsed = parse_tasks(entry.body, plan.tasks_per_brainstorm) if entry.body else []
            lists[entry.request.index] = [] if isinstance(parsed, Rejection) else parsed
    return tasks
