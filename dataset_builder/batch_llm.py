"""Batches: request files out, result files in, in the format of the OpenAI Batch API and of `vllm run-batch`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builder.completion import completion_request, require_model
from dataset_builder.config import LLMArguments
from dataset_builder.errors import InputError
from dataset_builder.plan import Request
from dataset_builder.recorded_llm import read_batch_output

MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
"""What the OpenAI Batch API takes in one file."""


def write_batch(folder: Path, step: str, prompts: Iterator[tuple[Request, str]], arguments: LLMArguments) -> list[Path]:
    """Write the requests as `<step>-00000.jsonl`, ... into `folder` and return the files; older ones of the step go.

    Raises:
        InputError: if `llm_model` is not given.
    """
    require_model(arguments)
    kind = arguments.batch_format
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{step}-*.jsonl"):
        path.unlink()
    paths: list[Path] = []
    num_requests = num_bytes = 0
    for request, prompt in prompts:
        line = {
            "custom_id": request.id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": completion_request(arguments, request, prompt, kind),
        }
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        if not paths or num_requests == MAX_REQUESTS or num_bytes + len(data) > MAX_BYTES:
            paths.append(folder / f"{step}-{len(paths):05d}.jsonl")
            num_requests = num_bytes = 0
        with paths[-1].open("ab") as file:
            file.write(data)
        num_requests += 1
        num_bytes += len(data)
    return paths


def read_batches(files: list[str], pending: list[Request]) -> Iterator[tuple[Request, dict[str, Any]]]:
    """Yield the reply to every pending request that stands in one of the files, once, in the order of the files.

    Failed and expired requests, replies to others and repeated replies are passed over; their requests stay open.

    Raises:
        InputError: if a file cannot be read, or none of them answers any request of this plan.
    """
    wanted = {request.id: request for request in pending}
    num_found = 0
    for name in files:
        for custom_id, body in read_batch_output(Path(name)):
            if request := wanted.pop(custom_id, None):
                num_found += 1
                yield request, body
    if pending and not num_found:
        raise InputError(
            f"`batch_in` has no reply to any of the {len(pending):,} requests that are still open, such as "
            f"'{pending[0].id}'; give the result files of this plan's own batches."
        )
