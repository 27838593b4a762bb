"""Past one machine: `brainstorm`, `generate` and `curate` as datatrove pipelines, on this machine's processes, Ray or Slurm.

datatrove is the engine: it splits the work into tasks, starts them, and starts again those that were lost. The journal
stays the one source of truth: what the tasks were told lies in `<run>/scale/<step>/replies` only until it is committed to
it, and `curate` makes the same bytes from it, wherever the replies were judged.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from dataset_builder.completion import require_endpoints
from dataset_builder.curation import Judged
from dataset_builder.endpoint_client import api_key
from dataset_builder.errors import RunError
from dataset_builder.journal import Pending, chunks, pending_fields
from dataset_builder.llm_config import LLMArguments
from dataset_builder.progress import Steps
from dataset_builder.recorded_llm import BatchAnswer, read_batch_lines
from dataset_builder.scale_config import ScaleArguments, prepare_datatrove
from dataset_builder.sifting import Piece
from dataset_builder.slurm import slurm_job

Commit = Callable[[Iterator[tuple[str, BatchAnswer]]], object]
_LOOK_EVERY_S = 2.0
_WAIT_FOR_TASKS_S = 5.0
"""Tasks whose starter was killed end within a second or so."""


def collect(run: Path, step: str, commit: Commit) -> bool:
    """Commit what tasks of an earlier start were told, and remove it; return False if a Slurm job still asks.

    To be called before anything else is asked, in whatever way.

    Args:
        run: the run folder.
        step: whose tasks.
        commit: commits replies to the journal.

    Raises:
        RunError: if tasks still run, Slurm cannot be asked, or tasks had ended early; then the first one's reason.
    """
    for other in sorted((run / "scale").glob("*")):
        if not other.suffix and (job := slurm_job(other)):
            what = "asks" if other.name == step else f"works in {other}"
            num = sum(map(_num_lines, other.glob("replies/*.jsonl")))
            print(
                f"{step}: Slurm job {job} {what}, {num:,} replies so far; run again when it has ended", file=sys.stderr
            )
            return False
    folder = run / "scale" / step
    if not folder.is_dir():
        return True
    replies = folder / "replies"
    with _no_task_writes(replies):
        commit(_answers(replies))
        errors = [path.read_text(encoding="utf-8") for path in sorted(replies.glob("*.error"))]
        gone = folder.with_name(f"{folder.name}.failed" if errors else f"{folder.name}.done")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
    if errors:
        for name in ("requests", "replies"):
            shutil.rmtree(gone / name, ignore_errors=True)
        raise RunError(
            f"{len(errors)} of the tasks ended early, the first one with: {errors[0]} (logs: {gone / 'logs'})"
        )
    shutil.rmtree(gone, ignore_errors=True)
    return True


@contextlib.contextmanager
def _no_task_writes(replies: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for path in sorted(replies.glob("*.lock")):
            try:
                stack.enter_context(FileLock(path).acquire(timeout=_WAIT_FOR_TASKS_S))
            except Timeout:
                raise RunError(
                    f"A task of an earlier start still writes {path.with_suffix('.jsonl')}; wait for it, or end it."
                ) from None
        yield


def _answers(replies: Path) -> Iterator[tuple[str, BatchAnswer]]:
    for path in sorted(replies.glob("*.jsonl")):
        for _ in whole_lines(path):
            pass  # a line that was cut off is gone now
        yield from read_batch_lines(path)


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file; a last one that was cut off when its writer was killed is cut from the file."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
                yield line
            else:
                file.truncate(end)


def ask_by_tasks(
    folder: Path,
    llm: LLMArguments,
    scale: ScaleArguments,
    pending: Iterable[Pending],
    total: int,
    num_attempts: Callable[[list[str]], Mapping[str, int]],
) -> bool:
    """Have tasks ask; `collect` is to be called before, and after it unless it returns False.

    Args:
        folder: of the step, on a disk that all nodes share; gets requests/, replies/ and datatrove's logs/.
        llm: whom to ask; a cost limit is what may still be spent.
        scale: where the tasks run.
        pending: what to ask.
        total: how many requests the step has.
        num_attempts: returns how many replies each of the requests has had.

    Returns:
        Whether that is over; a Slurm job is only submitted.

    Raises:
        InputError: if the executor or the LLM cannot be used.
        RunError: if tasks ended before they were done.
    """
    prepare_datatrove()
    from dataset_builder.scale_blocks import Ask, ReadRequests
    from dataset_builder.scale_executors import run

    for endpoint in require_endpoints(llm):
        if not scale.llm_server:
            api_key(endpoint)  # a missing key is told before anything is asked
    folder = folder.absolute()  # workers elsewhere have another current folder
    requests, replies = folder / "requests", folder / "replies"
    for path in (requests, replies):
        path.mkdir(parents=True, exist_ok=True)
    num_tasks = min(scale.num_tasks, max(1, total))
    if not (num_asked := _write_requests(requests, pending, num_tasks, total, num_attempts)):
        return True
    if not scale.llm_server:  # the limit is the endpoint's, which all tasks share
        llm = replace(llm, max_concurrency=max(1, llm.max_concurrency // scale.at_once(num_tasks)))
    with _progress(folder.name, replies, num_asked):
        return run([ReadRequests(requests), Ask(llm, scale, replies)], folder, num_tasks, scale)


def _write_requests(
    folder: Path,
    pending: Iterable[Pending],
    num_tasks: int,
    total: int,
    num_attempts: Callable[[list[str]], Mapping[str, int]],
) -> int:
    """Deal the requests out to the tasks, some in a row to each; return their number."""
    num_asked = 0
    for number in range(num_tasks):
        (folder / f"{number:05d}.jsonl").touch()
    for number, chunk in enumerate(chunks(pending, max(1, min(500, total // num_tasks)))):
        attempts = num_attempts([request.id for request, _ in chunk])
        with (folder / f"{number % num_tasks:05d}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(request_line(one, attempts.get(one[0].id, 0)) for one in chunk)
        num_asked += len(chunk)
    return num_asked


def request_line(pending: Pending, num_attempts: int) -> str:
    """Return a pending request, and how many replies it has had, as a line for the tasks."""
    return json.dumps([*pending_fields(pending), num_attempts]) + "\n"


def judge_by_tasks(pieces: list[Piece], folder: Path, scale: ScaleArguments) -> bool:
    """Have the pieces judged by tasks into `folder`; return whether that is over (slurm: it only begins, or goes on).

    Raises:
        InputError: if the executor cannot be used.
        RunError: if tasks ended before they were done.
    """
    prepare_datatrove()
    from dataset_builder.scale_blocks import Judge
    from dataset_builder.scale_executors import run

    def missing() -> int:
        return sum(not judged_path(folder, piece).is_file() for piece in pieces)

    folder = folder.absolute()
    if not missing():
        return True
    if job := slurm_job(folder):
        print(f"curate: Slurm job {job} still judges; run again when it has ended", file=sys.stderr)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    is_over = run([Judge(pieces, folder)], folder, min(scale.num_tasks, len(pieces)), scale)
    if is_over and (num := missing()):
        raise RunError(f"{num:,} of {len(pieces):,} pieces were not judged; see {folder}/logs, and run again.")
    return is_over


def judged_path(folder: Path, piece: Piece) -> Path:
    """Return where a task writes what became of a piece."""
    return folder / f"{piece.subgroup}-{piece.start:09d}.pickle"


def read_judged(folder: Path, pieces: list[Piece]) -> Generator[Judged, None, None]:
    """Yield what became of the pieces, in their order."""
    for piece in pieces:
        yield pickle.loads(judged_path(folder, piece).read_bytes())  # noqa: S301  written by our own tasks


@contextlib.contextmanager
def _progress(label: str, folder: Path, total: int) -> Iterator[None]:
    """Show how many replies are in the files of `folder`, until the `with` block ends."""
    steps, ended = Steps(label, total), threading.Event()
    seen: dict[Path, int] = {}

    def watch() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            num = 0
            for path in folder.glob("*.jsonl"):
                with path.open("rb") as file:
                    file.seek(seen.get(path, 0))
                    num += _count(file)
                    seen[path] = file.tell()
            steps.add(num)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return _count(file)


def _count(file: IO[bytes]) -> int:
    return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
