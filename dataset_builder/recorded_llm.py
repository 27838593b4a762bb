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


def read_batch_output(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (custom_id, chat completion) of every answered request in a batch output file, .jsonl or .jsonl.gz.

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
                    custom_id, response = record["custom_id"], record.get("response") or {}
                    answered = response.get("status_code") == 200 and not record.get("error")
                    body = response["body"] if answered else None
                    hash(custom_id)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    raise InputError(
                        f"Line {number} of {path} is no line of a batch output file; each needs `custom_id` and "
                        "`response.body`, as the OpenAI Batch API and `vllm run-batch` write them."
                    ) from None
                if isinstance(body, dict):
                    yield custom_id, body
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InputError(f"{path} cannot be read as a batch output file ({error}); is the copy complete?") from None
