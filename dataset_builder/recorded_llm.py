"""Recorded replies: a batch output file plays the LLM, so that everything runs with no key, no GPU and no network.

The format is that of the OpenAI Batch API's output, which `vllm run-batch` writes too: one JSON object a line with
`custom_id` and `response.body`, the chat completion.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builder.errors import InputError

RECORDED_DIR = Path(__file__).parent / "recorded"
DEFAULT_REPLIES = RECORDED_DIR / "demo.jsonl.gz"


BatchAnswer = dict[str, Any] | tuple[int, str]
"""A chat completion, or (HTTP status, message) of a request that got none; status 0: it got no HTTP answer at all."""


def read_batch_output(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (custom_id, chat completion) of every answered request in a batch output file, .jsonl or .jsonl.gz.

    Raises:
        InputError: if the file is missing or has a line that is no batch output.
    """
    for custom_id, outcome in read_batch_lines(path):
        if isinstance(outcome, dict):
            yield custom_id, outcome


def read_batch_lines(path: Path) -> Iterator[tuple[str, BatchAnswer]]:
    """Yield (custom_id, outcome) of every line of a batch's output or error file, .jsonl or .jsonl.gz.

    Raises:
        InputError: if the file is missing or has a line that is no batch output.
    """
    if not path.is_file():
        raise InputError(
            f"`recorded_replies` is {path}, which is no file; give a batch output file (.jsonl, .jsonl.gz)."
        )
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                    custom_id, outcome = record["custom_id"], _outcome(record, record.get("response") or {})
                    hash(custom_id)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    raise InputError(
                        f"Line {number} of {path} is no line of a batch output file; each needs `custom_id` and "
                        "`response.body`, as the OpenAI Batch API and `vllm run-batch` write them."
                    ) from None
                yield custom_id, outcome
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InputError(f"{path} cannot be read as a batch output file ({error}); is the copy complete?") from None


def _outcome(record: dict[str, Any], response: dict[str, Any]) -> BatchAnswer:
    status = response.get("status_code")
    if status == 200 and not record.get("error"):
        body = response["body"]
        return body if isinstance(body, dict) else (status, "the answer is no chat completion")
    # OpenAI tells a refusal in `response.body.error`, what never ran in `error`; vLLM tells everything in `error`
    for told in (response.get("body"), record.get("error")):
        while isinstance(told, dict):
            if isinstance(message := told.get("message"), str):
                return status if isinstance(status, int) else 0, message
            told = told.get("error")  # noqa: PLW2901  one level deeper
    return status if isinstance(status, int) else 0, "no reason given"


def check_recording(path: Path, open_requests: set[str]) -> None:
    """Check that a batch output file answers all requests that are still open.

    Raises:
        InputError: if it does not, or cannot be read.
    """
    missing = open_requests - {custom_id for custom_id, _ in read_batch_output(path)} if open_requests else set()
    if missing:
        raise InputError(
            f"{path} has no reply to {len(missing):,} of the {len(open_requests):,} requests that are still open, among them "
            f"'{min(missing)}'; record them too, lower --num_examples, or ask an endpoint with --llm live."
        )
