"""How fast an endpoint is asked: an adaptive window of requests in flight, and waits that it asks for.

The window follows TCP's congestion control: it doubles each round trip until the endpoint pushes back for the first time
(429, 503, a timeout), is halved by that, and grows by about one request a round trip from then on. All requests of an
endpoint wait together, for as long as `Retry-After` or the rate-limit headers say.
"""

from __future__ import annotations

import email.utils
import random
import re
import time
from collections.abc import Mapping

FIRST_WINDOW = 64
LONGEST_WAIT_S = 600.0

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Pace:
    """Window and waits of one endpoint; times are those of `time.monotonic()`, in seconds."""

    def __init__(self, max_concurrency: int) -> None:
        self.max_concurrency = max_concurrency
        self.window = float(min(max_concurrency, FIRST_WINDOW))
        self.resume_at = 0.0
        self._pushed_back_at = -1.0  # when the window was last halved; below 0: never
        self.tries = 0  # bursts of pushes back since the last success: how long to wait if the endpoint does not say

    def success(self, headers: Mapping[str, str]) -> None:
        """Widen the window, and wait if the headers say that nothing is left of the rate limit."""
        self.tries = 0
        self.window = min(self.max_concurrency, self.window + (1.0 if self._pushed_back_at < 0 else 1.0 / self.window))
        if wait_s := exhausted_s(headers):
            self._wait(wait_s)

    def push_back(self, sent_at: float, headers: Mapping[str, str] | None = None) -> None:
        """Halve the window, once for all that was sent before it was halved; wait as long as the headers say."""
        if sent_at >= self._pushed_back_at:
            self.window = max(1.0, self.window / 2)
            self._pushed_back_at = time.monotonic()
            self.tries += 1
        if headers is not None:
            self._wait(retry_after_s(headers) or exhausted_s(headers) or backoff_s(self.tries))

    def wait_s(self) -> float:
        """Return how long to wait before the next request, 0 if not at all; jitter keeps them from coming all at once."""
        left = self.resume_at - time.monotonic()
        return left + random.uniform(0, 0.05 * left) if left > 0 else 0.0

    def _wait(self, wait_s: float) -> None:
        self.resume_at = max(self.resume_at, time.monotonic() + min(wait_s, LONGEST_WAIT_S))


def backoff_s(tries: int) -> float:
    """Return the seconds to wait after the n-th failed try: doubling from about 0.5 up to 60, with jitter."""
    return min(60.0, 0.5 * 2.0 ** min(tries - 1, 10)) * random.uniform(0.7, 1.3)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return what `Retry-After-Ms` or `Retry-After` asks for in seconds (RFC 9110: a number or a date), or None."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text) * unit_s
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def exhausted_s(headers: Mapping[str, str]) -> float | None:
    """Return in how many seconds an exhausted rate limit is full again (`x-ratelimit-...` of OpenAI and others), or None."""
    waits = [0.0]
    for kind in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0":
            reset = headers.get(f"x-ratelimit-reset-{kind}", "")
            parts = _DURATION.findall(reset)
            plain = float(reset) if re.fullmatch(r"\d+(\.\d+)?", reset) else 0.0
            waits.append(sum(float(number) * _SECONDS[unit] for number, unit in parts) if parts else plain)
    return max(waits) or None
