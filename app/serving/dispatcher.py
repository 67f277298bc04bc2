"""The door between the service and the engines: rows go in, an `Inference` comes out.

The service knows the protocol alone. Here the rows reach an engine thread of this process; a dispatcher that hands the
rows' file descriptor to another process can take its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from app.engines.base import Rows
from app.errors import DeadlineExceeded
from app.serving.batcher import Batcher
from app.serving.submission import Inference, Outcome, Settlement


class RowsLease(Protocol):
    """Decoded rows in memory that must be given back: `app.media`'s `DecodedRows`."""

    @property
    def rows(self) -> Rows:
        """uint8 [n, *row_shape]."""
        ...

    @property
    def fd(self) -> int:
        """Descriptor of the shared memory that the rows begin, for a dispatcher that hands them on; else -1."""
        ...

    def close(self) -> None:
        """Give the memory back; idempotent."""
        ...


class Dispatcher(Protocol):
    """Gets rows classified."""

    async def infer(self, rows: RowsLease, deadline: float) -> Inference:
        """Classify all rows of one file. The dispatcher owns `rows` from the call on and closes them exactly once, as
        soon as no engine reads them, which may be after a cancelled call has returned.

        Args:
            rows: the decoded views.
            deadline: `time.monotonic()` seconds.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the model is being unloaded, or its engine rebuilt.
            DeadlineExceeded: not done in time.
            EngineError: the engine failed on these rows.
        """
        ...


class LocalDispatcher:
    """Submits to the batcher of this process and waits on the running event loop.

    Args:
        origin: what an observer of the batches knows the current request by.
    """

    def __init__(self, batcher: Batcher, origin: Callable[[], object] = lambda: None) -> None:
        self._batcher = batcher
        self._origin = origin

    async def infer(self, rows: RowsLease, deadline: float) -> Inference:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, rows)
        try:
            submission = self._batcher.submit(rows.rows, deadline, waiter, self._origin())
        except BaseException:
            rows.close()
            raise
        # The batcher drops expired rows when a batch closes; the timer answers the caller even while an engine is
        # stuck.
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), waiter.expire)
        try:
            return await waiter.future
        finally:
            timer.cancel()
            if self._batcher.cancel(submission):
                rows.close()


class _Waiter:
    """A `Receiver` whose news arrive on the loop."""

    __slots__ = ("future", "lease", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, lease: RowsLease) -> None:
        self.loop = loop
        self.future: asyncio.Future[Inference] = loop.create_future()
        self.lease = lease

    def settle(self, outcome: Outcome) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Inference):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)

    def release(self) -> None:
        self.lease.close()

    def expire(self) -> None:
        self.settle(DeadlineExceeded("the deadline passed before the engine had answered"))


def deliver(news: Sequence[Settlement]) -> None:
    """Take settlements to the event loops of their receivers: one wake-up of a loop for all of its news."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Settlement]] = {}
    for settlement in news:
        by_loop.setdefault(settlement.receiver.loop, []).append(settlement)
    for loop, share in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there, but the memory is still ours
            loop.call_soon_threadsafe(_announce, share)
            continue
        for settlement in share:
            if settlement.release:
                settlement.receiver.release()


def _announce(news: Sequence[Settlement]) -> None:
    for settlement in news:
        if settlement.outcome is not None:
            settlement.receiver.settle(settlement.outcome)
        if settlement.release:
            settlement.receiver.release()
