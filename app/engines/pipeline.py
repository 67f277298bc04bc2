"""How rows get to a device and probabilities back: staged, in fixed places, at a few fixed batch sizes.

    host rows ──upload, own stream──> one of three slots ──move──> input ──engine──> probabilities ──> pinned host rows
       while the batch before runs                        (recorded once for each size where the engine allows it)

The engine's input and output lie at addresses that never change, because recorded work (a CUDA graph) has them in it.
A batch between two sizes is run at the larger one; what its last rows say is thrown away.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.engines.base import Features, Probabilities, Rows
from app.engines.device import Device
from app.errors import EngineError, HieraError

logger = logging.getLogger(__name__)

# One that is run, one that is staged, and one for a batch that comes unannounced.
_SLOTS = 3
_TRIES = 2


@dataclass(frozen=True)
class _Slot:
    address: int
    uploaded: int  # an event


@dataclass(frozen=True, eq=False)
class FurtherOutput:
    """Where an output lies on the device, and pinned memory to fetch it into, float32 [rows, width]."""

    address: int
    host: Features


class Pipeline:
    """The way through a device for batches of one engine.

    Args:
        sizes: batch sizes that the engine runs at, ascending; the last is the largest batch.

    Attributes:
        stream: where the engine queues its work.
        input, output: addresses of uint8 [sizes[-1], *row_shape] and of float32 [sizes[-1], classes].

    Raises:
        EngineOutOfMemory: the device has no room for it.
    """

    def __init__(self, device: Device, row_shape: tuple[int, ...], classes: int, sizes: tuple[int, ...]) -> None:
        self._device = device
        self._row_shape = row_shape
        self._row_nbytes = int(np.prod(row_shape))
        self._sizes = sizes
        self._rows = 0  # of the last batch
        self._ends: list[Callable[[], None]] = []
        self._recorded: dict[int, int | None] = {}  # None: this size cannot be recorded
        self._lock = threading.Lock()
        self._staged: dict[tuple[int, int], _Slot] = {}
        device.use()
        try:
            self.stream = self._stream()
            self._upload_stream = self._stream()
            self.input = self._memory(sizes[-1] * self._row_nbytes)
            self.output = self._memory(sizes[-1] * classes * 4)
            self._free = [_Slot(self._memory(sizes[-1] * self._row_nbytes), self._event()) for _ in range(_SLOTS)]
            self._answers = device.pinned(sizes[-1] * classes * 4).view(np.float32).reshape(sizes[-1], classes)
        except BaseException:
            self.close()
            raise

    def empty_rows(self, n: int) -> Rows:
        """Pinned memory, uint8 [n, *row_shape]."""
        self._device.use()
        return self._device.pinned(n * self._row_nbytes).reshape(n, *self._row_shape)

    def stage(self, rows: Rows) -> None:
        """Begin to upload `rows`; see `StagingEngine.stage`."""
        with self._lock:
            forgotten = self._staged.pop(_key(rows), None)  # of a batch that was never run, and whose rows are gone
            if forgotten is not None:
                self._free.append(forgotten)
            if len(self._free) <= 1:  # kept for `run`
                return
            slot = self._free.pop()
        try:
            self._device.use()
            self._upload(rows, slot)
        except HieraError as error:
            logger.warning("rows could not be copied ahead of their batch (%s)", error)
            with self._lock:
                self._free.append(slot)
            return
        with self._lock:
            self._staged[_key(rows)] = slot

    def run(self, rows: Rows, enqueue: Callable[[int], None], *, record: bool) -> Probabilities:
        """Bring `rows` to the input, have the engine run, and bring the probabilities back.

        Args:
            rows: uint8 [n, *row_shape], C-contiguous, in any host memory; pinned memory is copied quicker.
            enqueue: queues the engine's work for a batch of one of the sizes on `stream`.
            record: whether that may be recorded and replayed.

        Returns:
            float32 [n, classes], the caller's own.

        Raises:
            EngineError: the device or the engine failed.
        """
        n = len(rows)
        size = self._sizes[bisect_left(self._sizes, n)]
        device = self._device
        device.use()
        with self._lock:
            slot = self._staged.pop(_key(rows), None)
            staged = slot is not None
            slot = slot or self._free.pop()
        try:
            if not staged:
                self._upload(rows, slot)
            device.wait(self.stream, slot.uploaded)
            device.move(self.input, slot.address, rows.nbytes, self.stream)
            self._compute(size, enqueue, record)
            answers = self._answers[:n]
            device.download(answers, self.output, self.stream)
            device.synchronise(self.stream)
        finally:
            with self._lock:
                self._free.append(slot)
        self._rows = n
        return answers.copy()

    def add_output(self, width: int) -> FurtherOutput:
        """A place for another output of the engine, float32 [sizes[-1], width], that stays on the device unless it is
        asked for. Raises EngineOutOfMemory."""
        self._device.use()
        rows = self._sizes[-1]
        host = self._device.pinned(rows * width * 4).view(np.float32).reshape(rows, width)
        return FurtherOutput(self._memory(rows * width * 4), host)

    def fetch(self, output: FurtherOutput) -> Features:
        """What the last `run` that went well left there for its rows: float32 [n, width], the caller's own."""
        values = output.host[: self._rows]
        self._device.use()
        self._device.download(values, output.address, self.stream)
        self._device.synchronise(self.stream)
        return values.copy()

    def close(self) -> None:
        """Give everything back; also of a pipeline that was made in part."""
        self._device.use()
        for recorded in self._recorded.values():
            if recorded is not None:
                self._device.end_recorded(recorded)
        self._recorded.clear()
        while self._ends:
            self._ends.pop()()

    def _compute(self, size: int, enqueue: Callable[[int], None], record: bool) -> None:
        """Replay what was recorded. A size that is new is run as it is first, which allocates and chooses kernels.

        Its first answer is of the replay all the same: so whoever checks that has checked what will serve.
        """
        if record and size not in self._recorded:
            with self._device.alone:
                self._recorded[size] = self._record(size, enqueue)
        elif self._recorded.get(size) is None:
            enqueue(size)
        recorded = self._recorded.get(size)
        if recorded is not None:
            self._device.replay(recorded, self.stream)

    def _record(self, size: int, enqueue: Callable[[int], None]) -> int | None:
        """Run a size, and record it; once more where that fails, as the first run may not have allocated all."""
        failure: EngineError | None = None
        for _ in range(_TRIES):
            enqueue(size)
            try:
                return self._device.record(lambda: enqueue(size), self.stream)
            except EngineError as error:
                failure = error
        logger.warning("batches of %d are not run as a CUDA graph (%s)", size, failure)
        return None

    def _upload(self, rows: Rows, slot: _Slot) -> None:
        self._device.upload(slot.address, rows, self._upload_stream)
        self._device.mark(slot.uploaded, self._upload_stream)

    def _stream(self) -> int:
        stream = self._device.stream()
        self._ends.append(lambda: self._device.end_stream(stream))
        return stream

    def _event(self) -> int:
        event = self._device.event()
        self._ends.append(lambda: self._device.end_event(event))
        return event

    def _memory(self, nbytes: int) -> int:
        address = self._device.allocate(nbytes)
        self._ends.append(lambda: self._device.free(address))
        return address


def _key(rows: Rows) -> tuple[int, int]:
    return rows.ctypes.data, rows.nbytes
