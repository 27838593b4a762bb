"""A small Hugging Face Hub for tests: a real HTTP server that unmodified clients talk to through `HF_ENDPOINT`.

    hub = Hub.start(folder, tokens={"hf_writer": "tester"})
    os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1"}  # before the imports
    hub.fail("POST .*/commit/", "lost")  # the next commit is made, and its answer gets lost

It knows models and datasets, with the answers and error codes that huggingface_hub 2.4 and datasets 5.2 act upon. It
has no Xet, pull requests, gated repos, Spaces, searches or rate limits.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import socket
import struct
import sys
import threading
import traceback
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from tests.hub_api import Answer, Caller, Request
from tests.hub_store import HubError, Store

KINDS = ("500", "503", "429", "409", "412", "401", "403", "404", "reset", "cut", "lost")


@dataclass
class _Rule:
    match: str
    kind: str
    times: int
    after: int


class Hub:
    """The server and what a test may do to it behind the clients' back.

    `log` has one dict per answered request: method, path (with its query), status (0: dropped) and fault.
    """

    def __init__(self, root: Path, tokens: dict[str, str | None], orgs: tuple[str, ...]) -> None:
        self.store, self.log, self.page_size = Store(root), list[dict[str, Any]](), 1000
        self.callers = {
            token: Caller(user, (user, *orgs)) if user else Caller("reader", ()) for token, user in tokens.items()
        }
        self.uploads: dict[str, str] = {}  # {key: sha256}: uploads come without a token
        self._rules: list[_Rule] = []
        self.num_received = 0  # bytes of requests' bodies, all connections together
        self._cut_at: int | None = None
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @classmethod
    def start(cls, root: Path, tokens: dict[str, str | None], orgs: tuple[str, ...] = ("acme",)) -> Hub:
        """Serve what is below `root` on a free port, until `stop()`.

        `tokens` names the user of each token, who may write to their own namespace and to `orgs`; None may only read.
        """
        hub = cls(root, tokens, orgs)
        threading.Thread(target=hub._server.serve_forever, args=(0.05,), name="hub", daemon=True).start()
        return hub

    def stop(self) -> None:
        """Take no more connections; open ones live on, and the repos stay on disk."""
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Forget all faults and the log; the repos stay."""
        with self.store.lock:
            self._rules.clear()
            self.log.clear()
            self._cut_at = None

    def put_folder(self, repo_type: str, repo_id: str, folder: Path, pin: str | None = None) -> str:
        """Make `folder` the content of a repo's main branch, also under the foreign 40-hex id `pin`; return its sha."""
        return self.store.put_folder(repo_type, repo_id, folder, pin, user="import")

    def commits(self, repo_type: str, repo_id: str) -> list[str]:
        """Return the titles of the commits on main, newest first; the last is the Hub's own 'initial commit'."""
        repo = self.store.repo(repo_type, repo_id)
        return [commit.title for commit in self.store.history(repo, "main")] if repo else []

    def fail(self, match: str, kind: str, times: int = 1, after: int = 0) -> None:
        """Let `times` requests whose "METHOD /path?query" matches go wrong, once `after` of them went well.

        `kind` is a status (409 and 412 happen to commits only), `reset` or `cut` (the connection breaks in the middle
        of what is sent or fetched, with a TCP reset or without), or `lost` (all is done, but no answer comes).
        """
        if kind not in KINDS:
            raise ValueError(f"unknown fault '{kind}'; known are {', '.join(KINDS)}")
        with self.store.lock:
            self._rules.append(_Rule(match, kind, times, after))

    def cut_after(self, num_bytes: int) -> None:
        """Reset, once, the connection that brings the byte after the next `num_bytes` of requests' bodies."""
        with self.store.lock:
            self._cut_at = self.num_received + num_bytes

    def receive(self, file: io.BufferedIOBase, length: int) -> bytes:
        """Read `length` bytes of a request's body.

        Raises:
            ConnectionResetError: if the connection is to be reset here.
        """
        with self.store.lock:
            before, self.num_received = self.num_received, self.num_received + length
            is_cut = self._cut_at is not None and before <= self._cut_at < before + length
            if is_cut:
                length, self._cut_at = (self._cut_at or 0) - before, None
        body = file.read(length)
        if is_cut:
            raise ConnectionResetError
        return body

    def pick_fault(self, call: str) -> str:
        """Return the kind of fault that this request meets, or ''."""
        with self.store.lock:
            for rule in self._rules:
                fits = rule.kind not in ("409", "412") or "/commit/" in call
                if fits and rule.times > 0 and re.search(rule.match, call):
                    rule.after -= 1
                    if rule.after < 0:
                        rule.times -= 1
                        return rule.kind
        return ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, has them answered or spoiled, and sends."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True

    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub, self.fault = hub, ""
        super().__init__(*args)

    def serve(self) -> None:
        self.fault = self.hub.pick_fault(f"{self.command} {self.path}")
        if self.fault in ("reset", "cut") and self.command in ("POST", "PUT"):
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.note(0)
            self.drop()
            return
        try:
            body = self.read_body()
        except ConnectionResetError:
            self.note(0)
            self.drop()
            return
        try:
            if self.fault.isdigit():
                wait = {"Retry-After": "1"} if self.fault == "429" else {}
                raise HubError(int(self.fault), "injected fault", headers=wait)
            answer = Request(self.hub, self.command, self.path, self.headers, body).answer()
        except HubError as error:
            answer = Answer({"error": error.message}, error.status, error.headers)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # a request this server cannot read
            traceback.print_exc()
            answer = Answer({"error": f"bad request: {error!r}"}, 400)
        if self.fault == "lost":
            self.note(0)
            self.drop()
        else:
            self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.hub.receive(self.rfile, int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.hub.receive(self.rfile, size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, answer: Answer) -> None:
        source: BinaryIO
        if isinstance(answer.body, Path):
            source, length = answer.body.open("rb"), answer.body.stat().st_size
            if wanted := re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", self.headers.get("Range", "")):
                first = int(wanted[1]) if wanted[1] else max(0, length - int(wanted[3]))
                last = min(int(wanted[2] or length), length - 1)
                answer.status = 206 if first <= last else 416
                answer.headers["Content-Range"] = f"bytes {f'{first}-{last}' if first <= last else '*'}/{length}"
                source.seek(first)
                length = max(0, last - first + 1)
        else:
            data = json.dumps(answer.body).encode()
            source, length = io.BytesIO(data), len(data)
            answer.headers["Content-Type"] = "application/json"
        self.note(answer.status)
        self.send_response(answer.status)
        for key, value in {**answer.headers, "Content-Length": length, "X-Request-Id": secrets.token_hex(8)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        broken = self.fault in ("reset", "cut")
        with source:
            if self.command != "HEAD":
                self.wfile.write(source.read(length // 2 if broken else length))
        self.wfile.flush()
        if broken:
            self.drop()

    def note(self, status: int) -> None:
        self.hub.log.append({"method": self.command, "path": self.path, "status": status, "fault": self.fault})

    def drop(self) -> None:
        """Break the connection: with a TCP reset, or ("cut") by closing it early."""
        if self.fault != "cut":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection, self.wfile = True, io.BytesIO()
        os.close(self.connection.detach())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Print nothing: `Hub.log` has it."""
