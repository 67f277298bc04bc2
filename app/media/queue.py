"""Jobs that wait for a worker, the most urgent first."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable

from app.errors import DeadlineExceeded, HieraError
from app.media.shared import DecodedRows, SharedBytes
from app.media.spec import DecodeJob
from app.media.timer import Timer


class Ticket:
    """A job, from its arrival to its one outcome.

    Attributes:
        deadline: `time.monotonic()` seconds.
        future: the outcome; cancelled when nobody waits for it any more.
        attempts: how often a worker was given the job.
    """

    __slots__ = ("attempts", "body", "deadline", "future", "job", "number", "timer")

    def __init__(self, number: int, body: SharedBytes, job: DecodeJob, deadline: float) -> None:
        self.number = number
        self.body = body
        self.job = job
        self.deadline = deadline
        self.future: asyncio.Future[DecodedRows] = asyncio.get_running_loop().create_future()
        self.attempts = 0
        self.timer = Timer()

    def __lt__(self, other: Ticket) -> bool:
        return (self.deadline, self.number) < (other.deadline, other.number)

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def fail(self, error: HieraError) -> None:
        """Settle with `error`, unless it is settled or nobody waits."""
        self.timer.cancel()
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        self.fail(DeadlineExceeded("the deadline passed before the file was decoded"))


class DeadlineQueue:
    """Tickets in order of deadline. One that expires while it waits is failed at that moment."""

    def __init__(self) -> None:
        self._heap: list[Ticket] = []  # settled tickets stay until they come up, at the latest at their deadline

    def __len__(self) -> int:
        """How many wait in earnest."""
        return sum(not ticket.future.done() for ticket in self._heap)

    def push(self, ticket: Ticket) -> None:
        """Let `ticket` wait."""
        ticket.timer.set(ticket.remaining_s, ticket.expire)
        heapq.heappush(self._heap, ticket)

    def pop(self) -> Ticket | None:
        """The most urgent ticket that is neither settled nor too late; None if there is none."""
        while self._heap:
            ticket = heapq.heappop(self._heap)
            if ticket.future.done():
                continue
            if ticket.remaining_s > 0:
                ticket.timer.cancel()
                return ticket
            ticket.expire()
        return None

    def fail_all(self, error: Callable[[], HieraError]) -> None:
        """Settle every ticket that waits."""
        for ticket in self._heap:
            ticket.fail(error())
        self._heap.clear()
