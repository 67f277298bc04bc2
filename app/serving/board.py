"""What each HTTP worker has in flight, in a page of memory that all of them see: admission stays global without asking.

Every worker writes its own line and reads those of the others. Nothing is locked: two workers that admit within the
same microseconds may overshoot a bound by one request each, and the batcher's own bound stands behind that.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping

import numpy as np

from app.serving.demand import InFlight

_DEVICES = 16  # the CPU and fifteen GPUs; beyond that devices share a column, which makes predictions pessimistic
_COLUMNS = 2 + _DEVICES
_CELL_BYTES = 8


def create_board(workers: int) -> int:
    """The descriptor of a board for so many workers, all at zero."""
    descriptor = os.memfd_create("admission", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, workers * _COLUMNS * _CELL_BYTES)
    return descriptor


def clear_line(descriptor: int, line: int) -> None:
    """Take a worker's work off the board: it has died."""
    os.pwrite(descriptor, bytes(_COLUMNS * _CELL_BYTES), line * _COLUMNS * _CELL_BYTES)


class AdmissionBoard:
    """The board as one worker (`line`) sees it; implements `Peers` of `app.serving.admission`.

    Args:
        descriptor: from `create_board`; stays the caller's.
    """

    def __init__(self, descriptor: int, workers: int, line: int) -> None:
        memory = mmap.mmap(descriptor, workers * _COLUMNS * _CELL_BYTES)
        # [workers, rows | bytes | seconds of backlog on each device]; float64 counts exactly to 2**53
        board = np.frombuffer(memory, np.float64).reshape(workers, _COLUMNS)
        self._mine = board[line]
        self._others = [board[other] for other in range(workers) if other != line]
        self._devices: set[str] = set()
        self._mine[:] = 0.0

    @property
    def processes(self) -> int:
        """All workers."""
        return 1 + len(self._others)

    def publish(self, mine: InFlight, backlog_s: Mapping[str, float]) -> None:
        """Show what this worker has in flight, and its seconds of work by device."""
        line = self._mine
        line[0], line[1] = mine.rows, mine.bytes
        for device in self._devices | backlog_s.keys():
            line[_column(device)] = backlog_s.get(device, 0.0)
        self._devices.update(backlog_s)

    def in_flight(self) -> InFlight:
        """What the other workers have in flight."""
        return InFlight(int(sum(line[0] for line in self._others)), int(sum(line[1] for line in self._others)))

    def backlog_s(self, device: str) -> float:
        """Seconds of the other workers' work on `device`."""
        column = _column(device)
        return float(sum(line[column] for line in self._others))


def _column(device: str) -> int:
    """cpu, cuda:0, cuda:1, …; of several together ("cuda:0,cuda:1") the first stands for all."""
    kind, _, number = device.partition(",")[0].partition(":")
    return 2 + (0 if kind == "cpu" else 1 + int(number or 0) % (_DEVICES - 1))
