"""An OpenAI-compatible HTTP server that answers this project's prompts, and can be told to be rude.

What it answers is a function of the request's id and prompt: the recorded reply where a recording is given, else one made up
from the keys that the prompt asks for. Rudeness is a function of (seed, id, how often it was asked), and stops after
`max_rude` times a request, so that every run ends.
"""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.llm_rudeness import Polite

RUDE = ("429", "500", "503", "slow", "truncated", "chatty", "drop", "cut", "empty")
_WORDS = [
    "river",
    "market",
    "engine",
    "garden",
    "letter",
    "winter",
    "teacher",
    "copper",
    "bridge",
    "village",
    "doctor",
    "museum",
    "harvest",
    "signal",
    "border",
    "kitchen",
    "captain",
    "library",
    "forest",
    "contract",
    "battery",
    "mountain",
    "festival",
    "patient",
    "window",
    "compass",
    "railway",
    "painter",
    "island",
    "lawyer",
]


def made_up_reply(request_id: str, prompt: str) -> str:
    """Return a valid reply to a prompt of this project, in English sentences that follow from id and prompt alone."""
    rng = random.Random(request_id + prompt)

    def sentence(length: int) -> str:
        return " ".join(["The", *rng.choices(_WORDS, k=length), "was", "seen", "near", "the", rng.choice(_WORDS)]) + "."

    if match := re.search(r'\{"tasks": \[(\d+) strings\]\}', prompt):
        return json.dumps({"tasks": [f"Find {sentence(5)}" for _ in range(int(match[1]))]})
    keys = re.findall(r'^- "(\w+)":', prompt, re.MULTILINE)
    return json.dumps({key: sentence(4 if "label" in key else 14) for key in keys})


class LLMServer(ThreadingHTTPServer):
    """Runs in a thread of its own from `start` to `stop`.

    Attributes:
        asked: how often each request arrived, by its id.
        answered: how often each request was answered with a whole chat completion.
        kinds: how often each kind of rudeness happened.
        bodies: every request body that arrived.
        keys: every API key that arrived, with how often.
        arrived_at: time.monotonic() of each arrival.
        max_in_flight: the most requests that were being answered at once.
    """

    daemon_threads, allow_reuse_address, request_queue_size = True, True, 256

    def __init__(
        self,
        reply: Callable[[str, str], str] = made_up_reply,
        *,
        rude: dict[str, float] | None = None,
        max_rude: int = 2,
        seed: int = 0,
        model: str = "tiny-llm",
        key: str | None = None,
        usage: bool | dict[str, int] = True,
        formats: tuple[str, ...] = ("json_schema", "json_object", "text"),
        refuse: Callable[[str], bool] = lambda request_id: False,
        retry_after_s: float = 0.05,
        latency_s: float = 0.0,
        limits: Polite | None = None,
        unknown_field: str = "",
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.reply, self.rude, self.max_rude, self.seed = reply, rude or {}, max_rude, seed
        self.model, self.key, self.usage, self.formats, self.refuse = model, key, usage, formats, refuse
        self.retry_after_s, self.latency_s, self.limits = retry_after_s, latency_s, limits or Polite()
        self.unknown_field = unknown_field
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: Counter[str] = Counter()
        self.arrived_at: list[float] = []
        self.in_flight = self.max_in_flight = 0
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        """What to give as `base_url`."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> LLMServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()

    def rudeness(self, request_id: str) -> str | None:
        """Choose how to be rude to a request this time, if at all, and count it."""
        with self.lock:
            self.asked[request_id] += 1
            turn = self.asked[request_id]
            kind = None
            if self.rude and turn <= self.max_rude:
                rng, left = random.Random(f"{self.seed}/{turn}/{request_id}"), 1.0 - sum(self.rude.values())
                kind = rng.choices([*self.rude, None], [*self.rude.values(), max(left, 0.0)])[0]
            if kind:
                self.kinds[kind] += 1
            return kind

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LLMServer

    def do_GET(self) -> None:
        """Say that the model is there, whatever is asked."""
        payload = json.dumps({"object": "list", "data": [{"id": self.server.model, "object": "model"}]}).encode()
        self._headers(200, len(payload))
        self.wfile.write(payload)

    def do_POST(self) -> None:
        server = self.server
        with server.lock:
            server.in_flight += 1
            server.max_in_flight = max(server.max_in_flight, server.in_flight)
        try:
            self._answer()
        finally:
            with server.lock:
                server.in_flight -= 1

    def _answer(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys[self.headers["Authorization"].removeprefix("Bearer ")] += 1
            server.arrived_at.append(time.monotonic())
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return self._error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}")
        if not self.path.endswith("/chat/completions") or body["model"] != server.model:
            return self._error(404, f"The model `{body['model']}` does not exist.")
        if (kind := body.get("response_format", {"type": "text"})["type"]) not in server.formats:
            return self._error(400, f"response_format {kind} is not supported")
        if server.unknown_field in body:
            return self._error(400, f"Unrecognized request argument supplied: {server.unknown_field}")
        prompt, request_id = body["messages"][-1]["content"], self.headers["X-Client-Request-Id"]
        if server.refuse(request_id):
            server.asked[request_id] += 1
            return self._error(400, "This prompt was flagged.")
        if (refusal := server.limits.enter(request_id)) is not None:
            return self._error(refusal[0], "Too many requests.", refusal[1])
        time.sleep(server.latency_s)
        return self._serve(request_id, prompt, server.rudeness(request_id))

    def _serve(self, request_id: str, prompt: str, rude: str | None) -> None:
        server = self.server
        headers = server.limits.leave()
        if rude == "429":
            return self._error(429, "Rate limit reached.", {"Retry-After": str(server.retry_after_s)})
        if rude in ("500", "503"):
            return self._error(int(rude), "The server had an error.")
        if rude == "drop":
            return self._drop()
        if rude == "slow":
            time.sleep(0.3)
        return self._complete(request_id, prompt, rude, headers)

    def _complete(self, request_id: str, prompt: str, rude: str | None, headers: dict[str, str]) -> None:
        server, text = self.server, self.server.reply(request_id, prompt)
        if rude == "truncated":
            text = text[: len(text) // 2]
        if rude == "chatty":
            text = (
                f"<think>Let me see {{what}} to write.</think>Sure! Here it is:\n```json\n{text}\n```\nAnything else?"
            )
        if rude == "empty":
            text = ""
        completion: dict[str, Any] = {
            "id": f"chatcmpl-{server.asked.total()}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": server.model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        }
        if server.usage:
            tokens = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
            tokens = server.usage if isinstance(server.usage, dict) else tokens
            completion["usage"] = tokens | {"total_tokens": sum(tokens.values())}
        payload = json.dumps(completion).encode()
        if rude == "cut":
            self._headers(200, len(payload))
            self.wfile.write(payload[: len(payload) // 2])
            self.wfile.flush()
            return self._drop()
        with server.lock:
            server.answered[request_id] += 1
        self._headers(200, len(payload), headers)
        self.wfile.write(payload)
        return None

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        payload = json.dumps({"error": {"message": message, "type": "error"}}).encode()
        self._headers(status, len(payload), headers)
        self.wfile.write(payload)

    def _headers(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def _drop(self) -> None:
        """Reset the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the base class's
        """Log nothing."""
