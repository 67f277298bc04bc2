"""Brings the rows of a batch together in one array, for the engine to read in one piece.

On a CPU this is done between two runs. Even a single row is copied (about 10 µs of 150 kB): an engine that held on to a
media worker's memory would keep it from being used again. In front of a GPU a second thread gathers the next batch into
the other of two buffers while the first is being run, and an engine that can begins to copy it to the device; it closes
a batch early only when that is full, so nothing is lost of what could still have joined.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from app.engines.base import Engine, Features, Probabilities, Rows, StagingEngine
from app.errors import EngineError, HieraError
from app.serving.batcher import Batcher
from app.serving.submission import Slice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Busy:
    """Work in progress on a batch: when it began, by the monotonic clock, and its rows."""

    since: float
    rows: int


@dataclass(frozen=True, eq=False)
class GatheredBatch:
    """Slices and their rows, uint8 [sum of the slices, *row_shape], C-contiguous."""

    slices: list[Slice]
    rows: Rows

    @property
    def with_features(self) -> bool:
        """Whether somebody wants to know what the classifier read."""
        return any(part.submission.terms.with_features for part in self.slices)

    @property
    def exact(self) -> bool:
        """Whether all rows are to be answered exactly; in a batch either all are or none is."""
        return self.slices[0].submission.exact

    def halves(self) -> tuple[GatheredBatch, GatheredBatch]:
        """Cut in the middle of its rows, through a slice if need be. The batch has at least two rows."""
        middle = len(self.rows) // 2
        first: list[Slice] = []
        second: list[Slice] = []
        at = 0
        for part in self.slices:
            cut = part.start + min(max(middle - at, 0), part.size)
            if cut > part.start:
                first.append(Slice(part.submission, part.start, cut))
            if cut < part.stop:
                second.append(Slice(part.submission, cut, part.stop))
            at += part.size
        return GatheredBatch(first, self.rows[:middle]), GatheredBatch(second, self.rows[middle:])


class BatchSource:
    """Takes batches from the batcher for one engine, gathers them, and knows which are not handed in yet.

    Args:
        limit: the most rows of a batch, asked for each one; never above the engine's `max_batch`.
        stopping: True when no more batches are wanted.
        clock: monotonic seconds.

    Attributes:
        gathering: the batch that is being gathered, for a supervisor to see; None when there is none.
    """

    def __init__(
        self,
        model: str,
        batcher: Batcher,
        engine: Engine,
        limit: Callable[[], int],
        stopping: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._batcher = batcher
        self._engine = engine
        self._limit = limit
        self._stopping = stopping
        self._clock = clock
        self.gathering: Busy | None = None
        self._on_device = engine.info.device != "cpu"
        self._staging = engine if self._on_device and isinstance(engine, StagingEngine) else None
        self._buffers: list[Rows | None] = [None, None]
        self._turn = 0
        self._engine_idle = threading.Event()
        # One buffer is being run and one is being filled; a third batch would overwrite the first. Each `next` frees
        # one, the first too.
        self._free_buffers = threading.Semaphore(len(self._buffers) - 1)
        # What was taken from the batcher and is not handed in: the batch that runs, or what is left of it, and those
        # ahead of it.
        self._taken: list[list[Slice]] = []
        self._given_up = False
        self._failure: str | None = None
        # Room for one: the batch after the one that runs. None says that there are no more.
        self._next: queue.Queue[GatheredBatch | None] = queue.Queue(maxsize=1)
        self._ahead: threading.Thread | None = None
        if self._on_device:
            self._ahead = threading.Thread(target=self._gather_ahead, name=f"gather-{model}", daemon=True)

    def start(self) -> None:
        """Called once by the engine's thread, before `next`."""
        if self._ahead is not None:
            self._ahead.start()

    def next(self) -> GatheredBatch | None:
        """Block until there is a batch; None when stopping, or when the queue is closed and empty.

        The rows of the batch before, which is finished, are overwritten from here on.

        Raises:
            Exception: the rows of a batch could not be gathered; they are settled, and there are no more batches.
        """
        batch = self._next_ahead() if self._on_device else self._take(hold=lambda: False)
        if batch is None and self._failure is not None:
            raise EngineError(self._failure)
        return batch

    def halve(self, batch: GatheredBatch) -> tuple[GatheredBatch, GatheredBatch]:
        """Cut a batch of at least two rows in two, which are handed in one by one."""
        halves = batch.halves()
        self._taken.extend(half.slices for half in halves)  # before the whole is struck out: `abandon` may look now
        self._taken.remove(batch.slices)
        return halves

    def finish(
        self,
        slices: list[Slice],
        result: Probabilities | HieraError,
        features: Features | None = None,
        *,
        began: float = 0.0,
        batch_rows: int = 0,
        margin: float = 0.0,
    ) -> None:
        """Hand in what became of a batch; see `Batcher.finish`."""
        self._taken.remove(slices)
        self._batcher.finish(slices, result, features, began=began, batch_rows=batch_rows, margin=margin)

    def abandon(self, error: HieraError) -> None:
        """Settle all that is not handed in, and what is being taken now; the threads that hold the rows free them."""
        self._given_up = True  # before the look: `_take` asks for it once its slices can be seen
        self._batcher.fail([part for slices in list(self._taken) for part in slices], error)

    def close(self, error: HieraError) -> None:
        """After the last `next`: settle all that is not handed in."""
        if self._ahead is not None and self._ahead.ident:
            self._free_buffers.release()
            self._batcher.wake()
            while self._ahead.is_alive():
                with contextlib.suppress(queue.Empty):
                    self._next.get_nowait()  # it may wait for room there
                self._ahead.join(0.05)
        for slices in list(self._taken):
            self.finish(slices, error)
        # These refer to who owns this source: a cycle would leave the buffers to the garbage collector.
        self._limit, self._stopping = (lambda: 0), (lambda: True)

    def _next_ahead(self) -> GatheredBatch | None:
        self._free_buffers.release()
        try:
            return self._next.get_nowait()
        except queue.Empty:
            self._engine_idle.set()
            self._batcher.wake()
            batch = self._next.get()
            self._engine_idle.clear()
            return batch

    def _gather_ahead(self) -> None:
        try:
            while True:
                self._free_buffers.acquire()
                batch = self._take(hold=lambda: not self._engine_idle.is_set())
                self._engine_idle.clear()  # it has its batch: the one after may grow until it is full
                self._next.put(batch)
                if batch is None:
                    return
        except BaseException as error:
            # Nobody looks after this thread: that of the engine, which waits for it, is told. In words, as the error
            # itself refers to who owns this source.
            logger.exception("the thread that gathers batches for %s died", self._model)
            self._failure = f"no batch could be gathered ({type(error).__name__}: {error})"
            self._next.put(None)

    def _take(self, hold: Callable[[], bool]) -> GatheredBatch | None:
        slices = self._batcher.take(self._limit, stopping=self._stopping, hold=hold)
        if slices is None:
            return None
        self._taken.append(slices)
        if self._given_up:  # perhaps before these could be seen
            self.finish(slices, EngineError("the engine was given up"))
            return None
        size = sum(part.size for part in slices)
        self.gathering = Busy(self._clock(), size)
        try:
            rows = self._gather(slices, size)
            if self._staging is not None:
                self._staging.stage(rows)
        except BaseException as error:
            # In no engine's hands yet, so nobody else would settle them.
            self.finish(slices, EngineError(f"the rows could not be gathered ({type(error).__name__}: {error})"))
            raise
        finally:
            self.gathering = None
        return GatheredBatch(slices, rows)

    def _gather(self, slices: list[Slice], size: int) -> Rows:
        buffer = self._buffer(size)[:size]
        at = 0
        for part in slices:
            buffer[at : at + part.size] = part.rows()
            at += part.size
        return buffer

    def _buffer(self, rows: int) -> Rows:
        """The buffer whose turn it is, made on first use and when the batches have grown."""
        self._turn = 1 - self._turn if self._on_device else 0
        buffer = self._buffers[self._turn]
        if buffer is None or len(buffer) < rows:
            buffer = self._buffers[self._turn] = self._engine.empty_rows(max(rows, self._limit()))
        return buffer
