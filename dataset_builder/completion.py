"""The chat completion that is asked for, the same for a live endpoint and for a batch file."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

from dataset_builder.errors import InputError
from dataset_builder.llm_config import Endpoint, LLMArguments
from dataset_builder.plan import Request
from dataset_builder.schema import Step, Subgroup, TasksReply, example_reply

FORMATS = ("json_schema", "json_object", "text")
"""How JSON is asked for, from the strictest; an endpoint that refuses one is asked by the next."""


def response_format(request: Request, kind: str) -> dict[str, Any]:
    """Return the `response_format` of a request: `kind` is one of `FORMATS`."""
    if kind != "json_schema":
        return {"type": kind}
    return _json_schema(request.step, request.subgroup, bool(request.attributes.get("hard_negative", True)))


@cache
def _json_schema(step: Step, subgroup: Subgroup, hard_negative: bool) -> dict[str, Any]:
    model = TasksReply if step == "brainstorm" else example_reply(subgroup, hard_negative=hard_negative)
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


def require_endpoints(arguments: LLMArguments) -> list[Endpoint]:
    """Return the endpoints to ask.

    Raises:
        InputError: if no model is given.
    """
    if not arguments.llm_model:
        raise InputError("`llm_model` is not given; an endpoint needs the name of a model that it serves.")
    return arguments.endpoints()


def endpoint_of(request_id: str, endpoints: list[Endpoint]) -> Endpoint:
    """Return the endpoint that a request goes to: drawn by weight from its id alone, so that a rerun asks the same one."""
    if len(endpoints) == 1:
        return endpoints[0]
    share = zlib.crc32(request_id.encode()) / 2**32 * sum(endpoint.weight for endpoint in endpoints)
    for endpoint in endpoints:
        share -= endpoint.weight
        if share < 0:
            return endpoint
    return endpoints[-1]


def completion_request(arguments: LLMArguments, model: str, request: Request, prompt: str, kind: str) -> dict[str, Any]:
    """Return the body of a chat completion request; `kind` is one of `FORMATS`."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_completion_tokens": arguments.max_completion_tokens,
    }
    for name, value in (("temperature", arguments.llm_temperature), ("top_p", arguments.llm_top_p)):
        if value is not None:  # reasoning models refuse what they cannot set
            body[name] = value
    return body if kind == "text" else body | {"response_format": response_format(request, kind)}
