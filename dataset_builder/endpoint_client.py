"""One OpenAI-compatible endpoint, asked through the `openai` client.

A rate limit or an overloaded server makes all requests of the endpoint wait together (see `pace`); other server errors and
dropped connections make the one request wait. A request that the endpoint refuses (HTTP 400, 413, 422) costs that request
and no other.

The client is used through its plain `post`, which leaves out the second validation of what `parsing` validates anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from openai import AsyncOpenAI

from dataset_builder.completion import FORMATS, completion_request
from dataset_builder.errors import InputError, RunError
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
class Asked:
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
        self.waiting: deque[Asked] = deque()
        self.stopped = asyncio.Event()
        self.in_flight = self._unanswered_in_a_row = 0
        self._format, self._format_works, self._is_doubtful, self._last_error = 0, False, False, ""
        self._takes_max_completion_tokens = True
        self._client = AsyncOpenAI(
            api_key=self.key,
            base_url=endpoint.base_url,
            timeout=arguments.timeout_s,
            max_retries=0,  # ours wait together
            http_client=http,
        )
        self._url = f"{str(self._client.base_url).rstrip('/')}/chat/completions"  # whole, to be parsed once

    async def outcome(self, asked: Asked) -> Outcome | None:
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

    async def _answer(self, asked: Asked, prompt: str) -> dict[str, Any] | tuple[int, str] | None:
        """Return the answer to one request; None if it is to be tried again, or asking ends."""
        while True:  # until the format is one that the endpoint takes
            while (wait_s := self.pace.wait_s()) and not self.stopped.is_set():
                await self._sleep(wait_s)
            if self.stopped.is_set():
                return None
            asked_way, sent_at = (self._format, self._takes_max_completion_tokens), time.monotonic()
            try:
                return await self._ask(asked.request, prompt, FORMATS[self._format])
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise self._wrong_settings(error) from None
            except openai.APIStatusError as error:
                if error.status_code in (408, 409, 429) or error.status_code >= 500:
                    headers = error.response.headers
                    is_told_to_wait = error.status_code in (429, 503) or "retry-after" in headers
                    pushed_back = (sent_at, headers) if is_told_to_wait else None
                    await self._in_vain(asked, f"HTTP {error.status_code}: {self._clean(error)}", pushed_back)
                    return None
                is_new = asked_way == (self._format, self._takes_max_completion_tokens)  # else others were told before
                if is_new and not self._asks_otherwise(error):
                    self._is_doubtful = not self._format_works  # was it the format, or this request?
                    return error.status_code, self._clean(error)
            except openai.APITimeoutError:
                await self._in_vain(asked, f"none within {self.arguments.timeout_s:g} s", (sent_at, None))
                return None
            except (openai.APIConnectionError, ValueError, RecursionError) as error:  # the latter two: no whole JSON
                await self._in_vain(asked, str(error.__cause__ or error), None)
                return None

    async def _in_vain(
        self, asked: Asked, error: str, pushed_back: tuple[float, Mapping[str, str] | None] | None
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
        asked = completion_request(self.arguments, self.endpoint.model, request, prompt, kind)
        if not self._takes_max_completion_tokens:
            asked["max_tokens"] = asked.pop("max_completion_tokens")
        response = await self._client.post(
            self._url,
            cast_to=httpx2.Response,
            body=asked,
            options={"headers": {"X-Client-Request-Id": request.id}},  # what the endpoint's log can be searched by
        )
        body = json.loads(response.content)
        if not isinstance(body, dict) or not body.get("choices"):
            raise ValueError("the answer is no chat completion")
        if self._is_doubtful:
            self._is_doubtful, self._format = False, 0  # once more from the strictest
        else:
            self._format_works = True
        self.pace.success(response.headers)
        return body

    def _asks_otherwise(self, error: openai.APIStatusError) -> bool:
        """Change how the endpoint is asked, as long as the present way has never worked; False if nothing is left."""
        if error.status_code not in (400, 422) or self._format_works:
            return False
        if "max_completion_tokens" in self._clean(error) and self._takes_max_completion_tokens:
            self._takes_max_completion_tokens = False  # servers that know the older `max_tokens` only
            return True
        if self._format + 1 == len(FORMATS):
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
