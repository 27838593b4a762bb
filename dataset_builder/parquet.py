"""Parquet files of a folder that appears whole or not at all: written in row groups, in several files when they grow."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

ROWS_PER_GROUP = 5_000
MAX_SHARD_BYTES = 500_000_000  # what `datasets` makes of one too


class ParquetShards:
    """Writes rows as `<stem>-00000-of-0000N-<digest>.parquet`, no file if there are none. A context manager.

    The names end in a digest of the content: `datasets` caches a local folder by its name and the `configs` of its README
    alone, not by the files' content or time, so only names in the README that change with the content keep another run,
    or a later one, from being taken for the cached one.
    """

    def __init__(self, stem: Path, features: Features, *, even_if_empty: bool = False) -> None:
        self.stem, self.schema, self.even_if_empty = stem, features.arrow_schema, even_if_empty
        self.num_rows = 0
        self._rows: list[dict[str, Any]] = []
        self._paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None and (self._rows or (self.even_if_empty and not self._paths)):
            self._flush()
        self._close()
        if exc_type is None:
            for number, path in enumerate(self._paths):
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
                name = f"{self.stem.name}-{number:05d}-of-{len(self._paths):05d}-{digest}.parquet"
                path.rename(path.with_name(name))

    def add(self, row: dict[str, Any]) -> None:
        """Write a row; what is no column is left away."""
        self._rows.append(row)
        self.num_rows += 1
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows."""
        for row in rows:
            self.add(row)

    def _flush(self) -> None:
        if self._writer is None:
            self.stem.parent.mkdir(parents=True, exist_ok=True)
            self._paths.append(self.stem.with_name(f"{self.stem.name}.part{len(self._paths)}"))
            self._writer = pq.ParquetWriter(self._paths[-1], self.schema)
        self._writer.write_table(pa.Table.from_pylist(self._rows, self.schema))
        self._rows = []
        if self._paths[-1].stat().st_size > MAX_SHARD_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def replace_folder(folder: Path, new: Path) -> None:
    """Put the complete folder `new` in the place of `folder`, by renaming alone.

    Between two renames there is no `folder`, but `<folder>.old`; it goes when the new one is in its place.
    """
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
