"""The door between the service and the engines: rows go in, an `Inference` comes out.

The service knows `Dispatcher` alone. Here the rows reach an engine thread of this process; `app.serving.remote` has one
that hands the rows' file descriptor to another process, where a `LocalDispatcher` stands again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from app.engines.base import Rows
from app.errors import DeadlineExceeded, HieraError
from app.serving.batcher import Batcher
from app.serving.submission import Inference, Outcome, Settlement, Terms

Answer = TypeVar("Answer")


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

    @property
    def reused(self) -> bool:
        """Whether that memory will hold other rows later, so that keeping it mapped pays."""
        ...

    def close(self) -> None:
        """Give the memory back; idempotent."""
        ...


class Dispatcher(ABC):
    """Gets rows classified."""

    @abstractmethod
    def submit(self, rows: RowsLease, terms: Terms, settle: Callable[[Outcome], None]) -> Callable[[], None]:
        """Have all rows of one file classified. The dispatcher owns `rows` from the call on and closes them exactly
        once, as soon as no engine reads them, which may be after a cancellation.

        Args:
            rows: the decoded views.
            settle: called on the running event loop, later and at most once, with what came of it. An outcome that is
                already under way may still come right after a cancellation.

        Returns:
            What cancels; harmless once settled, or twice.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the model is being unloaded, or its engine rebuilt.
        """

    async def infer(self, rows: RowsLease, terms: Terms) -> Inference:
        """`submit`, and wait, no longer than until the deadline even if the engine is stuck.

        Raises:
            Overloaded, Unavailable: see `submit`.
            DeadlineExceeded: not done in time.
            EngineError: the engine failed on these rows.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Inference] = loop.create_future()
        settle = partial(tell, answer)
        cancel = self.submit(rows, terms, settle)
        timer = loop.call_later(max(0.0, terms.deadline - time.monotonic()), _expire, settle)
        try:
            return await answer
        finally:
            timer.cancel()
            cancel()


class LocalDispatcher(Dispatcher):
    """Submits to the batcher of this process.

    Args:
        origin: what an observer of the batches knows the current request by.
    """

    def __init__(self, batcher: Batcher, origin: Callable[[], object] = lambda: None) -> None:
        self._batcher = batcher
        self._origin = origin

    def submit(self, rows: RowsLease, terms: Terms, settle: Callable[[Outcome], None]) -> Callable[[], None]:
        """See `Dispatcher.submit`."""
        receiver = _OnLoop(asyncio.get_running_loop(), rows, settle)
        try:
            submission = self._batcher.submit(rows.rows, terms, receiver, self._origin())
        except BaseException:
            rows.close()
            raise

        def cancel() -> None:
            if self._batcher.cancel(submission):
                rows.close()

        return cancel


class _OnLoop:
    """A `Receiver` whose news arrive on the loop."""

    __slots__ = ("_lease", "loop", "settle")

    def __init__(self, loop: asyncio.AbstractEventLoop, lease: RowsLease, settle: Callable[[Outcome], None]) -> None:
        self.loop = loop
        self.settle = settle
        self._lease = lease

    def release(self) -> None:
        self._lease.close()


def tell(waiting: asyncio.Future[Answer], outcome: Answer | HieraError) -> None:
    """Tell who waits, unless it has left or was told already."""
    if waiting.done():
        return
    if isinstance(outcome, HieraError):
        waiting.set_exception(outcome)
    else:
        waiting.set_result(outcome)


def _expire(settle: Callable[[Outcome], None]) -> None:
    settle(DeadlineExceeded("the deadline passed before the engine had answered"))


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
