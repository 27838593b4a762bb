"""A live LLM: any OpenAI-compatible endpoint, or several, through the `openai` client.

Many requests are in flight at once and each reply is handed over as it comes. A rate limit or an overloaded server makes
all requests of that endpoint wait together (see `pace`), and a request that was sent away asks again when the narrower
window has room for it; other server errors and dropped connections make the one request wait. A request that the endpoint
refuses (HTTP 400, 413, 422) costs that request and no other.

The client is used through its plain `post`, which leaves out the second validation of what `parsing` validates anyway:
measured here, that is 0.6 ms of CPU a reply instead of 1.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import openai
from openai import AsyncOpenAI

from dataset_builder.completion import FORMATS, completion_request, endpoint_of, require_endpoints
from dataset_builder.errors import InputError, RunError
from dataset_builder.http_client import LeanHttpClient
from dataset_builder.journal import Pending
from dataset_builder.llm_config import Endpoint, LLMArguments
from dataset_builder.outcome import Outcome, reply_outcome
from dataset_builder.pace import Pace, backoff_s
from dataset_builder.plan import Request
from dataset_builder.rendering import render

GIVE_UP_AFTER = 20
"""Requests in a row that an endpoint leaves without an answer, however often they are tried, before we stop."""


def api_key(endpoint: Endpoint) -> str:
    """Return the key from the environment; an endpoint on this machine may go without.

    Raises:
        InputError: if there is no key.
    """
    if key := os.environ.get(endpoint.api_key_env):
        return key
    if endpoint.base_url and urlsplit(endpoint.base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return "none"
    raise InputError(
        f"The environment variable {endpoint.api_key_env} is not set; a live endpoint needs a key: set it (to any text "
        "if your endpoint wants none), or use --llm recorded."
    )


@dataclass(slots=True)
class _Asked:
    """A request on its way, and how often it was tried in vain."""

    request: Request
    task: str | None
    tries: int = 0


class EndpointClient:
    """Asks one endpoint, at its pace, and remembers how it wants to be asked for JSON.

    Attributes:
        waiting: what is to be sent when the window has room, what was sent away before at its front.
        stopped: set when nothing further is to be sent, not even what waits for its time.
        has_room: called when a place in the window comes free while a request waits by itself.
    """

    def __init__(
        self, endpoint: Endpoint, arguments: LLMArguments, http: httpx2.AsyncClient, has_room: Callable[[], None]
    ) -> None:
        self.endpoint, self.arguments, self.key, self.has_room = endpoint, arguments, api_key(endpoint), has_room
        self.pace = Pace(arguments.max_concurrency)
        self.waiting: deque[_Asked] = deque()
        self.stopped = asyncio.Event()
        self.in_flight = self._unanswered_in_a_row = 0
        self._format, self._format_works, self._last_error = 0, False, ""
        self._client = AsyncOpenAI(
            api_key=self.key,
            base_url=endpoint.base_url,
            timeout=arguments.timeout_s,
            max_retries=0,  # ours wait together
            http_client=http,
        )
        self._url = f"{str(self._client.base_url).rstrip('/')}/chat/completions"  # whole, to be parsed once

    async def outcome(self, asked: _Asked) -> Outcome | None:
        """Render, ask and check one request; None if it is to be asked later, or not at all because asking ends.

        Raises:
            InputError: if the endpoint refuses the key or the model.
            RunError: if it stopped answering.
        """
        answer = await self._answer(asked, render(asked.request.prompt, asked.request.attributes, asked.task))
        if answer is not None:
            self._unanswered_in_a_row = 0
            if isinstance(answer, dict):
                return reply_outcome(asked.request, answer)
            return Outcome(asked.request.id, refusal=answer)
        if self.stopped.is_set():
            return None
        is_given_up = asked.tries >= self.arguments.max_retries
        self._unanswered_in_a_row += is_given_up
        if self._unanswered_in_a_row >= GIVE_UP_AFTER or (
            self._unanswered_in_a_row and self.pace.tries > self.arguments.max_retries
        ):
            raise RunError(
                f"The endpoint of {self.endpoint.model} stopped answering: {self._unanswered_in_a_row:,} requests in a row "
                f"got no answer in {self.arguments.max_retries} tries each, the last one {self._last_error}. All replies so "
                "far are kept; run the same command again later to go on."
            )
        if is_given_up:
            return Outcome(asked.request.id)
        self.waiting.appendleft(asked)
        return None

    async def _answer(self, asked: _Asked, prompt: str) -> dict[str, Any] | tuple[int, str] | None:
        """Return the answer to one request; None if it is to be tried again, or asking ends."""
        while True:  # until the format is one that the endpoint takes
            while (wait_s := self.pace.wait_s()) and not self.stopped.is_set():
                await self._sleep(wait_s)
            if self.stopped.is_set():
                return None
            asked_format, sent_at = self._format, time.monotonic()
            try:
                return await self._ask(asked.request, prompt, FORMATS[asked_format])
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise self._wrong_settings(error) from None
            except openai.APIStatusError as error:
                if error.status_code in (408, 409, 429) or error.status_code >= 500:
                    headers = error.response.headers
                    is_told_to_wait = error.status_code in (429, 503) or "retry-after" in headers
                    pushed_back = (sent_at, headers) if is_told_to_wait else None
                    await self._in_vain(asked, f"HTTP {error.status_code}: {self._clean(error)}", pushed_back)
                    return None
                if asked_format == self._format and not self._next_format(error):
                    return error.status_code, self._clean(error)
            except openai.APITimeoutError:
                await self._in_vain(asked, f"none within {self.arguments.timeout_s:g} s", (sent_at, None))
                return None
            except (openai.APIConnectionError, ValueError, RecursionError) as error:  # the latter two: no whole JSON
                await self._in_vain(asked, str(error.__cause__ or error), None)
                return None

    async def _in_vain(
        self, asked: _Asked, error: str, pushed_back: tuple[float, Mapping[str, str] | None] | None
    ) -> None:
        """Count a try; narrow the window if the endpoint `pushed_back`, else wait, and give the place in it away."""
        asked.tries, self._last_error = asked.tries + 1, error
        if pushed_back is not None:
            self.pace.push_back(*pushed_back)
        elif asked.tries < self.arguments.max_retries:
            self.in_flight -= 1
            self.has_room()
            await self._sleep(backoff_s(asked.tries))
            self.in_flight += 1

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but no longer than there is anything left to ask."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopped.wait(), seconds)

    async def _ask(self, request: Request, prompt: str, kind: str) -> dict[str, Any]:
        response = await self._client.post(
            self._url,
            cast_to=httpx2.Response,
            body=completion_request(self.arguments, self.endpoint.model, request, prompt, kind),
            options={"headers": {"X-Client-Request-Id": request.id}},  # what the endpoint's log can be searched by
        )
        body = json.loads(response.content)
        if not isinstance(body, dict) or not body.get("choices"):
            raise ValueError("the answer is no chat completion")
        self._format_works = True
        self.pace.success(response.headers)
        return body

    def _next_format(self, error: openai.APIStatusError) -> bool:
        """Step down to a looser way of asking for JSON, as long as the present one has never worked."""
        if error.status_code not in (400, 422) or self._format_works or self._format + 1 == len(FORMATS):
            return False
        self._format += 1
        return True

    def _wrong_settings(self, error: openai.APIStatusError) -> InputError:
        if isinstance(error, openai.NotFoundError):
            return InputError(
                f"The endpoint does not know model '{self.endpoint.model}' or the path under `base_url` (HTTP 404: "
                f"{self._clean(error)}); check --llm_model and --base_url."
            )
        return InputError(
            f"The endpoint refused the key in {self.endpoint.api_key_env} (HTTP {error.status_code}); set a valid one."
        )

    def _clean(self, error: openai.APIStatusError) -> str:
        told = error.body.get("message") if isinstance(error.body, dict) else None
        return str(told or error.message).replace(self.key, "***").rstrip(".")[:300]


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
            if self._error is not None:
                raise self._error
            if not self._tasks and not self._more:
                return []
            self._arrived.clear()
            await self._arrived.wait()
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
                self._clients[endpoint_of(item[0].id, self.endpoints)].waiting.append(_Asked(*item))
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
        self._error = self._error or error
        self.send_no_more()

    def send_no_more(self) -> None:
        """Forget what was not sent yet; what is in flight is still waited for."""
        self._more = False
        for client in self._clients.values():
            client.stopped.set()
            client.waiting.clear()
