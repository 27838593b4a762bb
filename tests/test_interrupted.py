"""Ctrl-C, and a parent that is killed: `generate` ends at once, keeps what it has paid for, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.llm_rudeness import Hold
from tests.llm_server import LLMServer
from tests.processes import alive, children, committed, started, wait_until
from tests.runs import embedsmith
from tests.test_live_limits import sts


@pytest.mark.parametrize(("num_workers", "to_all"), [(1, True), (2, True), (2, False)])
def test_ctrl_c_keeps_what_has_arrived_and_says_how_to_go_on(tmp_path: Path, num_workers: int, to_all: bool) -> None:
    """A terminal sends the signal to the whole group of processes, `kill` to one."""
    hold = Hold(30)
    with LLMServer(limits=hold) as server:
        flags = sts(server, tmp_path, 100, max_concurrency=8, num_workers=num_workers)
        with started("generate", *flags) as process:
            wait_until(lambda: server.answered.total() == 30 and hold.entered == 38)
            time.sleep(0.3)  # what was answered arrives
            workers = children(process)
            assert len(workers) == (2 if num_workers == 2 else 0)
            interrupted_at = time.monotonic()
            (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
            output, error = process.communicate(timeout=30)
            assert time.monotonic() - interrupted_at < 5  # on a busy machine; by itself 0.1 to 0.3
        assert process.returncode == 130
        assert error.splitlines()[-1] == "stopped; run the same command again to go on"
        assert "Traceback" not in output + error
        assert alive(workers, within_s=1) == []
        assert committed(tmp_path / "journal.sqlite") == set(server.answered)
        assert len(server.answered) == 30
        asked = len(server.arrived_at)
        time.sleep(0.3)
        assert len(server.arrived_at) == asked == 38  # nothing more is asked
        hold.go.set()
        first = set(server.answered)
        server.asked.clear()
        assert embedsmith("generate", *flags) == 0
        assert not first & set(server.asked), "a committed reply was asked for again"
    assert len(committed(tmp_path / "journal.sqlite")) == 100


def test_ctrl_c_while_the_workers_start_is_no_traceback(tmp_path: Path) -> None:
    with LLMServer() as server, started("generate", *sts(server, tmp_path, 9, num_workers=2)) as process:
        wait_until(lambda: len(children(process)) == 2)
        workers = children(process)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "stopped; run the same command again to go on\n")
    assert alive(workers, within_s=2) == []


def test_a_killed_parent_leaves_no_worker_behind(tmp_path: Path) -> None:
    hold = Hold(10)
    with LLMServer(limits=hold) as server:
        flags = sts(server, tmp_path, 40, max_concurrency=8, num_workers=2)
        with started("generate", *flags) as process:
            wait_until(lambda: hold.entered == 18)
            workers = children(process)
            process.kill()
            _, error = process.communicate(timeout=30)
        assert len(workers) == 2
        assert alive(workers, within_s=3) == []
        assert error == ""
        hold.go.set()
        first = committed(tmp_path / "journal.sqlite")
        server.asked.clear()
        assert embedsmith("generate", *flags) == 0
        assert not first & set(server.asked), "a committed reply was asked for again"
    assert len(committed(tmp_path / "journal.sqlite")) == 40


def test_a_parent_killed_at_the_start_leaves_no_worker_behind(tmp_path: Path) -> None:
    with LLMServer() as server, started("generate", *sts(server, tmp_path, 9, num_workers=2)) as process:
        wait_until(lambda: len(children(process)) == 2)
        workers = children(process)
        process.kill()
        _, error = process.communicate(timeout=60)  # ends when the last worker lets go of stderr
    assert alive(workers, within_s=3) == []
    assert error == ""


def test_a_worker_that_is_killed_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    hold = Hold(10)
    with LLMServer(limits=hold) as server:
        with started("generate", *sts(server, tmp_path, 40, max_concurrency=8, num_workers=2)) as process:
            wait_until(lambda: server.answered.total() == 10 and hold.entered == 18)
            time.sleep(0.3)
            workers = children(process)
            workers[0].kill()
            _, error = process.communicate(timeout=30)
        assert process.returncode == 1
        assert error.splitlines()[-1].startswith(
            "error: A worker process ended with exit code -9; run the same command"
        )
        assert alive(workers, within_s=1) == []
        assert committed(tmp_path / "journal.sqlite") == set(server.answered)
