"""The verbs `brainstorm` and `generate`: plan, ask what the journal lacks, commit each reply as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.batch_llm import read_batches, write_batch
from dataset_builder.completion import endpoint_of
from dataset_builder.config import PlanArguments
from dataset_builder.errors import InputError, RunError
from dataset_builder.journal import Journal, token_counts
from dataset_builder.llm_config import LLMArguments
from dataset_builder.parsing import Rejection, check_reply, parse_tasks
from dataset_builder.plan import Request, brainstorm_requests, generate_requests
from dataset_builder.progress import Progress
from dataset_builder.recorded_llm import DEFAULT_REPLIES, recorded_replies
from dataset_builder.rendering import render
from dataset_builder.schema import FIXED_INSTRUCTIONS, Subgroup

_MAX_REFUSED = 20
"""Refusals at the start of a run after which the settings, and not the requests, must be what the endpoint refuses."""


def journal_path(plan: PlanArguments) -> Path:
    """Return where the journal of a run lies."""
    return plan.run_dir / "journal.sqlite"


@dataclass
class Tasks:
    """The brainstormed tasks by subgroup: one list per brainstorm request, empty where its reply was unusable."""

    per_brainstorm: int
    lists: dict[Subgroup, list[list[str]]] = field(default_factory=dict)

    def task(self, request: Request) -> str | None:
        """Return the task of a generate request; None if its subgroup has no usable brainstorm at all.

        The slots of an unusable brainstorm fall to the one before it (to the next, if there is none before), so that
        a longer plan never changes the task of an earlier request.
        """
        if request.task_slot is None:
            return FIXED_INSTRUCTIONS[request.subgroup]
        lists: list[list[str]] = self.lists.get(request.subgroup, [])
        index, position = divmod(request.task_slot, self.per_brainstorm)
        for candidate in [*range(min(index, len(lists) - 1), -1, -1), *range(index + 1, len(lists))]:
            if lists[candidate]:
                task: str = lists[candidate][position % len(lists[candidate])]
                return task
        return None


def read_tasks(plan: PlanArguments, journal: Journal) -> Tasks:
    """Return the tasks that the journal's brainstorm replies hold."""
    tasks = Tasks(plan.tasks_per_brainstorm)
    for entry in journal.entries(brainstorm_requests(plan)):
        parsed = parse_tasks(entry.body, plan.tasks_per_brainstorm) if entry.body else []
        tasks.lists.setdefault(entry.request.subgroup, []).append([] if isinstance(parsed, Rejection) else parsed)
    return tasks


def brainstorm(plan: PlanArguments, llm: LLMArguments) -> str:
    """Ask for the tasks that the plan needs; return a sentence on what the journal holds now."""
    with Journal(journal_path(plan), plan.identity(), write=True) as journal:
        requests = list(brainstorm_requests(plan))
        journal.plan((request, None) for request in requests)
        report = _ask_missing("brainstorm", requests, llm, journal)
        num_tasks = sum(len(tasks) for lists in read_tasks(plan, journal).lists.values() for tasks in lists)
    return f"{report}, {num_tasks:,} tasks"


def generate(plan: PlanArguments, llm: LLMArguments) -> str:
    """Ask for the examples, each conditioned on its task; return a sentence on what the journal holds now.

    Raises:
        InputError: if there are no tasks for a subgroup that needs them.
    """
    with Journal(journal_path(plan), plan.identity(), write=True) as journal:
        tasks = read_tasks(plan, journal)
        requests = list(generate_requests(plan))
        planned = [(request, task) for request in requests if (task := tasks.task(request)) is not None]
        if len(planned) < len(requests):
            without = sorted({r.subgroup for r in requests} - {r.subgroup for r, _ in planned})
            raise InputError(
                f"There are no tasks for {', '.join(without)}, so {len(requests) - len(planned):,} of {len(requests):,} "
                "examples cannot be asked for; run `embedsmith brainstorm` first."
            )
        journal.plan(planned)
        return _ask_missing("generate", requests, llm, journal)


def _ask_missing(label: str, requests: list[Request], llm: LLMArguments, journal: Journal) -> str:
    if llm.retry_refused:
        journal.forget_failures()
    # a recording has one reply to a request: asking it again would only repeat it
    again = llm.llm == "live" or llm.batch_out or llm.batch_in
    pending = list(journal.pending(requests, llm.max_attempts if again else 1))
    if pending and llm.batch_out:
        paths = write_batch(Path(llm.batch_out), label, _prompts(pending), llm)
        names = ", ".join(str(file.path) for file in paths)
        return f"{len(pending):,} requests in {names}; have them answered, then run `{label}` with --batch_in and the results"
    if not pending:
        num_refused = len(journal.failures().keys() & {request.id for request in requests})
        what = (
            f"{num_refused:,} of {len(requests):,} requests were refused"
            if num_refused
            else f"all {len(requests):,} requests"
        )
        print(f"{label}: nothing to ask, {what}{'' if num_refused else ' are in the journal'}", file=sys.stderr)
    else:
        asking = _Asking(label, llm, journal, total=len(requests), done=len(requests) - len(pending))
        if llm.batch_in:
            asking.batches([request for request, _ in pending])
        elif llm.llm == "recorded":
            asking.recorded([request for request, _ in pending])
        else:
            asyncio.run(asking.live(pending))
        asking.progress.show()
    return _summary(requests, llm, journal)


