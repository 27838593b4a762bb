"""A live LLM: any OpenAI-compatible endpoint, through the `openai` client.

Many requests are in flight at once and each reply is handed over as it comes. A rate limit or an overloaded server makes
all requests wait together, for as long as `Retry-After` says; other server errors and dropped connections make the one
request wait. A request that the endpoint refuses (HTTP 400, 413, 422) costs that request and no other.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from dataset_builder.completion import FORMATS, completion_request, require_endpoints
from dataset_builder.errors import InputError, RunError
from dataset_builder.llm_config import Endpoint, LLMArguments
from dataset_builder.plan import Request

Answer = dict[str, Any] | tuple[int, str]
"""A chat completion, or (HTTP status, message) of a request that was refused for good."""


def api_key(arguments: Endpoint) -> str:
    """Return the key from the environment; an endpoint on this machine may go without.

    Raises:
        InputError: if there is no key.
    """
    if key := os.environ.get(arguments.api_key_env):
        return key
    if arguments.base_url and urlsplit(arguments.base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return "none"
    raise InputError(
        f"The environment variable {arguments.api_key_env} is not set; a live endpoint needs a key: set it (to any text "
        "if your endpoint wants none), or use --llm recorded."
    )


class LiveLLM:
    """Answers requests through one endpoint.

    Args:
        arguments: endpoint, model, sampling parameters and limits.
        stop: asked before each request; True ends the asking (a cost limit is reached).
    """

    def __init__(self, arguments: LLMArguments, stop: Callable[[], bool]) -> None:
        self.endpoint = require_endpoints(arguments)[0]
        self.arguments, self.stop = arguments, stop
        self.key = api_key(self.endpoint)
        self.unanswered = 0
        self._resume_at = 0.0  # time.monotonic() before which nobody asks
        self._format, self._format_works = 0, False

    async def answers(
        self, pending: Iterator[tuple[Request, str]], *, give_up_after: int = 20
    ) -> AsyncGenerator[tuple[Request, Answer]]:
        """Yield (request, answer) in the order of arrival, for (request, prompt) pairs.

        Raises:
            InputError: if the endpoint refuses the key or the model.
            RunError: if `give_up_after` requests in a row got no answer, however often they were tried.
        """
        results: asyncio.Queue[tuple[Request, Answer | None] | None] = asyncio.Queue()
        async with DefaultAioHttpClient(timeout=self.arguments.timeout_s) as http:
            client = AsyncOpenAI(
                api_key=self.key,
                base_url=self.endpoint.base_url,
                timeout=self.arguments.timeout_s,
                max_retries=0,
                http_client=http,
            )

            async def work() -> None:
                for request, prompt in pending:  # the iterator is shared: each worker takes the next request
                    if self.stop():
                        return
                    results.put_nowait((request, await self._answer(client, request, prompt)))

            workers = [asyncio.create_task(work()) for _ in range(self.arguments.max_concurrency)]

            async def supervise() -> None:
                try:
                    await asyncio.gather(*workers)
                finally:
                    results.put_nowait(None)

            supervisor = asyncio.create_task(supervise())
            in_a_row = 0
            try:
                while (result := await results.get()) is not None:
                    request, answer = result
                    in_a_row = 0 if answer is not None else in_a_row + 1
                    if answer is not None:
                        yield request, answer
                    self.unanswered += answer is None
                    if in_a_row >= give_up_after:
                        raise RunError(
                            f"The endpoint gave no answer to {in_a_row} requests in a row, after "
                            f"{self.arguments.max_retries} tries each. All replies so far are kept; run the same command "
                            "again later to go on."
                        )
                await supervisor  # raises what a worker raised
            finally:
                for task in (supervisor, *workers):
                    task.cancel()
                await asyncio.gather(supervisor, *workers, return_exceptions=True)

    async def _answer(self, client: AsyncOpenAI, request: Request, prompt: str) -> Answer | None:
        """Return the answer to one request, or None if the endpoint gave none in `max_retries` tries."""
        tries = 0
        while tries < self.arguments.max_retries:
            await self._wait_together()
            asked_format = self._format
            try:
                return await self._ask(client, request, prompt, FORMATS[asked_format])
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise InputError(
                    f"The endpoint refused the key in {self.endpoint.api_key_env} (HTTP {error.status_code}); set a "
                    "valid one."
                ) from None
            except openai.NotFoundError as error:
                raise InputError(
                    f"The endpoint does not know model '{self.endpoint.model}' or the path under `base_url` (HTTP "
                    f"404: {self._clean(error)}); check --llm_model and --base_url."
                ) from None
            except openai.APIStatusError as error:
                if error.status_code in (408, 409, 429) or error.status_code >= 500:
                    tries += 1
                    await self._back_off(error, tries)
                elif asked_format != self._format or self._next_format(error):
                    continue
                else:
                    return error.status_code, self._clean(error)
            except (openai.APIConnectionError, ValueError):  # timeouts too; ValueError: the body was cut off
                tries += 1
                await asyncio.sleep(_backoff_s(tries))
        return None

    async def _ask(self, client: AsyncOpenAI, request: Request, prompt: str, kind: str) -> dict[str, Any]:
        raw = await client.chat.completions.with_raw_response.create(
            **completion_request(self.arguments, self.endpoint.model, request, prompt, kind),
            extra_headers={"X-Client-Request-Id": request.id},  # what the endpoint's log can be searched by
        )
        body = json.loads(raw.http_response.content)
        if not isinstance(body, dict) or not body.get("choices"):
            raise ValueError("the answer is no chat completion")
        self._format_works = True
        return body

    def _next_format(self, error: openai.APIStatusError) -> bool:
        """Step down to a looser way of asking for JSON, as long as the present one has never worked."""
        if error.status_code not in (400, 422) or self._format_works or self._format + 1 == len(FORMATS):
            return False
        self._format += 1
        return True

    async def _wait_together(self) -> None:
        while (wait_s := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(wait_s + random.uniform(0, 0.05 * wait_s))  # not all at the same instant

    async def _back_off(self, error: openai.APIStatusError, tries: int) -> None:
        asked = error.response.headers.get("retry-after", "")
        if error.status_code in (429, 503) or asked:
            wait_s = float(asked) if asked.replace(".", "", 1).isdigit() else _backoff_s(tries)
            self._resume_at = max(self._resume_at, time.monotonic() + min(wait_s, 600.0))
        else:
            await asyncio.sleep(_backoff_s(tries))

    def _clean(self, error: openai.APIStatusError) -> str:
        told = error.body.get("message") if isinstance(error.body, dict) else None
        return str(told or error.message).replace(self.key, "***").rstrip(".")[:300]


def _backoff_s(tries: int) -> float:
    """Seconds to wait after the n-th failed try: doubling from about 0.5 up to 60, with jitter."""
    return min(60.0, 0.5 * 2.0 ** (tries - 1)) * random.uniform(0.7, 1.3)
