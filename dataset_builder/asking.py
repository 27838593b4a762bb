"""The verbs `brainstorm` and `generate`: plan, ask what the journal lacks, commit each reply as it comes.

The plan is read as a stream, from which the requests in flight are taken: memory does not grow with its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from dataset_builder.batch_llm import write_batch
from dataset_builder.completion import endpoint_of
from dataset_builder.config import PlanArguments
from dataset_builder.endpoint_check import EndpointCheck
from dataset_builder.errors import InputError, RunError
from dataset_builder.journal import Journal, Pending, chunks
from dataset_builder.llm_config import LLMArguments
from dataset_builder.outcome import Outcome, reply_outcome
from dataset_builder.plan import (
    Request,
    brainstorm_requests,
    generate_requests,
    num_brainstorms,
    num_examples_by_subgroup,
)
from dataset_builder.progress import Progress
from dataset_builder.read_ahead import read_ahead
from dataset_builder.recorded_llm import DEFAULT_REPLIES, check_recording, read_batch_output
from dataset_builder.rendering import render
from dataset_builder.scale_config import HERE, ScaleArguments
from dataset_builder.schema import Step, Subgroup
from dataset_builder.tasks import Tasks, read_tasks

_COMMIT_EVERY_S = 0.02
"""Replies that arrive within this time share a transaction; a commit waits for the disk, for some milliseconds."""


def journal_path(plan: PlanArguments) -> Path:
    """Return where the journal of a run lies."""
    return plan.run_dir / "journal.sqlite"


def brainstorm(plan: PlanArguments, llm: LLMArguments, scale: ScaleArguments = HERE) -> str:
    """Ask for the tasks that the plan needs; return a sentence on what the journal holds now."""
    with Journal(journal_path(plan), plan.identity(), write=True) as journal:
        asking = _Asking("brainstorm", num_brainstorms(plan), llm, journal)
        report = asking.ask(lambda: ((request, None) for request in brainstorm_requests(plan)), scale)
        num_tasks = sum(len(tasks) for lists in read_tasks(plan, journal).lists.values() for tasks in lists)
    return f"{report}, {num_tasks:,} tasks"


def generate(plan: PlanArguments, llm: LLMArguments, scale: ScaleArguments = HERE) -> str:
    """Ask for the examples, each conditioned on its task; return a sentence on what the journal holds now.

    Raises:
        InputError: if there are no tasks for a subgroup that needs them.
    """
    with Journal(journal_path(plan), plan.identity(), write=True) as journal:
        tasks, num_requests = read_tasks(plan, journal), num_examples_by_subgroup(plan)
        without: list[Subgroup] = [subgroup for subgroup in num_requests if not tasks.has(subgroup)]
        if without:
            raise InputError(
                f"There are no tasks for {', '.join(without)}, so {sum(num_requests[s] for s in without):,} of "
                f"{plan.num_examples:,} examples cannot be asked for; run `embedsmith brainstorm` first."
            )
        if tasks.num_missing:
            print(
                f"generate: {tasks.num_missing:,} brainstorms have no usable reply, so others' tasks are used more often; run "
                "`embedsmith brainstorm` again first to have them all",
                file=sys.stderr,
            )
        asking = _Asking("generate", num_requests, llm, journal)
        return asking.ask(lambda: _with_tasks(generate_requests(plan), tasks), scale)


def _with_tasks(requests: Iterable[Request], tasks: Tasks) -> Iterator[Pending]:
    for request in requests:
        yield request, tasks.task(request)


class _Asking:
    """Asks the requests of one step, commits what comes back, and counts it."""

    def __init__(self, step: Step, num_requests: Mapping[Subgroup, int], llm: LLMArguments, journal: Journal) -> None:
        self.step: Step = step
        self.num_requests, self.llm, self.journal = num_requests, llm, journal
        self.total = sum(num_requests.values())
        self.endpoints, self.check = llm.endpoints(), EndpointCheck(has_cost_limit=llm.max_cost_usd is not None)
        self.spent_usd: float = journal.spent().cost_usd or 0.0
        # a recording has one reply to a request: asking it again would only repeat it
        again = llm.llm == "live" or llm.batch_out or llm.batch_in or llm.batch_submit
        self.max_attempts = llm.max_attempts if again else 1

    def ask(self, planned: Callable[[], Iterator[Pending]], scale: ScaleArguments) -> str:
        """Ask what is missing of the plan, in the way that the settings say; return a sentence on where it stands."""
        llm = self.llm
        if llm.retry_refused:
            self.journal.forget_failures()
        scale.check(llm)
        if not self._collect(planned):
            return "a Slurm job works on this run; run the same command again when it has ended"
        self.progress = Progress(self.step, self.total, self.journal.tally(self.step, self.num_requests).usable)
        if llm.batch_out:
            files = write_batch(Path(llm.batch_out), self.step, _prompts(self._pending(planned())), llm)
            if files:
                names = ", ".join(str(file.path) for file in files)
                num = sum(file.num_requests for file in files)
                return (
                    f"{num:,} requests in {names}; have them answered, then run `{self.step}` with --batch_in RESULTS"
                )
        elif llm.batch_in:
            self._ingest(planned, (pair for name in llm.batch_in for pair in read_batch_output(Path(name))), "batch_in")
        elif llm.batch_submit:
            self._submit(planned)
        elif llm.llm == "recorded":
            path = Path(llm.recorded_replies) if llm.recorded_replies else DEFAULT_REPLIES
            check_recording(path, {request.id for request, _ in self._pending(planned())})
            self._ingest(planned, read_batch_output(path), "recorded")
        elif scale.executor:
            if not self._by_tasks(planned, scale):
                return "a Slurm job asks; run the same command again when it has ended"
        else:
            gc.freeze()  # what was imported stays: looking at it again and again takes a tenth of the time
            try:
                asyncio.run(self._live(planned))
            finally:
                gc.unfreeze()
        return self._summary()

    def _pending(self, planned: Iterable[Pending]) -> Iterator[Pending]:
        """Note the planned requests, some hundred at a time, and yield those that are to be asked."""
        for chunk in chunks(planned, 100):
            self.journal.plan(chunk)
            yield from self.journal.pending([request.id for request, _ in chunk], self.max_attempts)

    def _ingest(
        self, planned: Callable[[], Iterator[Pending]], replies: Iterable[tuple[str, object]], source: str
    ) -> int:
        """Commit those of the replies, or refusals, that are to requests which are still open; return their number."""
        num_open = sum(1 for _ in self._pending(planned())) if source == "batch_in" else 0
        num_found = num_new = 0
        self.progress.restart_clock()
        for chunk in chunks(replies):
            most = sys.maxsize if source == "executor" else self.max_attempts  # those are paid, and nowhere else
            open_requests = {r.id: r for r, _ in self.journal.pending([id_ for id_, _ in chunk], most)}
            outcomes: dict[Outcome, None] = {}  # the same reply twice is one reply
            for id_, answer in chunk:
                if (request := open_requests.get(id_)) is None:
                    continue
                is_settled = source == "recorded" or isinstance(answer, tuple)
                if isinstance(answer, tuple):
                    outcomes[Outcome(id_, refusal=answer)] = None
                elif isinstance(answer, dict):
                    num_found += 1
                    outcome = reply_outcome(request, answer)
                    is_settled = is_settled or outcome.rejection is None
                    if source == "recorded" or not self.journal.has_reply(outcome):
                        outcomes[outcome] = None
                if is_settled:
                    del open_requests[id_]
            self._count(outcomes)
            self._commit(list(outcomes), source)
            num_new += len(outcomes)
        if num_open and not num_found:
            raise InputError(
                f"`batch_in` has no reply to any of the {num_open:,} requests that are still open, such as "
                f"'{next(self._pending(planned()))[0].id}'; give the result files of this plan's own batches."
            )
        return num_new

    def _collect(self, planned: Callable[[], Iterator[Pending]]) -> bool:
        """Commit what tasks of an executor were told, unless a Slurm job still asks."""
        run = self.journal.path.parent
        if not (run / "scale").is_dir():
            return True
        from dataset_builder.scale import collect

        usable = self.journal.tally(self.step, self.num_requests).usable
        self.progress = Progress(self.step, self.total, usable)  # of this, not of the asking
        return collect(run, self.step, lambda replies: self._ingest(planned, replies, "executor"))

    def _by_tasks(self, planned: Callable[[], Iterator[Pending]], scale: ScaleArguments) -> bool:
        """Have tasks ask what is missing, within what is left to spend; return whether that is over."""
        from dataset_builder.scale import ask_by_tasks

        if self._is_over_budget():
            return True
        limit = self.llm.max_cost_usd
        llm = replace(self.llm, max_cost_usd=None if limit is None else limit - self.spent_usd)
        folder, pending = self.journal.path.parent / "scale" / self.step, self._pending(planned())
        try:
            is_over = ask_by_tasks(folder, llm, scale, pending, self.total, self.journal.num_attempts)
        except RunError:
            self._collect(planned)  # which knows better what went wrong
            raise
        return is_over and self._collect(planned)

    def _submit(self, planned: Callable[[], Iterator[Pending]]) -> None:
        """Take what submitted batches answered, then submit what is missing, as long as that brings something."""
        from dataset_builder.batch_api import BatchAPI

        api = BatchAPI(self.llm, self.journal, self.journal.path.parent / "batches", self.step)
        self._ingest(planned, api.results(), "batch")
        while not self._is_over_budget() and api.submit(_prompts(self._pending(planned()))):
            if not self._ingest(planned, api.results(), "batch"):
                print(
                    f"{self.step}: the last batches brought nothing new; run again to submit the rest", file=sys.stderr
                )
                break

    async def _live(self, planned: Callable[[], Iterator[Pending]]) -> None:
        """Ask the endpoints, and ask again what could not be parsed, up to `max_attempts` replies a request."""
        num_unanswered = 0
        for attempt in range(self.llm.max_attempts):
            pending = read_ahead(self._pending(planned()) if attempt == 0 else self._open())
            with contextlib.closing(pending):
                if self._is_over_budget() or (first := next(pending, None)) is None:
                    break
                num_unanswered = await self._live_round(chain([first], pending))
        if num_unanswered:
            print(f"{self.step}: {num_unanswered:,} requests got no answer; run again to ask them", file=sys.stderr)

    def _open(self) -> Iterator[Pending]:
        yield from self.journal.pending(self.journal.ids(self.step, self.num_requests), self.max_attempts)

    async def _live_round(self, pending: Iterator[Pending]) -> int:
        """Ask each of the pending requests once; return how many got no answer."""
        from dataset_builder.live_llm import LiveLLM
        from dataset_builder.workers import LLMWorkers

        num_unanswered = 0
        kind = LiveLLM if self.llm.num_workers == 1 else LLMWorkers
        async with kind(self.llm, pending, self._count_one) as llm:
            try:
                while outcomes := await llm.take():
                    num_unanswered += sum(outcome.body is None and outcome.refusal is None for outcome in outcomes)
                    await self._commit_aside(outcomes)
                    self.check.check(outcomes)
                    await asyncio.sleep(_COMMIT_EVERY_S)
            finally:  # Ctrl-C or an error: what had arrived is kept
                self._commit(llm.taken(), "live")
        return num_unanswered

    async def _commit_aside(self, outcomes: list[Outcome]) -> None:
        """Commit in a thread, to the end even if Ctrl-C comes meanwhile: nobody else holds these outcomes."""
        committing = asyncio.ensure_future(asyncio.to_thread(self._commit, outcomes, "live"))
        try:
            await asyncio.shield(committing)
        finally:
            await committing

    def _count(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._count_one(outcome)

    def _count_one(self, outcome: Outcome) -> bool:
        """Count an outcome as it arrives; return whether the money is spent."""
        if outcome.body is not None:
            cost_usd, reason = self._cost_usd(outcome), outcome.rejection.reason if outcome.rejection else None
            self.spent_usd += cost_usd or 0.0
            self.progress.reply(reason, (outcome.prompt_tokens or 0) + (outcome.completion_tokens or 0), cost_usd)
        elif outcome.refusal is not None:
            self.progress.unusable["refused"] += 1
        return self._is_over_budget()

    def _cost_usd(self, outcome: Outcome) -> float | None:
        endpoint = endpoint_of(outcome.request_id, self.endpoints)
        return endpoint.cost_usd(outcome.prompt_tokens, outcome.completion_tokens)

    def _is_over_budget(self) -> bool:
        return self.llm.max_cost_usd is not None and self.spent_usd >= self.llm.max_cost_usd

    def _commit(self, outcomes: list[Outcome], source: str) -> None:
        if outcomes:
            self.journal.add_outcomes(outcomes, source, self._cost_usd)

    def _summary(self) -> str:
        tally, spent = self.journal.tally(self.step, self.num_requests), self.journal.spent()
        if self.progress.num_replies or self.progress.unusable:
            self.progress.show()
        elif tally.answered + tally.refused >= self.total:
            what = f"{tally.refused:,} of {self.total:,} requests were refused" if tally.refused else ""
            what = what or f"all {self.total:,} requests are in the journal"
            print(f"{self.step}: nothing to ask, {what}", file=sys.stderr)
        text, unanswered = f"{tally.usable:,} of {self.total:,} replies usable", self.total - tally.answered
        if unanswered:
            text += f", {unanswered:,} unanswered" + (f" ({tally.refused:,} refused)" if tally.refused else "")
        if spent.cost_usd is not None:
            text += f", ${spent.cost_usd:,.2f} spent"
            if self._is_over_budget() and unanswered:
                raise RunError(f"Stopped at max_cost_usd {self.llm.max_cost_usd}: {text}. Raise it to go on.")
        if tally.refused and (failure := self.journal.failure()):
            status, message = failure
            print(
                f"refused with HTTP {status}: {message}; --retry_refused asks refused requests again", file=sys.stderr
            )
        if self.total and not tally.usable:
            raise RunError(f"No reply could be used: {text}. The first reason: {self._first_reason()}.")
        return text

    def _first_reason(self) -> str:
        for subgroup, num in self.num_requests.items():
            for entry in self.journal.entries(self.step, subgroup, 0, num):
                if entry.body is not None and (rejection := reply_outcome(entry.request, entry.body).rejection):
                    return f"{rejection.reason}, {rejection.detail}"
        return "no answer"


def _prompts(pending: Iterable[Pending]) -> Iterator[tuple[Request, str]]:
    for request, task in pending:
        yield request, render(request.prompt, request.attributes, task)
