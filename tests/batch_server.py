"""The Files and Batches of an OpenAI-compatible endpoint, added to the server of chat completions.

    with BatchServer(reply, ends={0: ("expired", 0.5)}, rude={"500": 0.2}) as server:
        server.fail("POST /v1/batches", "lost")  # the next batch is created, and its answer gets lost

A batch is looked at `num_looks` times before it ends, and answers its lines when it ends: with `reply`, refused (HTTP
400) where `refuse` says so, and with HTTP 500 where `rude` draws it. Its lines come shuffled.
"""

from __future__ import annotations

import email
import json
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.llm_server import LLMServer, _Handler

Line = dict[str, Any]


class BatchServer(LLMServer):
    """Runs in a thread of its own.

    Args:
        ends: by the number of a batch (in the order of creation), its last status and the share of its requests that it
            answers; the others are completed wholly.
        num_looks: how often a batch is looked at before it has ended.
        metadata: whether batches keep the metadata that they were created with.

    Attributes:
        files: the content of every file, by id.
        batches: every batch as it stands, by id.
        created: how many batches were created, by the digest in their metadata.
        log: method and path of every request, with the status that was answered (0: dropped).
        hook: called with "POST /v1/batches" and the like, and "before" or "after" the work is done.
    """

    def __init__(
        self,
        *args: Any,
        ends: dict[int, tuple[str, float]] | None = None,
        num_looks: int = 2,
        page_size: int = 3,
        metadata: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.RequestHandlerClass = _BatchHandler
        self.ends, self.num_looks, self.page_size, self.metadata = ends or {}, num_looks, page_size, metadata
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.created: Counter[str] = Counter()
        self.log: list[tuple[str, int]] = []
        self.hook: Callable[[str, str], None] = lambda what, when: None
        self._faults: list[tuple[str, str]] = []
        self._looks: Counter[str] = Counter()

    def __enter__(self) -> BatchServer:
        super().__enter__()
        return self

    def fail(self, match: str, kind: str, times: int = 1) -> None:
        """Let the next requests whose method and path match fail: 429, 500, 404, ..., drop, lost, html,
        cut (half sent), short (half sent, and nobody notices) or lines (every second line is missing)."""
        self._faults += [(match, kind)] * times

    def fault(self, what: str) -> str | None:
        """Take the fault that waits for a request, if any."""
        with self.lock:
            for number, (match, kind) in enumerate(self._faults):
                if re.fullmatch(match, what):
                    del self._faults[number]
                    return kind
        return None

    def add_file(self, content: bytes) -> str:
        """Keep a file and return its id."""
        file_id = f"file-{secrets.token_hex(8)}"
        self.files[file_id] = content
        return file_id

    def create(self, asked: dict[str, Any], digest: str) -> dict[str, Any]:
        """Start a batch."""
        with self.lock:
            batch = {
                "id": f"batch_{secrets.token_hex(8)}",
                "object": "batch",
                "endpoint": asked["endpoint"],
                "errors": None,
                "input_file_id": asked["input_file_id"],
                "completion_window": asked["completion_window"],
                "status": "validating",
                "output_file_id": None,
                "error_file_id": None,
                "created_at": int(time.time()),
                "expires_at": int(time.time()) + 86_400,
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
                "metadata": asked.get("metadata") if self.metadata else None,
            }
            self.batches[batch["id"]] = batch
            self.created[digest] += 1
            return batch

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Let a batch go on by one step, each time it is looked at."""
        with self.lock:
            self._looks[batch["id"]] += 1
            turn = self._looks[batch["id"]]
        if batch["status"] in ("validating", "in_progress", "finalizing"):
            lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
            batch["request_counts"]["total"] = len(lines)
            if errors := self._invalid(list(self.batches).index(batch["id"]), lines):
                batch |= {"status": "failed", "errors": {"object": "list", "data": errors}}
            elif turn <= self.num_looks:
                batch["status"] = "finalizing" if turn == self.num_looks > 1 else "in_progress"
            else:
                self._end(batch, lines)
        return batch

    def _invalid(self, number: int, lines: list[Line]) -> list[dict[str, Any]]:
        def error(code: str, message: str, line: int | None = None) -> dict[str, Any]:
            return {"code": code, "line": line, "message": message, "param": None}

        if self.ends.get(number, ("", 0))[0] == "failed":
            return [error("token_limit_exceeded", f"Enqueued token limit reached for {self.model}.")]
        found = [
            error("model_not_found", f"The model `{line['body']['model']}` does not exist.", n)
            for n, line in enumerate(lines, 1)
            if line["body"]["model"] != self.model
        ]
        if len({line["custom_id"] for line in lines}) < len(lines):
            found.append(error("duplicate_custom_id", "The custom_id of a line is not unique."))
        if any((line["method"], line["url"]) != ("POST", "/v1/chat/completions") for line in lines):
            found.append(error("invalid_url", "The URL of a line is not the batch's endpoint."))
        return found

    def _end(self, batch: dict[str, Any], lines: list[Line]) -> None:
        status, share = self.ends.get(list(self.batches).index(batch["id"]), ("completed", 1.0))
        num_run = round(share * len(lines))
        results = [self._run(line) for line in lines[:num_run]]
        code = {"expired": "batch_expired", "cancelled": "batch_cancelled"}.get(status)
        never = {"code": code, "message": f"This request could not be executed: the batch was {status}."}
        results += [{"custom_id": line["custom_id"], "response": None, "error": never} for line in lines[num_run:]]
        random.Random(batch["id"]).shuffle(results)
        good = [r for r in results if r["response"] and r["response"]["status_code"] == 200]
        bad = [r for r in results if r not in good]
        for name, part in (("output_file_id", good), ("error_file_id", bad)):
            if part:
                part_lines = (json.dumps({"id": f"batch_req_{n}", **result}) + "\n" for n, result in enumerate(part))
                batch[name] = self.add_file("".join(part_lines).encode())
        counts = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        batch |= {"status": status, f"{status}_at": int(time.time()), "request_counts": counts}

    def _run(self, line: Line) -> Line:
        request_id, prompt = line["custom_id"], line["body"]["messages"][-1]["content"]
        rude = self.rudeness(request_id)
        if self.refuse(request_id):
            body: dict[str, Any] = {"error": {"message": "This prompt was flagged.", "type": "invalid_request_error"}}
            code = 400
        elif rude == "500":
            code, body = 500, {"error": {"message": "The server had an error.", "type": "server_error"}}
        else:
            self.answered[request_id] += 1
            message = {"role": "assistant", "content": self.reply(request_id, prompt)}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            code, body = 200, {"id": "chatcmpl-1", "object": "chat.completion", "model": self.model, "choices": choices}
        return {
            "custom_id": request_id,
            "response": {"status_code": code, "request_id": secrets.token_hex(8), "body": body},
            "error": None,
        }


class _BatchHandler(_Handler):
    disable_nagle_algorithm = True  # a small answer goes out in two writes
    server: BatchServer

    def do_GET(self) -> None:
        self._serve_file(b"")

    def do_POST(self) -> None:
        if self.path.endswith("/chat/completions"):
            return super().do_POST()
        return self._serve_file(self.rfile.read(int(self.headers["Content-Length"])))

    def _serve_file(self, content: bytes) -> None:
        server, what = self.server, f"{self.command} {urlsplit(self.path).path}"
        fault = server.fault(what)
        server.hook(what, "before")
        answer: bytes | dict[str, Any]
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            status, answer = 401, _error(f"Incorrect API key provided: {self.headers.get('Authorization')}")
        elif fault and fault.isdigit():
            status, answer = int(fault), _error(f"Fault {fault}, asked with {self.headers.get('Authorization')}.")
        elif fault == "drop":
            status, answer = 0, b""
        else:
            status, answer = self._answer_batches(what, content)
            server.hook(what, "after")
        server.log.append((what, 0 if fault in ("drop", "lost", "cut") else status))
        if fault == "html":
            status, answer = 200, b"<html>Welcome</html>"
        if fault in ("drop", "lost"):
            return self._drop()
        return self._send(status, answer, fault)

    def _send(self, status: int, answer: bytes | dict[str, Any], fault: str | None) -> None:
        payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if fault == "short":
            payload = payload[: payload.index(b"\n", len(payload) // 2) - 1]
        if fault == "lines":
            payload = b"".join(payload.splitlines(keepends=True)[::2])
        kind = "application/json" if isinstance(answer, dict) else "text/html" if fault else "application/octet-stream"
        more = {"Retry-After": str(self.server.retry_after_s)} if status in (429, 500) else {}
        self._headers(status, len(payload), {"Content-Type": kind, **more})
        if fault == "cut":
            self.wfile.write(payload[: len(payload) // 2])
            self.wfile.flush()
            return self._drop()
        self.wfile.write(payload)
        return None

    def _answer_batches(self, what: str, content: bytes) -> tuple[int, bytes | dict[str, Any]]:
        server = self.server
        if what == "POST /v1/files":
            return self._upload(content)
        if what == "POST /v1/batches":
            asked = json.loads(content)
            if asked["input_file_id"] not in server.files:
                return 400, _error(f"Invalid 'input_file_id': {asked['input_file_id']} does not exist.")
            return 200, server.create(asked, (asked.get("metadata") or {}).get("embedsmith", ""))
        if what == "GET /v1/batches":
            return 200, self._list()
        if (match := re.fullmatch(r"GET /v1/batches/([\w-]+)", what)) and match[1] in server.batches:
            return 200, server.look(server.batches[match[1]])
        if (match := re.fullmatch(r"GET /v1/files/([\w-]+)/content", what)) and match[1] in server.files:
            return 200, server.files[match[1]]
        return 404, _error(f"No such object: {what}.")

    def _upload(self, content: bytes) -> tuple[int, dict[str, Any]]:
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in email.message_from_bytes(header + content).walk()
        }
        file, purpose = parts["file"], parts["purpose"].get_payload()
        if not str(file.get_filename()).endswith(".jsonl"):
            return 400, _error("Invalid file format for Batch API. Must be .jsonl")
        data = file.get_payload(decode=True)
        assert isinstance(data, bytes)
        return 200, {
            "id": self.server.add_file(data),
            "object": "file",
            "bytes": len(data),
            "created_at": int(time.time()),
            "filename": file.get_filename(),
            "purpose": purpose,
            "status": "processed",
        }

    def _list(self) -> dict[str, Any]:
        query = parse_qs(urlsplit(self.path).query)
        newest_first = list(reversed(self.server.batches.values()))
        ids = [batch["id"] for batch in newest_first]
        start = ids.index(query["after"][0]) + 1 if "after" in query else 0
        size = min(self.server.page_size, int(query.get("limit", ["20"])[0]))
        page = newest_first[start : start + size]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + size < len(ids),
        }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