def _summary(requests: list[Request], llm: LLMArguments, journal: Journal) -> str:
    reasons = [_rejection(entry.body, entry.request) for entry in journal.entries(requests) if entry.body]
    failures, spent = journal.failures(), journal.spent()
    refused = [failures[request.id] for request in requests if request.id in failures]
    unanswered = len(requests) - len(reasons)
    usable = sum(reason is None for reason in reasons)
    text = f"{usable:,} of {len(requests):,} replies usable"
    if unanswered:
        text += f", {unanswered:,} unanswered" + (f" ({len(refused):,} refused)" if refused else "")
    if spent.cost_usd is not None:
        text += f", ${spent.cost_usd:,.2f} spent"
        if llm.max_cost_usd is not None and spent.cost_usd >= llm.max_cost_usd and unanswered:
            raise RunError(f"Stopped at max_cost_usd {llm.max_cost_usd}: {text}. Raise it to go on.")
    if refused:
        status, message = refused[0]
        print(f"refused with HTTP {status}: {message}; --retry_refused asks refused requests again", file=sys.stderr)
    if requests and not usable:
        first = next((f"{reason.reason}, {reason.detail}" for reason in reasons if reason), "no answer")
        raise RunError(f"No reply could be used: {text}. The first reason: {first}.")
    return text


def _rejection(body: dict[str, Any], request: Request) -> Rejection | None:
    return check_reply(body, request.step, request.subgroup, request.attributes)


class _Asking:
    """Commits replies and counts them."""

    def __init__(self, label: str, llm: LLMArguments, journal: Journal, *, total: int, done: int) -> None:
        self.label, self.llm, self.journal = label, llm, journal
        self.progress = Progress(label, total, done)
        self.spent_usd: float = journal.spent().cost_usd or 0.0

    def recorded(self, pending: list[Request]) -> None:
        """Commit the recorded reply of every pending request."""
        path = Path(self.llm.recorded_replies) if self.llm.recorded_replies else DEFAULT_REPLIES
        for request, body in recorded_replies(path, pending):
            self._commit(request, body, "recorded")

    def batches(self, pending: list[Request]) -> None:
        """Commit what the result files hold of the pending requests."""
        for request, body in read_batches(self.llm.batch_in, {request.id: request for request in pending}):
            if not self.journal.has_reply(request, body):
                self._commit(request, body, "batch")

    async def live(self, pending: list[tuple[Request, str | None]]) -> None:
        """Ask the endpoint, and ask again what could not be parsed, up to `max_attempts` replies a request."""
        from dataset_builder.live_llm import LiveLLM

        limit = self.llm.max_cost_usd
        llm = LiveLLM(self.llm, stop=lambda: limit is not None and self.spent_usd >= limit)
        for attempt in range(self.llm.max_attempts):
            if attempt:
                pending = list(self.journal.pending((request for request, _ in pending), self.llm.max_attempts))
            if not pending or llm.stop():
                break
            llm.unanswered = 0  # those of the round before are among the pending of this one
            async with contextlib.aclosing(llm.answers(_prompts(pending))) as answers:
                await self._commit_all(answers)
        if llm.unanswered:
            print(f"{self.label}: {llm.unanswered:,} requests got no answer; run again to ask them", file=sys.stderr)

    async def _commit_all(self, answers: AsyncIterator[tuple[Request, Any]]) -> None:
        async for request, answer in answers:
            if isinstance(answer, dict):
                self._commit(request, answer, "live")
                continue
            self.journal.add_failure(request, *answer)
            self.progress.unusable["refused"] += 1
            if self.progress.unusable["refused"] >= _MAX_REFUSED and not self.progress.num_replies:
                raise RunError(
                    f"The endpoint refused the first {_MAX_REFUSED} requests, the last one with HTTP {answer[0]}: {answer[1]}. "
                    "Change the setting that it does not take, and ask again with --retry_refused."
                )

    def _commit(self, request: Request, body: dict[str, Any], source: str) -> None:
        rejection = _rejection(body, request)
        counts = token_counts(body)
        tokens_in, tokens_out = (count or 0 for count in counts)
        cost_usd = endpoint_of(request.id, self.llm.endpoints()).cost_usd(*counts)
        self.spent_usd += cost_usd or 0.0
        self.journal.add_reply(request, source, body, usable=rejection is None, cost_usd=cost_usd)
        self.progress.reply(rejection.reason if rejection else None, tokens_in + tokens_out, cost_usd)
        if source not in ("recorded", "batch") and self.llm.max_cost_usd is not None and counts == (None, None):
            raise RunError(
                "`max_cost_usd` is given but the endpoint reports no token counts, so the cost cannot be known; leave the "
                "limit away, or set one at your provider."
            )


def _prompts(pending: list[tuple[Request, str | None]]) -> Iterator[tuple[Request, str]]:
    for request, task in pending:
        yield request, render(request.prompt, request.attributes, task)
