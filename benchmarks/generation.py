"""How fast clients take replies from one endpoint, and what that costs them.

    python benchmarks/generation.py            the whole table; the other clients are installed on first use
    python benchmarks/generation.py --write    ... and into benchmarks/README.md
    python benchmarks/generation.py --clients embedsmith openai-aiohttp --concurrency 256 --repetitions 1
    python benchmarks/generation.py --flat_memory    what embedsmith holds in memory for 10,000 and for 1,000,000 requests

All clients ask one and the same endpoint process (`endpoint.py`), one after the other, the repetitions in turns, so that what
else happens on the machine strikes them alike. Each run is a process of its own.

    replies/s   replies over the endpoint's span, from the first request that arrived to the last reply that left: starting up
                is not in it
    share       of what the endpoint allows, which answers at most `concurrency` requests every 200 ms
    CPU ms      user and system time of the process and its children for a reply, less those of a run with few requests: what
                a reply costs, without imports
    memory MB   highest sum of resident memory over the process and its children, sampled ten times a second; on Linux a page
                that several processes share is divided among them (PSS), so that forked children are not counted twice
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from peers import CLIENTS, ROOT, NotRunError, Run, environment, install, last_words

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- generation: begin -->", "<!-- generation: end -->"
LATENCY_S = 0.2
START_UP_REQUESTS = 10
TIMEOUT_S = 600


@dataclass(frozen=True)
class Usage:
    """What a process tree used, and the endpoint's statistics of the run."""

    cpu_s: float
    memory_mb: float
    stats: dict[str, float]

    @property
    def span_s(self) -> float:
        """Seconds from the first request to the last reply."""
        return self.stats["last_reply"] - self.stats["first_request"]


@dataclass(frozen=True)
class Cell:
    """One measurement of the table."""

    replies_per_s: float
    share: float
    cpu_ms: float
    memory_mb: float

    def __str__(self) -> str:
        return f"{self.replies_per_s:,.0f}/s ({self.share:.0%}) · {self.cpu_ms:.1f} ms · {self.memory_mb:,.0f} MB"


