"""Past one machine: `brainstorm`, `generate` and `curate` as datatrove pipelines, on this machine's processes, Ray or Slurm.

datatrove is the engine: it splits the work into tasks, starts them, and starts again those that were lost. The journal
stays the one source of truth: what the tasks were told is committed to it by the process that started them, and `curate`
makes the same bytes from it, wherever the replies were judged.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dataset_builder.completion import require_endpoints
from dataset_builder.endpoint_client import api_key
from dataset_builder.errors import InputError, RunError
from dataset_builder.journal import Pending, chunks
from dataset_builder.llm_config import LLMArguments
from dataset_builder.progress import Steps
from dataset_builder.recorded_llm import BatchAnswer, read_batch_lines
from dataset_builder.scale_config import ScaleArguments
from dataset_builder.sifting import Piece

_LOOK_EVERY_S = 2.0
_ENVIRONMENT = {
    "LOGURU_LEVEL": "ERROR",
    "LOGURU_DIAGNOSE": "NO",  # else tracebacks in datatrove's logs tell the values of variables, keys among them
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming default, which Ray warns of
}


Commit = Callable[[Iterator[tuple[str, BatchAnswer]], str], object]


def ask_by_tasks(
    folder: Path,
    llm: LLMArguments,
    scale: ScaleArguments,
    pending: Callable[[], Iterable[Pending]],
    total: int,
    commit: Commit,
) -> bool:
    """Commit what tasks of an earlier start were told, then have tasks ask what is missing, and commit that.

    Args:
        folder: of the step, on a disk that all nodes share; gets requests/, replies/ and datatrove's logs/ while tasks run.
        llm: whom to ask.
        scale: where the tasks run.
        pending: returns what is missing at the moment.
        total: how many requests the step has.
        commit: commits replies, from a named source, to the journal.

    Returns:
        Whether that is over; a Slurm job is only submitted, or still runs.

    Raises:
        InputError: if the executor or the LLM cannot be used.
        RunError: if tasks ended before they were done, with what the first of them said.
    """
    require_datatrove()
    if job := _slurm_job(folder):
        num = sum(path.read_bytes().count(b"\n") for path in folder.glob("replies/*.jsonl"))
        print(f"{folder.name}: Slurm job {job} runs, {num:,} replies so far", file=sys.stderr)
        return False
    for endpoint in require_endpoints(llm):
        if not scale.llm_server:
            api_key(endpoint)  # a missing key is told before anything is asked
    replies = folder / "replies"
    commit(_answers(replies), "executor")
    shutil.rmtree(folder, ignore_errors=True)
    early: RunError | None = None
    try:
        is_over = _ask(folder, llm, scale, pending(), total)
    except RunError as error:
        is_over, early = True, error
    if is_over:
        commit(_answers(replies), "executor")
        if errors := sorted(replies.glob("*.error")):
            raise RunError(f"{len(errors)} task(s) ended early, the first one with: {errors[0].read_text('utf-8')}")
        if early:
            raise early
        shutil.rmtree(folder, ignore_errors=True)
    return is_over


def _answers(replies: Path) -> Iterator[tuple[str, BatchAnswer]]:
    from dataset_builder.scale_blocks import whole_lines

    for path in sorted(replies.glob("*.jsonl")):
        for _ in whole_lines(path):
            pass  # a line that was cut off is gone now
        yield from read_batch_lines(path)


def _ask(folder: Path, llm: LLMArguments, scale: ScaleArguments, pending: Iterable[Pending], total: int) -> bool:
    from dataset_builder.scale_blocks import Ask, ReadRequests

    requests, replies = folder / "requests", folder / "replies"
    for path in (requests, replies):
        path.mkdir(parents=True, exist_ok=True)
    num_tasks = min(scale.num_tasks, max(1, total))
    if not (num_asked := _write_requests(requests, pending, num_tasks, total)):
        return True
    with _progress(folder.name, replies, num_asked):
        return _run([ReadRequests(requests), Ask(llm, scale, replies)], folder, num_tasks, scale)


def _write_requests(folder: Path, pending: Iterable[Pending], num_tasks: int, total: int) -> int:
    """Deal the requests out to the tasks, some in a row to each; return their number."""
    from dataset_builder.scale_blocks import request_line

    num_asked = 0
    for number in range(num_tasks):
        (folder / f"{number:05d}.jsonl").touch()
    for number, chunk in enumerate(chunks(pending, max(1, min(500, total // num_tasks)))):
        with (folder / f"{number % num_tasks:05d}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(map(request_line, chunk))
        num_asked += len(chunk)
    return num_asked


def judge_by_tasks(pieces: list[Piece], folder: Path, scale: ScaleArguments) -> bool:
    """Have the pieces judged by tasks into `folder`; return whether that is over (slurm: it only begins).

    Raises:
        InputError: if the executor cannot be used.
        RunError: if tasks ended before they were done.
    """
    require_datatrove()
    from dataset_builder.scale_blocks import Judge, judged_path

    if all(judged_path(folder, number).is_file() for number in range(len(pieces))):
        return True
    if job := _slurm_job(folder):
        print(f"curate: Slurm job {job} still judges; run again when it has ended", file=sys.stderr)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    return _run([Judge(pieces, folder)], folder, min(scale.num_tasks, len(pieces)), scale)


def require_datatrove() -> None:
    """Tell what is missing before anything is begun.

    Raises:
        InputError: if the extra `scale` is not installed.
    """
    if importlib.util.find_spec("datatrove") is None:
        raise InputError("`executor` is given but datatrove is missing; run: pip install 'embedsmith[scale]'.")


def _run(pipeline: list[Any], folder: Path, num_tasks: int, scale: ScaleArguments) -> bool:
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)  # which tasks are complete: those of an earlier start had other work
    os.environ |= _ENVIRONMENT
    _quiet()
    executor = _executor(pipeline, str(logs.absolute()), num_tasks, scale)
    try:
        with _children_end_with_us():
            executor.run()
    except Exception as error:  # whatever a task raised
        incomplete = executor.get_incomplete_ranks()
        raise RunError(f"{len(incomplete)} of {num_tasks} tasks ended early ({error}); see {logs}/logs.") from None
    if scale.executor == "slurm":
        (folder / "slurm_job").write_text(str(executor.job_id), encoding="utf-8")
        print(
            f"submitted as Slurm job {executor.job_id}; run the same command again when it has ended", file=sys.stderr
        )
        return False
    if incomplete := executor.get_incomplete_ranks():
        print(f"{len(incomplete)} of {num_tasks} tasks ended early; see {logs}/logs", file=sys.stderr)
    return True


def _executor(pipeline: list[Any], logs: str, num_tasks: int, scale: ScaleArguments) -> Any:
    from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor

    from dataset_builder.scale_blocks import Processes, flags_of

    at_once = min(num_tasks, scale.num_tasks_at_once or num_tasks)
    settings: dict[str, Any] = {"pipeline": pipeline, "tasks": num_tasks, "logging_dir": logs}
    if scale.executor == "local":
        at_once = min(at_once, scale.num_tasks_at_once or os.cpu_count() or 1)
        return Processes(**settings, workers=at_once, start_method="spawn")  # with this environment, keys and all
    settings |= {
        "workers": at_once,
        "cpus_per_task": scale.cpus_per_task,
        "gpus_per_task": scale.gpus_per_task,
        "mem_per_cpu_gb": scale.gb_per_cpu,
    }
    if scale.executor == "ray":
        _start_ray()
        return RayPipelineExecutor(**settings)
    if shutil.which("sbatch") is None:
        raise InputError("`executor` is slurm but there is no sbatch here; run this on a login node of the cluster.")
    return SlurmPipelineExecutor(
        **settings,
        time=scale.slurm_time,
        partition=str(scale.slurm_partition),
        job_name="embedsmith",
        qos="",
        venv_path=str(Path(sys.prefix, "bin", "activate")),
        sbatch_args={name: "" if value is True else value for name, value in flags_of(scale.slurm_args).items()},
    )


def _start_ray() -> None:
    try:
        import ray
    except ImportError:
        raise InputError("`executor` is ray but Ray is missing; run: pip install 'embedsmith[scale]'.") from None
    if not ray.is_initialized():
        # the cluster that RAY_ADDRESS names or that runs on this machine, else a new one
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": _ENVIRONMENT})


@contextlib.contextmanager
def _children_end_with_us() -> Iterator[None]:
    """Let processes forked meanwhile end when this one does, even if killed.

    datatrove's local executor forks a helper that would live forever, and keep the journal locked: a lock is its
    inheritors' too.
    """
    parent, is_on = os.getpid(), True

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    def watch() -> None:
        if is_on and os.getppid() == parent:
            threading.Thread(target=wait, daemon=True).start()

    os.register_at_fork(after_in_child=watch)  # for good, so `is_on` switches it off
    try:
        yield
    finally:
        is_on = False


def _quiet() -> None:
    """One progress line is ours; datatrove's log lines are in its log files."""
    from loguru import logger

    logger.remove()


@contextlib.contextmanager
def _progress(label: str, folder: Path, total: int) -> Iterator[None]:
    """Show how many replies are in the files of `folder`, until the `with` block ends."""
    steps, ended = Steps(label, total), threading.Event()
    seen = {path: path.stat().st_size for path in folder.glob("*.jsonl")}

    def watch() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            num = 0
            for path in folder.glob("*.jsonl"):
                with path.open("rb") as file:
                    file.seek(seen.get(path, 0))
                    new = file.read()
                seen[path] = seen.get(path, 0) + len(new)
                num += new.count(b"\n")
            steps.add(num)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _slurm_job(folder: Path) -> str:
    """Return the id of the Slurm job that was submitted from `folder`, if it waits or runs."""
    note = folder / "slurm_job"
    if not note.is_file():
        return ""
    job = note.read_text(encoding="utf-8")
    asked = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return job if asked.returncode == 0 and asked.stdout.strip() else ""
