"""Batches: request files out, result files in, in the format of the OpenAI Batch API and of `vllm run-batch`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dataset_builder.completion import completion_request, endpoint_of, require_endpoints
from dataset_builder.errors import InputError
from dataset_builder.llm_config import Endpoint, LLMArguments
from dataset_builder.plan import Request
from dataset_builder.recorded_llm import read_batch_output

MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
"""What the OpenAI Batch API takes in one file."""


@dataclass
class BatchFile:
    """One file of requests, all for one endpoint, as a batch API wants them."""

    path: Path
    endpoint: Endpoint
    num_requests: int = 0
    num_bytes: int = 0


def write_batch(
    folder: Path, step: str, prompts: Iterable[tuple[Request, str]], arguments: LLMArguments
) -> list[BatchFile]:
    """Write the requests as `<step>-00000.jsonl`, ... into `folder`; older files of the step go.

    Several models get files of their own, `<step>-<model>-00000.jsonl`. Nothing but one line is held in memory.

    Raises:
        InputError: if `llm_model` is not given.
    """
    endpoints = require_endpoints(arguments)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{step}-*.jsonl"):
        path.unlink()
    files: list[BatchFile] = []
    current: dict[Endpoint, tuple[BatchFile, IO[bytes]]] = {}
    with ExitStack() as stack:
        for request, prompt in prompts:
            endpoint = endpoint_of(request.id, endpoints)
            body = completion_request(arguments, endpoint.model, request, prompt, arguments.batch_format)
            line = {"custom_id": request.id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            data = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            file, stream = current.get(endpoint, (None, None))
            if file is None or file.num_requests == MAX_REQUESTS or file.num_bytes + len(data) > MAX_BYTES:
                if stream is not None:
                    stream.close()
                file = BatchFile(folder / _name(step, endpoint, endpoints, files), endpoint)
                files.append(file)
                stream = stack.enter_context(file.path.open("wb"))
                current[endpoint] = file, stream
            assert stream is not None
            stream.write(data)
            file.num_requests += 1
            file.num_bytes += len(data)
    return files


def _name(step: str, endpoint: Endpoint, endpoints: list[Endpoint], files: list[BatchFile]) -> str:
    number = sum(file.endpoint == endpoint for file in files)
    if len(endpoints) == 1:
        return f"{step}-{number:05d}.jsonl"
    model = re.sub(r"[^\w.-]+", "-", endpoint.model)
    return f"{step}-{endpoints.index(endpoint)}-{model}-{number:05d}.jsonl"


def read_batches(files: list[str], wanted: dict[str, Request]) -> Iterator[tuple[Request, dict[str, Any]]]:
    """Yield the reply to every wanted request that stands in one of the files, once, in the order of the files.

    Failed and expired requests, replies to others and repeated replies are passed over; their requests stay open, and
    what was found is taken out of `wanted`.

    Raises:
        InputError: if a file cannot be read, or none of them answers any request of this plan.
    """
    num_wanted, num_found, example = len(wanted), 0, next(iter(wanted), "")
    for name in files:
        for custom_id, body in read_batch_output(Path(name)):
            if request := wanted.pop(custom_id, None):
                num_found += 1
                yield request, body
    if num_wanted and not num_found:
        raise InputError(
            f"`batch_in` has no reply to any of the {num_wanted:,} requests that are still open, such as "
            f"'{example}'; give the result files of this plan's own batches."
        )
