"""One of the processes that `--num_workers` starts (see `workers.py`): asks what stdin brings, writes outcomes to stdout."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections import deque

from dataset_builder.errors import EmbedsmithError
from dataset_builder.journal import Pending, pending_of
from dataset_builder.live_llm import LiveLLM
from dataset_builder.llm_config import LLMArguments
from dataset_builder.workers import outcome_line


class Inbox:
    """An iterator over what has come in: None when there is nothing at the moment, ended after the parent said so."""

    def __init__(self) -> None:
        self.items: deque[Pending] = deque()
        self.ended = False

    def __iter__(self) -> Inbox:
        return self

    def __next__(self) -> Pending | None:
        if self.items:
            return self.items.popleft()
        if self.ended:
            raise StopIteration
        return None


async def _receive(stdin: asyncio.StreamReader, inbox: Inbox, llm: LiveLLM) -> None:
    while line := await stdin.readline():
        message = json.loads(line)
        if isinstance(message, str):
            inbox.ended = True
            if message == "stop":
                inbox.items.clear()
                llm.send_no_more()
        else:
            inbox.items += map(pending_of, message)
        llm.fill()
    os._exit(1)  # the parent is gone: nobody would commit what is in flight


async def _main() -> None:
    loop, stdin = asyncio.get_running_loop(), asyncio.StreamReader(limit=1 << 28)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    if not (settings := await stdin.readline()):
        os._exit(1)  # the parent is gone already
    arguments, inbox, out = LLMArguments(**json.loads(settings)), Inbox(), sys.stdout.buffer
    try:
        async with LiveLLM(arguments, inbox) as llm:
            receiver = asyncio.create_task(_receive(stdin, inbox, llm))
            while outcomes := await llm.take():
                out.write(outcome_line(outcomes))
                out.flush()
                await asyncio.sleep(0.005)  # a line for those that arrive together
            receiver.cancel()
    except BrokenPipeError:
        os._exit(1)
    except EmbedsmithError as error:
        out.write(json.dumps({"error": type(error).__name__, "message": str(error)}).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    gc.freeze()  # what was imported stays: looking at it again and again takes a tenth of the time
    asyncio.run(_main())
