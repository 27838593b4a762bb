"""An OpenAI-compatible endpoint that answers every request after the same time, for as little CPU as Python allows.

It stands in for a model when clients are measured, so it must never be what they wait for: a bare `asyncio.Protocol`
reads just enough of HTTP/1.1 (keep-alive, `Content-Length`, `Expect`; no chunks, no pipelining) to find where a request
ends, and the reply is one format string. `/stats` has its own CPU seconds, to check that it had time to spare.

Some clients first send a tiny request or two, to learn rate limits or formats. A request with less than 600 bytes is
answered like any other but counted as a probe, so that no client's span begins before its work does.

    python benchmarks/endpoint.py --port 0     prints the port, and serves until it is stopped

    POST /v1/chat/completions   a usable reply to any `sts` prompt, about 1.5 KB, different each time
    GET  /v1/models             one model
    GET  /stats                 what was counted since the last reset, as JSON
    GET  /reset                 the same, and counts from nothing
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import signal
import sys
import time

_WORDS = (  # noqa: SIM905  a list would take 64 lines
    "river market engine garden letter winter teacher copper bridge village doctor museum harvest signal border kitchen "
    "captain ladder forest mirror window island pocket summer basket planet silver corner button candle valley meadow "
    "orchard tunnel painter lantern harbour station blanket hammer chapel pasture factory library compass feather "
    "gravel mountain nursery pottery quarry railway sailor thunder uncle violin wagon barley cotton dancer elbow fabric "
    "glacier helmet"
).split()
_CONTENT = {
    "S1": "In the spring of year %(n)s the old %(a)s beside the %(b)s was sold to a family who had lived near the %(c)s for "
    "most of their lives, and the neighbours agreed that nobody could have looked after it with more patience or more care.",
    "S2": "A household long settled not far from the %(c)s bought the ancient %(a)s next to the %(b)s in year %(n)s; everyone "
    "living around there thought that no other owner would have shown as much devotion and forbearance in keeping it up.",
    "S3": "In the spring of year %(n)s the old %(a)s beside the %(b)s was closed for repairs, since the people who lived near "
    "the %(c)s had complained that nobody looked after it, and most of the neighbours agreed with what had been decided.",
}
_COMPLETION = {
    "id": "chatcmpl-%(n)s",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "benchmark",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": json.dumps(_CONTENT), "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 260,
        "completion_tokens": 180,
        "total_tokens": 440,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    },
    "service_tier": "default",
    "system_fingerprint": "fp_0000000000",
}
_BODY = json.dumps(_COMPLETION)
_MODELS = {"object": "list", "data": [{"id": "benchmark", "object": "model", "created": 0, "owned_by": "embedsmith"}]}
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PROBE_BYTES = 600
_EXPECT = re.compile(rb"\r\nexpect: *100-continue", re.IGNORECASE)


def completion(number: int) -> bytes:
    """Return the body of the chat completion with this number: its texts are found in no other."""
    words = {"a": _WORDS[number & 63], "b": _WORDS[number >> 6 & 63], "c": _WORDS[number >> 12 & 63]}
    return (_BODY % {"n": number, **words}).encode()


def response(body: bytes, status: str = "200 OK") -> bytes:
    """Return a whole HTTP response with a JSON body."""
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        len(body),
        body,
    )


class Counters:
    """What happened since the last reset; times are those of `time.monotonic`, one clock for all processes of a machine."""

    def __init__(self) -> None:
        self.requests = self.replies = self.probes = self.connections = self.in_flight = self.max_in_flight = 0
        self.first_request = self.last_reply = 0.0
        self.cpu_before = time.process_time()

    def ask(self) -> None:
        """Count a request."""
        self.first_request = self.first_request or time.monotonic()
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def reply(self, *, sent: bool) -> None:
        """Count the reply to a request, unless the client had gone."""
        self.in_flight -= 1
        if sent:
            self.replies += 1
            self.last_reply = time.monotonic()

    def stats(self) -> dict[str, float]:
        """Return the counts, the times and the CPU seconds that the endpoint used itself."""
        names = ("requests", "replies", "probes", "connections", "max_in_flight", "first_request", "last_reply")
        return {name: getattr(self, name) for name in names} | {"cpu_s": time.process_time() - self.cpu_before}


class Connection(asyncio.Protocol):
    """One client connection: at most one request at a time is read and answered."""

    counters = Counters()
    number = 0  # completions so far; goes on through resets, so that texts stay unique
    latency_s = 0.2

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.loop = asyncio.get_running_loop()
        self.buffer, self.continued = b"", False
        Connection.counters.connections += 1

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        self.buffer = buffer = self.buffer + data if self.buffer else data
        if (end := buffer.find(b"\r\n\r\n") + 4) < 4:
            return
        length = _LENGTH.search(buffer, 0, end)
        num_bytes = int(length[1]) if length else 0
        if len(buffer) < end + num_bytes:
            if not self.continued and _EXPECT.search(buffer, 0, end):
                self.continued = True
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self.buffer, self.continued = b"", False
        if buffer.startswith(b"POST "):
            self.ask(num_bytes)
        else:
            self.transport.write(self.get(buffer.split(b" ", 2)[1]))

    def ask(self, num_bytes: int) -> None:
        """Take one request for a completion."""
        counters: Counters | None = Connection.counters
        if num_bytes < _PROBE_BYTES:
            Connection.counters.probes += 1
            counters = None
        else:
            Connection.counters.ask()
        self.loop.call_later(Connection.latency_s, self.reply, counters)

    def reply(self, counters: Counters | None) -> None:
        """Answer it, and count the reply where the request was counted."""
        sent = not self.transport.is_closing()
        if sent:
            Connection.number += 1
            self.transport.write(response(completion(Connection.number)))
        if counters is not None:
            counters.reply(sent=sent)

    def get(self, path: bytes) -> bytes:
        """Return the response to a GET request."""
        if path == b"/v1/models":
            return response(json.dumps(_MODELS).encode())
        if path not in (b"/stats", b"/reset"):
            return response(b'{"error": {"message": "There is nothing here."}}', "404 Not Found")
        stats = Connection.counters.stats()
        if path == b"/reset":
            Connection.counters = Counters()
        return response(json.dumps(stats).encode())


async def serve(port: int, latency_s: float) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT; port 0 takes a free one. The port is printed."""
    Connection.latency_s = latency_s
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stopped.wait()
    server.close()


def main() -> int:
    """Read the flags and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="Port on 127.0.0.1; 0 takes a free one (default).")
    parser.add_argument("--latency_s", type=float, default=0.2, help="Seconds from request to reply (default: 0.2).")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a file descriptor a connection
    asyncio.run(serve(arguments.port, arguments.latency_s))
    return 0


if __name__ == "__main__":
    sys.exit(main())
