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
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from filelock import FileLock
from multiprocess.process import parent_process

from dataset_builder.completion import endpoint_of
from dataset_builder.endpoint_check import EndpointCheck
from dataset_builder.errors import EmbedsmithError, RunError
from dataset_builder.journal import Pending, pending_of
from dataset_builder.live_llm import LiveLLM
from dataset_builder.llm_config import LLMArguments
from dataset_builder.outcome import Outcome, token_counts
from dataset_builder.rendering import render
from dataset_builder.scale import judged_path, whole_lines
from dataset_builder.scale_config import ScaleArguments
from dataset_builder.scale_executors import flags_of
from dataset_builder.sifting import Piece, end_with

_WRITE_EVERY_S = 0.05
"""Replies that arrive within this time are written together; each write waits for the disk."""


def _end_with_starter() -> None:
    """Let a process of Ray's end with the worker that started it: a task whose worker was killed starts again elsewhere."""
    if parent := parent_process():
        end_with(parent)


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
                *fields, num_attempts = json.loads(line)
                request, task = pending_of(fields)
                self.stat_update("requests")
                prompt = render(request.prompt, request.attributes, task)
                yield Document(prompt, request.id, metadata={"pending": fields, "num_attempts": num_attempts})


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
        _end_with_starter()
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
        self.settled, self.attempts = set[str](), Counter[str]()
        self.asked: dict[str, Pending] = {}
        for line in whole_lines(path):
            row = json.loads(line)
            self.attempts[row["custom_id"]] += 1
            if row["settled"]:
                self.settled.add(row["custom_id"])
            self._pay(row["custom_id"], *token_counts(row["response"]["body"] or {}))

    def _pay(self, request_id: str, *num_tokens: int | None) -> None:
        self.left_usd -= endpoint_of(request_id, self.endpoints).cost_usd(*num_tokens) or 0.0

    def _unsettled(self, documents: Iterable[Document]) -> Iterator[Pending]:
        for document in documents:
            self.attempts[document.id] += document.metadata["num_attempts"]
            if document.id not in self.settled and self.attempts[document.id] < self.llm.max_attempts:
                yield pending_of(document.metadata["pending"])

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
    """Return an outcome as a line of batch output, with whether it settles the request; None if there was no answer."""
    if outcome.body is not None:
        response: dict[str, Any] = {"status_code": 200, "request_id": "", "body": json.loads(outcome.body)}
        error = None
    elif outcome.refusal is not None:
        status, message = outcome.refusal
        response, error = {"status_code": status, "request_id": "", "body": None}, {"message": message}
    else:
        return None
    row = {"id": outcome.request_id, "custom_id": outcome.request_id, "response": response, "error": error}
    return json.dumps(row | {"settled": outcome.rejection is None}).encode() + b"\n"


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
        _end_with_starter()
        for subgroup, start, stop in self.ranges[rank::world_size]:
            piece = replace(self.first, subgroup=subgroup, start=start, stop=stop)
            path = judged_path(Path(self.folder), piece)
            if path.is_file():
                continue
            judged = piece.judge()
            self.stat_update("kept", value=judged.rows.num_rows)
            self.stat_update("rejected", value=len(judged.rejected))
            partial = path.with_suffix(f".{rank}-{os.getpid()}")
            with partial.open("wb") as file:
                pickle.dump(judged, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        yield from ()
