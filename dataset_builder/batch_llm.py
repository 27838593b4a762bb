"""Batches: request files in the format of the OpenAI Batch API and of `vllm run-batch`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dataset_builder.completion import completion_request, endpoint_of, require_endpoints
from dataset_builder.llm_config import Endpoint, LLMArguments
from dataset_builder.plan import Request

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
