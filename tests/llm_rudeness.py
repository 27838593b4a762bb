"""Limits that the server of `llm_server` can set to everybody, as endpoints do: at once, per time, or by hand.

`enter` is called with every request that would be answered, `leave` when its answer is sent.
"""

from __future__ import annotations

import threading
import time

Refusal = tuple[int, dict[str, str]]
"""HTTP status and headers of a request that is not served now."""


class Polite:
    """Serves everybody."""

    def enter(self, request_id: str) -> Refusal | None:
        """Return how to send a request away, or None to serve it."""
        return None

    def leave(self) -> dict[str, str]:
        """Return the headers of the answer."""
        return {}


class AtMost(Polite):
    """Serves `limit` requests at once, and sends the others away with a 429."""

    def __init__(self, limit: int, retry_after_s: float | None = 0.05) -> None:
        self.limit, self.now, self.num_refused = limit, 0, 0
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self.lock = threading.Lock()

    def enter(self, request_id: str) -> Refusal | None:
        with self.lock:
            if self.now >= self.limit:
                self.num_refused += 1
                return 429, self.headers
            self.now += 1
            return None

    def leave(self) -> dict[str, str]:
        with self.lock:
            self.now -= 1
        return {}


class Never(Polite):
    """Serves everybody but the requests whose id holds `part`."""

    def __init__(self, part: str, status: int) -> None:
        self.part, self.status = part, status

    def enter(self, request_id: str) -> Refusal | None:
        return (self.status, {"Retry-After": "0.02"} if self.status == 429 else {}) if self.part in request_id else None


class RateLimit(Polite):
    """Serves `num` requests in each `period_s`, and tells in the headers of the answers how many are left.

    Attributes:
        early: seconds after the last answer of a period, told to be the last, at which somebody asked all the same.
    """

    def __init__(self, num: int, period_s: float) -> None:
        self.num = self.left = num
        self.period_s, self.full_at, self.exhausted_at = period_s, 0.0, 0.0
        self.early: list[float] = []
        self.lock = threading.Lock()

    def enter(self, request_id: str) -> Refusal | None:
        with self.lock:
            now = time.monotonic()
            if now >= self.full_at:
                self.left, self.full_at, self.exhausted_at = self.num, now + self.period_s, 0.0
            if self.left == 0:
                if self.exhausted_at:
                    self.early.append(now - self.exhausted_at)
                return 429, self.headers()
            self.left -= 1
            return None

    def leave(self) -> dict[str, str]:
        with self.lock:
            if self.left == 0 and not self.exhausted_at:
                self.exhausted_at = time.monotonic()
            return self.headers()

    def headers(self) -> dict[str, str]:
        """Return what is left, in the way of OpenAI."""
        reset_ms = max(0.0, self.full_at - time.monotonic()) * 1000
        return {
            "x-ratelimit-limit-requests": str(self.num),
            "x-ratelimit-remaining-requests": str(self.left),
            "x-ratelimit-reset-requests": f"{reset_ms:.0f}ms",
            "x-ratelimit-remaining-tokens": "100000",
            "x-ratelimit-reset-tokens": "6m0s",
        }


class Hold(Polite):
    """Serves the first `num` requests, and lets the others wait until `go` is set."""

    def __init__(self, num: int) -> None:
        self.num, self.entered = num, 0
        self.go = threading.Event()
        self.lock = threading.Lock()

    def enter(self, request_id: str) -> Refusal | None:
        with self.lock:
            self.entered += 1
            waits = self.entered > self.num
        if waits:
            self.go.wait(60)
        return None


class Closing(Polite):
    """Serves the first `num` requests, and then nobody any more."""

    def __init__(self, num: int) -> None:
        self.left = num
        self.lock = threading.Lock()

    def enter(self, request_id: str) -> Refusal | None:
        with self.lock:
            self.left -= 1
            return (500, {}) if self.left < 0 else None
