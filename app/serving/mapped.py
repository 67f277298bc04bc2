"""Rows in the memory of an HTTP worker, as the engine host reads them: mapped read-only, and kept mapped.

A media worker writes into the same few buffers again and again. Mapping one costs more than anything else that the host
does for a photo (a page fault or its like for each 4 KiB, and the same again to unmap), so what was mapped stays so.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from app.engines.base import Rows

KEPT_BYTES = 1 << 20  # of one memory; larger ones (videos) are not used again
KEPT_MEMORIES = 128  # of one HTTP worker
KEPT_S = 10.0  # without being used: the worker may have let go of it


class MappedRows:
    """Rows that the engine host was lent; a `RowsLease`. `on_close` is called once."""

    __slots__ = ("_on_close", "_rows")

    fd = -1
    reused = False

    def __init__(self, rows: Rows, on_close: Callable[[], None]) -> None:
        self._rows: Rows | None = rows
        self._on_close = on_close

    @property
    def rows(self) -> Rows:
        """uint8 [n, *row_shape]. ValueError once closed."""
        if self._rows is None:
            raise ValueError("the rows were released")
        return self._rows

    def close(self) -> None:
        if self._rows is not None:
            self._rows = None
            self._on_close()


class MappedMemory:
    """One HTTP worker's memory. A file is known by its device and inode, which are no other's while it is mapped."""

    def __init__(self) -> None:
        # Those used last at the end, and when that was.
        self._kept: OrderedDict[tuple[int, int], tuple[NDArray[np.uint8], float]] = OrderedDict()

    def rows(self, descriptor: int, shape: tuple[int, ...], *, reused: bool) -> Rows:
        """The rows at the beginning of a file.

        Args:
            descriptor: closed here.
            shape: [n, *row_shape].
            reused: whether the file will bring other rows later.

        Returns:
            uint8 of `shape`, read-only; the memory stays mapped as long as an array over it lives.

        Raises:
            ValueError: the file is too small, or could become so (reading it would then be a SIGBUS).
            OSError: it cannot be mapped.
        """
        size = math.prod(shape)
        try:
            status = os.fstat(descriptor)
            if not 0 < size <= status.st_size:
                raise ValueError(f"{size} bytes of rows in a file of {status.st_size}")
            keep = reused and status.st_size <= KEPT_BYTES
            file = status.st_dev, status.st_ino
            kept = self._kept.pop(file, None)
            memory = _map(descriptor, status.st_size if keep else size) if kept is None else kept[0]
        finally:
            os.close(descriptor)
        if keep:
            self._kept[file] = memory, time.monotonic()
            if len(self._kept) > KEPT_MEMORIES:
                self._kept.popitem(last=False)
        return memory[:size].reshape(shape)  # [size] -> [n, *row_shape]

    def forget(self, unused_since: float) -> None:
        """Keep no longer what was not used since then, by `time.monotonic()`."""
        while self._kept and next(iter(self._kept.values()))[1] < unused_since:
            self._kept.popitem(last=False)


def _map(descriptor: int, size: int) -> NDArray[np.uint8]:
    if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise ValueError("rows in a file that is not sealed")
    # Populated in one go: a fault for each page would cost more than the copy into the batch.
    mapped = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    return np.frombuffer(mapped, np.uint8)
