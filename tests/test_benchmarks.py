"""The endpoint that clients are measured on answers the real `openai` client with usable replies, and counts right."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from dataset_builder.parsing import parse_example
from dataset_builder.schema import TripleReply

ENDPOINT = Path(__file__).parent.parent / "benchmarks" / "endpoint.py"
LATENCY_S = 0.05


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, str(ENDPOINT), "--port", "0", "--latency_s", str(LATENCY_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()
    assert process.returncode == 0


def get(url: str) -> Any:
    with urllib.request.urlopen(url) as reply:
        return json.load(reply)


def ask(client: OpenAI, prompt: str) -> dict[str, Any]:
    messages: Any = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model="any", messages=messages).model_dump()


def test_the_endpoint_gives_usable_replies_and_counts_them(url: str) -> None:
    get(f"{url}/reset")
    with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["benchmark"]
        ask(client, "What are your limits?")
        first, second = (ask(client, "Write three texts in English. " * 40) for _ in range(2))
    replies = [parse_example(body, "sts", {}) for body in (first, second)]
    texts = set[str]()
    for reply in replies:
        assert isinstance(reply, TripleReply)
        texts |= {reply.S1, reply.S2, reply.S3}
    assert len(texts) == 6
    assert first["usage"]["total_tokens"] > 0
    assert 1200 < len(json.dumps(first)) < 1800

    stats = get(f"{url}/stats")
    counts = {name: stats[name] for name in ("requests", "replies", "probes", "max_in_flight")}
    assert counts == {"requests": 2, "replies": 2, "probes": 1, "max_in_flight": 1}
    assert 1 <= stats["connections"] <= 3  # the client's, and those of /reset and /stats
    assert 2 * LATENCY_S <= stats["last_reply"] - stats["first_request"] < 10
    assert get(f"{url}/reset")["requests"] == 2
    assert get(f"{url}/stats")["requests"] == 0


def test_the_endpoint_takes_a_request_in_pieces(url: str) -> None:
    import socket

    body = b'{"messages": []}' + b" " * 700
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(
        body
    )
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10) as connection:
        for _ in range(2):  # the second one over the same connection
            connection.sendall(head[:30])
            connection.sendall(head[30:])
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(body[:100])
            connection.sendall(body[100:])
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200 OK\r\n")
