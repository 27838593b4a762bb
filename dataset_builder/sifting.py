"""One subgroup of a corpus: judged in pieces, by several processes, then compared among themselves, in bounded memory.

The rows wait in a file on disk; what is held of each are two digests and two signatures, some 600 bytes, and up to three
times as much while they are compared.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from dataset_builder.checks import Row
from dataset_builder.config import CurationArguments
from dataset_builder.consistency import inconsistent_rows
from dataset_builder.contamination import TestSets
from dataset_builder.curation import SCHEMA, Judged, Split, judge, later_rejection, split_of
from dataset_builder.duplicates import find_duplicates
from dataset_builder.errors import RunError
from dataset_builder.journal import Journal
from dataset_builder.parsing import Rejection
from dataset_builder.schema import TEXT_COLUMNS, Subgroup

PIECE = 1_000  # requests judged at a time


@dataclass(frozen=True)
class Piece:
    """Some consecutive generate requests of a subgroup, and all that a process needs to judge them."""

    journal: Path
    identity: dict[str, Any]
    subgroup: Subgroup
    start: int
    stop: int
    arguments: CurationArguments
    test_sets: Path | None
    is_elsewhere: bool = False  # perhaps on another machine, where nobody can wait for a writer of the journal

    def judge(self) -> Judged:
        """Judge them. Requests that were never planned count as unanswered."""
        test_sets = TestSets.load(self.test_sets) if self.test_sets else None
        with Journal(self.journal, self.identity, write=False, is_immutable=self.is_elsewhere) as journal:
            entries = list(journal.entries("generate", self.subgroup, self.start, self.stop))
        judged = judge(entries, self.subgroup, self.arguments, test_sets)
        judged.num_unanswered += self.stop - self.start - len(entries)
        return judged


def judged_pieces(pieces: list[Piece], num_proc: int | None) -> Generator[Judged, None, None]:
    """Yield what became of the pieces, in their order, judged by `num_proc` processes (None: one a core).

    Raises:
        RunError: if one of the processes was ended from outside.
    """
    num_proc = min(num_proc or os.cpu_count() or 1, len(pieces) // 4)
    if num_proc < 2:  # starting processes takes longer
        yield from (piece.judge() for piece in pieces)
        return
    with processes(num_proc, "curates") as pool:
        left = iter(pieces)
        with _interrupts_held_back():
            waiting = [pool.submit(Piece.judge, piece) for piece in islice(left, 2 * num_proc)]
        while waiting:
            judged = waiting.pop(0).result()
            waiting += [pool.submit(Piece.judge, piece) for piece in islice(left, 1)]
            yield judged


@contextmanager
def processes(num_proc: int, does: str) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end at once when the `with` block fails or is left early, or this process is killed.

    Raises:
        RunError: if one of them, that `does` something, was ended from outside.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(num_proc, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        yield pool
    except BaseException as error:
        for process in set(active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunError(
                f"A process that {does} was ended from outside, perhaps because memory ran out; let fewer run at once and "
                "run the same command again."
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def end_with(parent: Any) -> None:
    """Let this process, and those that it started, end when `parent` is gone; by itself a pool's process would wait forever."""

    def wait() -> None:
        parent.join()
        for child in psutil.Process().children(recursive=True):  # an LLM engine, which would keep its GPUs
            with suppress(psutil.Error):
                child.terminate()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        end_with(parent)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold Ctrl-C back for a moment. Processes started meanwhile inherit that, and leave Ctrl-C to this one for good."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True, slots=True)
class Example:
    """A row that is kept."""

    row: Row
    split: Split
    num_words: dict[str, int]


def sift(
    judged: Iterator[Judged], subgroup: Subgroup, arguments: CurationArguments, kinds: Mapping[str, str], folder: Path
) -> Generator[Judged | Example | Row, None, None]:
    """Yield each piece as it was judged, then each row: an `Example` if it is kept, else its row for `rejected/`.

    Args:
        judged: the pieces of one subgroup, in the order of the plan.
        subgroup: that subgroup.
        arguments: the settings.
        kinds: {task id: id of the task that it nearly repeats}.
        folder: where the rows wait; what is put there is removed at the end.
    """
    path = folder / f"{subgroup}.waiting.arrow"
    keys: list[list[Any]] = [[], []]
    signatures: list[list[Any]] = [[], []]
    lengths: dict[str, list[Any]] = {name: [] for name in TEXT_COLUMNS}
    try:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for piece in judged:
                writer.write_table(piece.rows)
                for column, values in enumerate(piece.keys):
                    keys[column].append(values)
                for column, matrix in enumerate(piece.signatures or ()):
                    signatures[column].append(matrix)
                for name, counts in piece.num_words.items():
                    lengths[name].append(counts)
                yield piece
        if keys[0]:
            all_keys = [np.concatenate(column) for column in keys if column]
            all_signatures = [np.concatenate(column) for column in signatures if column] or None
            del keys, signatures
            found = find_duplicates(all_keys, all_signatures, arguments.near_duplicate_threshold)
            del all_keys, all_signatures
            num_words = {name: np.concatenate(column) for name, column in lengths.items()}
            yield from _compared(path, subgroup, arguments, kinds, found, num_words)
    finally:
        path.unlink(missing_ok=True)


def _compared(
    path: Path,
    subgroup: Subgroup,
    arguments: CurationArguments,
    kinds: Mapping[str, str],
    found: dict[int, tuple[int, str]],
    num_words: dict[str, Any],
) -> Iterator[Example | Row]:
    ids = [id_ for batch in _batches(path) for id_ in batch.column("id").to_pylist()]
    rejections = {
        row: Rejection("duplicate", f"query or positive {how} that of {ids[first]}")
        for row, (first, how) in found.items()
    }
    if arguments.consistency_model:
        kept = [number for number in range(len(ids)) if number not in rejections]
        rejections |= inconsistent_rows(_batches(path), kept, arguments)
    number = 0
    for batch in _batches(path):
        for row in batch.to_pylist():
            if rejection := rejections.get(number):
                yield later_rejection(row, subgroup, rejection)
            else:
                del row["reply"]
                split = split_of(row, subgroup, arguments.test_size, kinds)
                yield Example(row, split, {name: int(counts[number]) for name, counts in num_words.items()})
            number += 1


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path), "rb") as file:  # mapped into memory, the whole file would count as ours
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
