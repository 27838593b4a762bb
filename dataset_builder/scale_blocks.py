"""The blocks that datatrove runs: requests in, replies out, and the judging of replies.

They hold no prompt, parser or filter of their own: asking is `LiveLLM`, judging is `Piece.judge`, as on one machine.

datatrove's `InferenceRunner` is not used: it forgets which model answered, ends a whole task for one failed request, does
not heed Retry-After, and writes the API key into its log folder. Its servers, which start vLLM or SGLang, are used.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from filelock import FileLock
from multiprocess.process import parent_process

from dataset_builder.completion import endpoint_of
from dataset_builder.curation import Judged
from dataset_builder.endpoint_check import EndpointCheck
from dataset_builder.errors import EmbedsmithError, RunError
from dataset_builder.journal import Pending
from dataset_builder.live_llm import LiveLLM
from dataset_builder.llm_config import LLMArguments
from dataset_builder.outcome import Outcome, token_counts
from dataset_builder.plan import Request
from dataset_builder.rendering import render
from dataset_builder.scale import whole_lines
from dataset_builder.scale_config import ScaleArguments
from dataset_builder.scale_executors import flags_of
from dataset_builder.sifting import Piece, end_with

_WRITE_EVERY_S = 0.05
"""Replies that arrive within this time are written together; each write waits for the disk."""


def request_line(pending: Pending, num_attempts: int) -> str:
    """Return a planned request with its task, and how many replies it has had, as a line for `ReadRequests`."""
    request, task = pending
    fields = [request.id, request.step, request.subgroup, request.index, request.prompt, request.attributes]
    return json.dumps([*fields, request.task_slot, task, num_attempts]) + "\n"


class ReadRequests(PipelineStep):
    """Reads the requests of a task, as documents: the rendered prompt is the text, the plan's fields are the metadata."""

    name, type = "Planned requests", "📖 - READER"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = str(folder)

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of one task."""
        with Path(self.folder, f"{rank:05d}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                *fields, task, num_attempts = json.loads(line)
                request = Request(*fields)
                self.stat_update("requests")
                yield Document(
                    render(request.prompt, request.attributes, task),
                    request.id,
                    metadata={"request": fields, "task": task, "num_attempts": num_attempts},
                )


class Ask(PipelineStep):
    """Asks the LLM and writes every reply as a line of batch output, `<replies>/<task>.jsonl`.

    A task that is started again goes on after the lines that are there.
    """

    name, type = "LLM", "💬 - ASK"

    def __init__(self, llm: LLMArguments, scale: ScaleArguments, replies: Path) -> None:
        super().__init__()
        self.llm, self.scale, self.replies = llm, scale, str(replies)

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Ask all that `data` brings and nobody has answered; yields nothing."""
        path = Path(self.replies, f"{rank:05d}.jsonl")
        if (
            parent := parent_process()
        ):  # a task whose Ray worker was killed is started again elsewhere: this one must end
            end_with(parent)
        try:
            with FileLock(path.with_suffix(".lock")):
                path.with_suffix(".error").unlink(missing_ok=True)
                self._told(path, world_size)
                with path.open("ab") as file:
                    asyncio.run(self._ask(self._unsettled(data or ()), file, rank))
        except Exception as error:
            reason = str(error) if isinstance(error, EmbedsmithError) else f"{type(error).__name__}: {error}"
            path.with_suffix(".error").write_text(reason, encoding="utf-8")
            raise
        yield from ()

    def _told(self, path: Path, world_size: int) -> None:
        """Read what this task was told before, and what that cost."""
        self.endpoints, limit = self.llm.endpoints(), self.llm.max_cost_usd
        self.left_usd = float("inf") if limit is None else limit / world_size
        self.usable, self.attempts = set[str](), Counter[str]()
        for line in whole_lines(path):
            row = json.loads(line)
            self.attempts[row["custom_id"]] += 1
            if row["usable"] or row["error"]:
                self.usable.add(row["custom_id"])
            self._pay(row["custom_id"], *token_counts(row["response"]["body"] or {}))

    def _pay(self, request_id: str, *num_tokens: int | None) -> None:
        self.left_usd -= endpoint_of(request_id, self.endpoints).cost_usd(*num_tokens) or 0.0

    def _unsettled(self, documents: Iterable[Document]) -> Iterator[Pending]:
        for document in documents:
            self.attempts[document.id] += document.metadata["num_attempts"]
            if document.id not in self.usable and self.attempts[document.id] < self.llm.max_attempts:
                yield Request(*document.metadata["request"]), document.metadata["task"]

    async def _ask(self, pending: Iterator[Pending], file: IO[bytes], rank: int) -> None:
        check = EndpointCheck(has_cost_limit=self.llm.max_cost_usd is not None)
        async with engine(self.llm, self.scale, rank) as llm:
            while True:
                again: list[Pending] = []
                async with LiveLLM(llm, self._noted(pending), self._is_spent) as live:
                    try:
                        while outcomes := await live.take():
                            again += self._written(outcomes, file)
                            check.check(outcomes)
                            await asyncio.sleep(_WRITE_EVERY_S)
                    finally:
                        self._written(live.taken(), file)
                if not again or self.left_usd <= 0:
                    break
                pending = iter(again)

    def _noted(self, pending: Iterator[Pending]) -> Iterator[Pending]:
        self.asked: dict[str, Pending] = {}
        for item in pending:
            self.asked[item[0].id] = item
            yield item

    def _is_spent(self, outcome: Outcome) -> bool:
        self._pay(outcome.request_id, outcome.prompt_tokens, outcome.completion_tokens)
        return self.left_usd <= 0

    def _written(self, outcomes: list[Outcome], file: IO[bytes]) -> list[Pending]:
        """Write the outcomes to the disk; return the requests that are to be asked again."""
        again = []
        for outcome in outcomes:
            pending = self.asked.pop(outcome.request_id)
            if (line := reply_line(outcome)) is None:
                self.stat_update("unanswered")
                continue
            file.write(line)
            self.stat_update("refused" if outcome.body is None else "unusable" if outcome.rejection else "usable")
            self.attempts[outcome.request_id] += 1
            if outcome.rejection and self.attempts[outcome.request_id] < self.llm.max_attempts:
                again.append(pending)
            else:
                del self.attempts[outcome.request_id]
        file.flush()
        os.fsync(file.fileno())
        return again


