"""Reading a stream ahead in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T], size: int = 100) -> Generator[T]:
    """Yield the items, read up to `size` ahead by a thread: planning waits for the disk, which must hold up no request.

    Close it when it is not read to its end.
    """

    def read() -> list[T]:
        return list(islice(items, size))

    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(read)
        while chunk := ahead.result():
            ahead = thread.submit(read)
            yield from chunk
