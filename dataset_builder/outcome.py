"""What comes back for one request, from whatever LLM: a reply, a refusal for good, or nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dataset_builder.parsing import Rejection, check_reply
from dataset_builder.plan import Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of asking one request once.

    `body` is the chat completion as JSON text (ASCII: lone surrogates cannot break a file), with `rejection` saying why
    it cannot be used; without a body, `refusal` is the HTTP status and message of a request refused for good, or None if
    there was no answer at all.
    """

    request_id: str
    body: str | None = None
    rejection: Rejection | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    refusal: tuple[int, str] | None = None


def reply_outcome(request: Request, body: dict[str, Any]) -> Outcome:
    """Return the outcome of a request that was answered with the chat completion `body`."""
    rejection = check_reply(body, request.step, request.subgroup, request.attributes)
    return Outcome(request.id, json.dumps(body), rejection, *token_counts(body))


def token_counts(body: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return prompt and completion tokens of a chat completion; None where the endpoint tells no whole number."""
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) and 0 <= count < 2**53 else None for count in counts)
    return prompt, completion
