"""`curate` killed or interrupted at any moment: the old dataset or the new one, and no process left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from dataset_builder.config import PlanArguments
from tests.processes import alive, children, started, wait_until
from tests.replies import answers, fill_journal
from tests.runs import embedsmith, folder_bytes


def flags(folder: Path, num_examples: int, *more: object) -> list[object]:
    where = ["--output_dir", folder, "--num_examples", num_examples]
    return [*where, "--subgroups", "sts", "--languages", "en", *more]


def filled(folder: Path, num_examples: int) -> Path:
    plan = PlanArguments(str(folder), num_examples, subgroups=["sts"], languages=["en"])
    fill_journal(plan, answers(plan))
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8,000 examples, which two processes take several seconds to curate."""
    return filled(tmp_path_factory.mktemp("runs") / "large", 8_000)


def workers(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that judge; multiprocessing has one more, which cleans up behind it."""
    found = []
    for child in children(parent):
        with contextlib.suppress(psutil.Error):
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


@pytest.mark.parametrize(("wait_s", "to_all"), [(0, True), (2, True), (2, False)])
def test_ctrl_c_ends_all_processes_at_once(large: Path, wait_s: float, to_all: bool) -> None:
    """A terminal sends the signal to the whole group of processes, `kill` to one. Without a wait, they still import."""
    with started("curate", *flags(large, 8_000, "--num_proc", 2)) as process:
        wait_until(lambda: len(workers(process)) == 2)
        time.sleep(wait_s)
        everyone = children(process)
        interrupted_at = time.monotonic()
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        output, error = process.communicate(timeout=30)
        assert time.monotonic() - interrupted_at < 4  # on a busy machine; by itself 0.1 to 0.3
    assert (process.returncode, output) == (130, "")
    assert error == "stopped; run the same command again to go on\n"
    assert alive(everyone, within_s=2) == []
    assert sorted(path.name for path in large.iterdir() if path.is_dir()) == []


def test_ctrl_c_of_a_single_process(large: Path) -> None:
    with started("curate", *flags(large, 8_000, "--num_proc", 1)) as process:
        wait_until((large / "curation.partial").is_dir)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        output, error = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert error == "stopped; run the same command again to go on\n"
    assert sorted(path.name for path in large.iterdir() if path.is_dir()) == []


@pytest.mark.parametrize("wait_s", [0, 2])
def test_a_killed_parent_leaves_no_process_behind(large: Path, wait_s: float) -> None:
    with started("curate", *flags(large, 8_000, "--num_proc", 2)) as process:
        wait_until(lambda: len(workers(process)) == 2)
        time.sleep(wait_s)
        everyone = children(process)
        process.kill()
        _, error = process.communicate(timeout=60)  # ends when the last process lets go of stderr
    assert alive(everyone, within_s=3) == []
    assert "Traceback" not in error


def test_a_process_that_is_killed_ends_the_run_with_one_sentence(large: Path) -> None:
    with started("curate", *flags(large, 8_000, "--num_proc", 2)) as process:
        wait_until(lambda: len(workers(process)) == 2)
        everyone = children(process)
        time.sleep(2)
        workers(process)[0].kill()
        output, error = process.communicate(timeout=30)
    assert (process.returncode, output) == (1, "")
    (line,) = error.splitlines()
    assert line.startswith("error: A process that curates was ended from outside, perhaps because memory ran out;")
    assert alive(everyone, within_s=2) == []
    assert sorted(path.name for path in large.iterdir() if path.is_dir()) == []


def test_two_curations_of_one_run_do_not_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = filled(tmp_path / "run", 6)
    with FileLock(run / "curation.lock"):
        assert embedsmith("curate", *flags(run, 6)) == 2
    assert "is being curated by another process; wait for it, or use another --output_dir." in capsys.readouterr().err
    assert embedsmith("curate", *flags(run, 6)) == 0


@pytest.mark.parametrize("num_kills", [3, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_kill_9_leaves_the_old_dataset_or_the_new_one(tmp_path: Path, num_kills: int) -> None:
    run, rng = filled(tmp_path / "run", 300), random.Random(num_kills)
    old, new = (flags(run, 300, "--test_size", size) for size in (0.1, 0.3))
    results = []
    for curation in (new, old):
        started_at = time.monotonic()
        assert embedsmith("curate", *curation) == 0
        took_s = time.monotonic() - started_at
        results.append(folder_bytes(run / "dataset") | folder_bytes(run / "rejected"))
    num_killed = 0
    for _ in range(num_kills):
        with started("curate", *new) as process:
            wait_until((run / "curation.partial").is_dir)
            time.sleep(rng.uniform(0, took_s))
            num_killed += process.poll() is None
            process.kill()
        folder = next(path for path in (run / "dataset", run / "dataset.old") if path.is_dir())
        assert folder_bytes(folder).items() <= results[0].items() or folder_bytes(folder).items() <= results[1].items()
        assert (folder / "README.md").is_file()
        assert embedsmith("curate", *new) == 0
        assert folder_bytes(run / "dataset") | folder_bytes(run / "rejected") == results[0]
        assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["dataset", "rejected"]
        assert embedsmith("curate", *old) == 0
    assert num_killed >= num_kills // 2
