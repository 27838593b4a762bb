"""From a raw chat completion to a validated reply, or to the reason why it is none.

A reply that is not JSON as it stands gets one repair pass: thinking, code fences and chatter around the first JSON
value are dropped. Nothing is guessed: what is cut off stays cut off, and is rejected.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dataset_builder.schema import ExampleReply, Step, Subgroup, TasksReply, example_reply

M = TypeVar("M", bound=BaseModel)

_THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_LAST_THINKING = re.compile(r".*</think(?:ing)?>|<think(?:ing)?>.*", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a reply became no example: `reason` is one word to count by, `detail` a sentence to read."""

    reason: str
    detail: str


def reply_text(body: dict[str, Any]) -> str | Rejection:
    """Return the text of a chat completion (the `body` of the OpenAI API), or why it has none."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Rejection("empty", "the completion has no choices")
    if refusal:
        return Rejection("refusal", str(refusal)[:200])
    if choice.get("finish_reason") == "content_filter":
        return Rejection("refusal", "stopped by the endpoint's content filter")
    text = content if isinstance(content, str) else ""
    if choice.get("finish_reason") == "length":
        return Rejection("length", f"cut off at {len(text)} characters; raise max_completion_tokens")
    return text if text.strip() else Rejection("empty", "the completion has no text")


def _json_value(text: str) -> Any:
    """Return the first JSON object or array in `text`. Raises `ValueError` if there is none."""
    decoder = json.JSONDecoder()
    try:
        return decoder.decode(text.strip())
    except ValueError:
        pass
    text = _LAST_THINKING.sub("", _THINKING.sub("", text))
    for match in re.finditer(r"[{\[]", text):
        try:
            value = decoder.raw_decode(text, match.start())[0]
            if isinstance(value, list) and "{" in text[: match.start()]:
                continue  # part of an object that was cut off
            return value
        except ValueError:
            if match.start() > 2000:  # chatter is short; a long search in a broken reply is quadratic
                break
    raise ValueError("no complete JSON value")


def _parse(text: str, model: type[M], *, bare_list: str | None = None) -> M | Rejection:
    try:
        value = _json_value(text)
    except (ValueError, RecursionError) as error:
        return Rejection("json", f"{error}: {text[:80]!r}")
    if bare_list is not None and isinstance(value, list):
        value = {bare_list: value}
    if bad := _bad_character(value):
        return bad
    try:
        reply = model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return Rejection("schema", f"{'.'.join(map(str, first['loc'])) or 'reply'}: {first['msg']}")
    return reply


def _bad_character(value: Any) -> Rejection | None:
    for name, entry in value.items() if isinstance(value, dict) else ():
        for string in entry if isinstance(entry, list) else [entry]:
            if isinstance(string, str) and (bad := _CONTROL.search(string)):
                return Rejection("characters", f"{name} has the character U+{ord(bad[0]):04X}")
    return None


def parse_tasks(body: dict[str, Any], num_tasks: int) -> list[str] | Rejection:
    """Return the tasks of a brainstorm reply, at most `num_tasks`, without repetitions."""
    text = reply_text(body)
    if isinstance(text, Rejection):
        return text
    reply = _parse(text, TasksReply, bare_list="tasks")
    if isinstance(reply, Rejection):
        return reply
    tasks = list(dict.fromkeys(" ".join(task.split()) for task in reply.tasks))[:num_tasks]
    return tasks or Rejection("schema", "tasks: the list is empty")


def parse_example(body: dict[str, Any], subgroup: Subgroup, attributes: dict[str, Any]) -> ExampleReply | Rejection:
    """Return the validated reply to a generate request, or why it is none."""
    text = reply_text(body)
    if isinstance(text, Rejection):
        return text
    return _parse(text, example_reply(subgroup, hard_negative=attributes.get("hard_negative", True)))


def check_reply(body: dict[str, Any], step: Step, subgroup: Subgroup, attributes: dict[str, Any]) -> Rejection | None:
    """Return why a reply cannot be used, or None if it can: what decides whether a request is asked again."""
    if step == "brainstorm":
        parsed: object = parse_tasks(body, attributes["num_tasks"])
    else:
        parsed = parse_example(body, subgroup, attributes)
    return parsed if isinstance(parsed, Rejection) else None