def reply_line(outcome: Outcome) -> bytes | None:
    """Return an outcome as a line of batch output, whether it is usable told beside it; None if there was no answer."""
    if outcome.body is not None:
        response: dict[str, Any] = {"status_code": 200, "request_id": "", "body": json.loads(outcome.body)}
        error = None
    elif outcome.refusal is not None:
        status, message = outcome.refusal
        response, error = {"status_code": status, "request_id": "", "body": None}, {"message": message}
    else:
        return None
    row = {"id": outcome.request_id, "custom_id": outcome.request_id, "response": response, "error": error}
    usable = outcome.rejection is None
    return json.dumps(row | {"usable": usable}).encode() + b"\n"


@asynccontextmanager
async def engine(llm: LLMArguments, scale: ScaleArguments, rank: int) -> AsyncIterator[LLMArguments]:
    """Start the engine of a task, if it is to have one, and yield the settings to ask it by.

    Raises:
        RunError: if it does not start.
    """
    if scale.llm_server is None:
        yield llm
        return
    from datatrove.pipeline.inference import servers
    from datatrove.pipeline.inference.run_inference import InferenceConfig
    from datatrove.pipeline.inference.types import ServerError

    kinds = {"vllm": servers.VLLMServer, "sglang": servers.SGLangServer, "custom": servers.CustomServer}
    endpoint = llm.endpoints()[0]
    flags = flags_of(scale.llm_server_args)
    kind: Any = scale.llm_server
    config = InferenceConfig(kind, endpoint.model, tp=max(1, scale.gpus_per_task), model_kwargs=flags)
    if (task := asyncio.current_task()) is not None:  # ended by the executor, it ends its engine too
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with kinds[kind](config, rank) as server:
        try:
            await asyncio.shield(server._server_ready)  # the only sign there is; `make_request` waits for it too
        except ServerError as error:
            raise RunError(f"`llm_server` {scale.llm_server} did not start: {error}") from None
        yield replace(llm, base_url=[f"{server.get_base_url()}/v1"])


class Judge(PipelineStep):
    """Judges replies, each by itself, and writes what became of them, `<folder>/<piece>.pickle`."""

    name, type = "Curation, reply by reply", "🔻 - FILTER"

    def __init__(self, pieces: list[Piece], folder: Path) -> None:
        super().__init__()
        self.first, self.folder = pieces[0], str(folder)
        self.ranges = [(piece.subgroup, piece.start, piece.stop) for piece in pieces]  # all else they have in common

    def run(self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Judge every piece of the task that was not judged yet; yields nothing."""
        if parent := parent_process():
            end_with(parent)
        for number in range(rank, len(self.ranges), world_size):
            path = judged_path(Path(self.folder), number)
            if path.is_file():
                continue
            subgroup, start, stop = self.ranges[number]
            judged = replace(self.first, subgroup=subgroup, start=start, stop=stop).judge()
            self.stat_update("kept", value=judged.rows.num_rows)
            self.stat_update("rejected", value=len(judged.rejected))
            partial = path.with_suffix(f".{rank}-{os.getpid()}")
            with partial.open("wb") as file:
                pickle.dump(judged, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        yield from ()


def judged_path(folder: Path, number: int) -> Path:
    """Return where what became of a piece is written."""
    return folder / f"{number:06d}.pickle"


def read_judged(folder: Path, numbers: range) -> Generator[Judged, None, None]:
    """Yield what became of the pieces, in their order."""
    for number in numbers:
        yield pickle.loads(judged_path(folder, number).read_bytes())  # noqa: S301  written by our own tasks
