"""The chat completion that is asked for, the same for a live endpoint and for a batch file."""

from __future__ import annotations

from typing import Any

from dataset_builder.config import LLMArguments
from dataset_builder.errors import InputError
from dataset_builder.plan import Request
from dataset_builder.schema import TasksReply, example_reply

FORMATS = ("json_schema", "json_object", "text")
"""How JSON is asked for, from the strictest; an endpoint that refuses one is asked by the next."""


def response_format(request: Request, kind: str) -> dict[str, Any]:
    """Return the `response_format` of a request: `kind` is one of `FORMATS`."""
    if kind != "json_schema":
        return {"type": kind}
    hard_negative = request.attributes.get("hard_negative", True)
    model = TasksReply if request.step == "brainstorm" else example_reply(request.subgroup, hard_negative=hard_negative)
    schema = model.model_json_schema()
    for properties in (schema, *schema["properties"].values()):  # what the strict mode of the API accepts
        properties.pop("title", None)
        properties.pop("minLength", None)
        if "items" in properties:
            properties["items"].pop("minLength", None)
    schema.pop("description", None)
    schema["required"] = list(schema["properties"])
    schema["additionalProperties"] = False
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}


def require_model(arguments: LLMArguments) -> str:
    """Return the name of the model to ask.

    Raises:
        InputError: if none is given.
    """
    if not arguments.llm_model:
        raise InputError("`llm_model` is not given; an endpoint needs the name of a model that it serves.")
    return arguments.llm_model


def completion_request(arguments: LLMArguments, request: Request, prompt: str, kind: str) -> dict[str, Any]:
    """Return the body of a chat completion request; `kind` is one of `FORMATS`."""
    body: dict[str, Any] = {
        "model": require_model(arguments),
        "messages": [{"role": "user", "content": prompt}],
        "max_completion_tokens": arguments.max_completion_tokens,
    }
    for name, value in (("temperature", arguments.llm_temperature), ("top_p", arguments.llm_top_p)):
        if value is not None:  # reasoning models refuse what they cannot set
            body[name] = value
    return body if kind == "text" else body | {"response_format": response_format(request, kind)}
