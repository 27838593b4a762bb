"""A live LLM: any OpenAI-compatible endpoint, or several, each through a client of its own.

Many requests are in flight at once and each reply is handed over as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

from dataset_builder.completion import endpoint_of, require_endpoints
from dataset_builder.endpoint_client import Asked, EndpointClient, api_key
from dataset_builder.http_client import LeanHttpClient
from dataset_builder.journal import Pending
from dataset_builder.llm_config import LLMArguments
from dataset_builder.outcome import Outcome

GRACE_S = 10.0
"""Seconds for which, after an error, replies are waited for that are paid for already."""


class LiveLLM:
    """Keeps the pipes to all endpoints full. A context manager, inside a running event loop.

    A request goes to the endpoint that `endpoint_of` draws for it and waits there while that one's window is full.

    Args:
        arguments: endpoints, sampling parameters and limits.
        pending: what to ask; read as room comes free, never ahead of it. None: nothing yet, `fill` is called when there is.
        stop: called with every outcome as it arrives; once it returns True, nothing further is sent.
    """

    def __init__(
        self,
        arguments: LLMArguments,
        pending: Iterator[Pending | None] | Iterator[Pending],
        stop: Callable[[Outcome], bool] = lambda _: False,
    ) -> None:
        self.arguments, self.pending, self.stop = arguments, pending, stop
        self.endpoints = require_endpoints(arguments)
        for endpoint in self.endpoints:
            api_key(endpoint)  # a missing key is told before anything is asked
        self._more = True
        self._error: BaseException | None = None
        self._failed_at = 0.0
        self._arrived = asyncio.Event()
        self._outcomes: list[Outcome] = []
        self._tasks: set[asyncio.Task[Outcome | None]] = set()

    async def __aenter__(self) -> Self:
        self._http = LeanHttpClient(timeout=self.arguments.timeout_s)
        self._clients = {
            endpoint: EndpointClient(endpoint, self.arguments, self._http, self.fill) for endpoint in self.endpoints
        }
        self.fill()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    async def take(self) -> list[Outcome]:
        """Wait for outcomes and return all that have arrived; an empty list at the end.

        Raises:
            InputError: if an endpoint refuses the key or the model.
            RunError: if an endpoint stopped answering.
        """
        while not self._outcomes:
            if self._error is not None and (not self._tasks or time.monotonic() > self._failed_at + GRACE_S):
                raise self._error
            if not self._tasks and not self._more:
                return []
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), None if self._error is None else GRACE_S)
        return self.taken()

    def taken(self) -> list[Outcome]:
        """Return all outcomes that have arrived and were not taken yet, without waiting."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    @property
    def _room(self) -> int:
        """How many more requests to read: several endpoints need some in store, so that none waits for another."""
        num_stored = len(self._tasks) + sum(len(client.waiting) for client in self._clients.values())
        capacity = self.arguments.max_concurrency * len(self._clients) * (1 + (len(self._clients) > 1))
        return capacity - num_stored

    def fill(self) -> None:
        """Read and send as much as there is room for; called again by itself as room comes free."""
        try:
            while self._more and self._room > 0:
                if (item := next(self.pending)) is None:
                    break
                self._clients[endpoint_of(item[0].id, self.endpoints)].waiting.append(Asked(*item))
        except StopIteration:
            self._more = False
        except Exception as error:  # told by `take`: this runs in a callback of the event loop
            self._fail(error)
        for client in self._clients.values():
            while client.waiting and not client.stopped.is_set() and client.in_flight < int(client.pace.window):
                task = asyncio.create_task(client.outcome(client.waiting.popleft()))
                client.in_flight += 1
                self._tasks.add(task)
                task.add_done_callback(partial(self._done, client))
        self._arrived.set()  # there may be nothing left to wait for

    def _done(self, client: EndpointClient, task: asyncio.Task[Outcome | None]) -> None:
        client.in_flight -= 1
        self._tasks.discard(task)
        if task.cancelled():
            return
        if error := task.exception():
            self._fail(error)
        elif outcome := task.result():
            self._outcomes.append(outcome)
            if self.stop(outcome):
                self.send_no_more()
        self.fill()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error, self._failed_at = error, time.monotonic()
        self.send_no_more()

    def send_no_more(self) -> None:
        """Forget what was not sent yet; what is in flight is still waited for."""
        self._more = False
        for client in self._clients.values():
            client.stopped.set()
            client.waiting.clear()
