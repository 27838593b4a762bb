"""Runs verbs of the command line in processes of their own, to interrupt and to kill them."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start the command line in a session of its own, as a terminal does; kill what is left of it at the end."""
    command = [sys.executable, "-m", "embedsmith", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that a process has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(process.pid).children(recursive=True))
    return []


def alive(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Return those of the processes that have not ended after so many seconds; the dead may wait to be reaped."""

    def running(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        return False

    deadline = time.monotonic() + within_s
    while (left := [process for process in processes if running(process)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def committed(journal: Path) -> set[str]:
    """Return the requests with a usable reply in the journal."""
    with contextlib.closing(sqlite3.connect(journal)) as db:
        return {row[0] for row in db.execute("SELECT request_id FROM replies WHERE usable")}