@contextmanager
def endpoint(latency_s: float = LATENCY_S) -> Iterator[str]:
    """Run the endpoint in a process of its own; the value is its root URL."""
    command = [sys.executable, str(Path(__file__).parent / "endpoint.py"), "--latency_s", str(latency_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


def reset(url: str) -> dict[str, float]:
    """Return the endpoint's statistics and let it count from nothing."""
    with urllib.request.urlopen(f"{url}/reset") as reply:
        stats: dict[str, float] = json.load(reply)
    return stats


def measure(name: str, url: str, num_requests: int, concurrency: int, stop_after_s: float | None = None) -> Usage:
    """Run one client on so many requests; with `stop_after_s` it is interrupted after that time.

    Raises:
        NotRunError: if it fails, takes longer than `TIMEOUT_S`, or does not get all replies.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / "output").mkdir()
        run = Run(f"{url}/v1", num_requests, concurrency, home / "output")
        reset(url)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                CLIENTS[name].command(run),
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment(home),
                start_new_session=True,  # so that an interrupt or a kill reaches its children too
            )
        memory_mb = _watch(process, stop_after_s)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        stats = reset(url)
        if stop_after_s is None:
            if process.returncode != 0:
                words = last_words((home / "log").read_text(errors="replace"))
                raise NotRunError(f"failed: {words}" if process.returncode > 0 else "took too long")
            if stats["replies"] < num_requests:
                raise NotRunError(f"asked for only {stats['replies']:,} of {num_requests:,} replies")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(cpu_s, memory_mb, stats)


def _watch(process: subprocess.Popen[bytes], stop_after_s: float | None) -> float:
    """Wait for a process, leave none of its children behind, and return the peak memory of its tree in MB."""
    peak, begin = 0.0, time.monotonic()
    stop_at = begin + (stop_after_s or math.inf)
    try:
        while process.poll() is None and time.monotonic() < begin + TIMEOUT_S:
            peak = max(peak, _tree_memory_mb(process.pid))
            if time.monotonic() > stop_at:
                os.killpg(process.pid, signal.SIGINT)
                stop_at = math.inf
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return peak


def _tree_memory_mb(pid: int) -> float:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
        pass
    return total / 1e6


def table(names: list[str], concurrencies: list[int], num_requests: int, repetitions: int) -> str:
    """Measure all clients and return the Markdown table."""
    labels: dict[str, str] = {}
    failures: dict[str, str] = {}
    cells: dict[tuple[str, int], list[Cell]] = {}
    with endpoint() as url:
        for name in names:  # a first run fills the disk cache and shows whether the client works at all
            labels[name] = CLIENTS[name].label.replace(" {version}", "")
            try:
                labels[name] = install(name)
                measure(name, url, START_UP_REQUESTS, concurrencies[0])
            except NotRunError as error:
                failures[name] = str(error)
        for repetition in range(repetitions):
            for name in [name for name in names if name not in failures]:
                try:
                    start_up = measure(name, url, START_UP_REQUESTS, concurrencies[0])
                    for concurrency in concurrencies:
                        usage = measure(name, url, num_requests, concurrency)
                        cell = _cell(usage, start_up, num_requests, concurrency)
                        cells.setdefault((name, concurrency), []).append(cell)
                        print(f"{repetition + 1}/{repetitions} {name} at {concurrency:,}: {cell}", file=sys.stderr)
                except NotRunError as error:
                    failures[name] = str(error)
    head = f"| client | {' | '.join(f'{concurrency:,} in flight' for concurrency in concurrencies)} |"
    lines = [head, "|---" * (1 + len(concurrencies)) + "|"]
    for name in names:
        row = [_median(cells.get((name, concurrency), [])) for concurrency in concurrencies]
        if name in failures:
            row = [f"not measured ({failures[name]})", *["–"] * (len(concurrencies) - 1)]
        lines.append(f"| {' | '.join([labels[name], *row])} |")
    return "\n".join(lines)


def _cell(usage: Usage, start_up: Usage, num_requests: int, concurrency: int) -> Cell:
    ideal_s = math.ceil(num_requests / concurrency) * LATENCY_S
    cpu_ms = (usage.cpu_s - start_up.cpu_s) / (num_requests - START_UP_REQUESTS) * 1000
    return Cell(num_requests / usage.span_s, ideal_s / usage.span_s, cpu_ms, usage.memory_mb)


def _median(cells: list[Cell]) -> str:
    """Return the medians of several measurements, each of its own column."""
    columns = [[getattr(cell, name) for cell in cells] for name in ("replies_per_s", "share", "cpu_ms", "memory_mb")]
    return str(Cell(*(statistics.median(column) for column in columns))) if cells else "–"


def flat_memory(concurrency: int, stop_after_s: float) -> str:
    """Return what `embedsmith generate` holds in memory for a short and for a long plan, interrupted after some time."""
    head = f"| requests planned | replies after at most {stop_after_s:.0f} s at {concurrency:,} in flight | peak memory MB |"
    lines = [head, "|---|---|---|"]
    with endpoint() as url:
        for num_requests in (10_000, 1_000_000):
            usage = measure("embedsmith", url, num_requests, concurrency, stop_after_s)
            lines.append(f"| {num_requests:,} | {usage.stats['replies']:,} | {usage.memory_mb:,.0f} |")
            print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def report(text: str, num_requests: int, repetitions: int) -> str:
    """Return the table with the command and the machine."""
    command = shlex.join(["python", "benchmarks/generation.py", *(flag for flag in sys.argv[1:] if flag != "--write")])
    python = ".".join(platform.python_version_tuple()[:2])
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}, Python {python}"
    how = (
        f"{num_requests:,} requests a run, medians of {repetitions}"
        if repetitions > 1
        else f"{num_requests:,} requests"
    )
    return f"`{command}` on {machine}; {how}; replies/s (share) · CPU ms per reply · peak memory:\n\n{text}"


def main() -> int:
    """Read the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", choices=list(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[64, 256, 1000])
    parser.add_argument("--num_requests", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="Write the table into benchmarks/README.md.")
    parser.add_argument("--flat_memory", action="store_true", help="Measure embedsmith's memory on long plans instead.")
    parser.add_argument("--flat_memory_s", type=float, default=60.0, help="Seconds after which those runs are stopped.")
    flags = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # clients inherit it: a file descriptor a connection
    if flags.flat_memory:
        print(flat_memory(flags.concurrency[0], flags.flat_memory_s))
        return 0
    measured = table(flags.clients, flags.concurrency, flags.num_requests, flags.repetitions)
    text = report(measured, flags.num_requests, flags.repetitions)
    print(text)
    if flags.write:
        head, rest = README.read_text().split(BEGIN)
        README.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
