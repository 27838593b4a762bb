"""One honest progress line on stderr, the same with and without a terminal, every few seconds."""

from __future__ import annotations

import sys
import time
from collections import Counter


def duration(seconds: float) -> str:
    """Return `seconds` as people say it: 42 s, 3.4 min, 2.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counts(counter: Counter[str]) -> str:
    """Return `'json 51, language 26'`, the most frequent first; empty for an empty counter."""
    return ", ".join(
        f"{name} {count:,}" for name, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    )


class Progress:
    """Counts replies and prints where things stand, at most every `every_s` seconds.

    Args:
        label: what is counted, the first word of the line.
        total: how many there will be; `done` of them are there already.
        every_s: seconds between two lines.
    """

    def __init__(self, label: str, total: int, done: int = 0, every_s: float = 5.0) -> None:
        self.label, self.total, self.done, self.every_s = label, total, done, every_s
        self.usable, self.tokens, self.cost_usd = 0, 0, 0.0
        self.unusable: Counter[str] = Counter()
        self._asked, self._start = 0, time.monotonic()
        self._printed = self._start

    def restart_clock(self) -> None:
        """Count the time from now on: what came before was preparation."""
        self._start = self._printed = time.monotonic()

    def reply(self, reason: str | None, tokens: int, cost_usd: float | None) -> None:
        """Count one reply: usable if `reason` is None."""
        self._asked += 1
        self.tokens += tokens
        self.cost_usd += cost_usd or 0.0
        if reason is None:
            self.usable += 1
            self.done += 1
        else:
            self.unusable[reason] += 1
        if time.monotonic() - self._printed >= self.every_s:
            self.show()

    @property
    def num_replies(self) -> int:
        """Replies counted so far, usable or not."""
        return self._asked

    def show(self) -> None:
        """Print the line now."""
        now = time.monotonic()
        self._printed = now
        rate = self._asked / max(now - self._start, 1e-9)
        parts = [
            f"{self.label} {self.done:,}/{self.total:,} ({self.done / max(self.total, 1):.1%})",
            f"usable {self.usable:,}",
        ]
        if self.unusable:
            parts.append(f"unusable {self.unusable.total():,} ({counts(self.unusable)})")
        parts.append(f"{rate:,.1f} req/s")
        if self.tokens:
            parts.append(f"{self.tokens / 1e6:,.2f} M tok")
        if self.cost_usd:
            parts.append(f"${self.cost_usd:,.2f}")
        if self.done < self.total and rate > 0:
            parts.append(f"eta {duration((self.total - self.done) / rate)}")
        print(" | ".join(parts), file=sys.stderr, flush=True)


class Steps:
    """Counts what has one outcome only, and prints where it stands, at most every `every_s` seconds."""

    def __init__(self, label: str, total: int, every_s: float = 5.0) -> None:
        self.label, self.total, self.every_s = label, total, every_s
        self.done = 0
        self._start = self._printed = time.monotonic()

    def add(self, num: int) -> None:
        """Count `num` more."""
        self.done += num
        now = time.monotonic()
        if now - self._printed >= self.every_s:
            self._printed = now
            rate = self.done / (now - self._start)
            left = f" | eta {duration((self.total - self.done) / rate)}" if 0 < self.done < self.total else ""
            share = self.done / max(self.total, 1)
            print(
                f"{self.label} {self.done:,}/{self.total:,} ({share:.1%}) | {rate:,.0f}/s{left}",
                file=sys.stderr,
                flush=True,
            )
