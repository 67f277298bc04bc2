"""Jobs that wait for a worker: callers take turns, and each one's most urgent job goes first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from app.errors import DeadlineExceeded, HieraError
from app.media.shared import DecodedRows, SharedBytes
from app.media.spec import DecodeJob
from app.media.timer import Timer
from app.turns import Turns

_WEIGHT = 0.1  # about a caller's last ten jobs count


class Ticket:
    """A job, from its arrival to its one outcome.

    Attributes:
        deadline: `time.monotonic()` seconds.
        caller: whose turn it takes.
        future: the outcome; cancelled when nobody waits for it any more.
        attempts: how often a worker was given the job.
        charged_s: what its caller's turn was charged for it.
    """

    __slots__ = ("attempts", "body", "caller", "charged_s", "deadline", "future", "job", "number", "timer")

    def __init__(self, number: int, body: SharedBytes, job: DecodeJob, deadline: float, caller: str = "") -> None:
        self.number = number
        self.body = body
        self.job = job
        self.deadline = deadline
        self.caller = caller
        self.future: asyncio.Future[DecodedRows] = asyncio.get_running_loop().create_future()
        self.attempts = 0
        self.charged_s = 0.0
        self.timer = Timer()

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


class JobQueue:
    """Tickets in their callers' turns, of one caller in order of deadline. One that expires while it waits is failed at
    that moment.

    A turn costs the time that a worker takes. It is charged when the job begins, as what the caller's jobs take as a
    rule, or whoever has long ones could have every worker before the first one is done; and corrected by `done`.
    """

    def __init__(self) -> None:
        self._turns: Turns[Ticket] = Turns()  # settled tickets stay until they come up
        self._usual_s: dict[str, float] = {}  # of a job, by caller

    def __len__(self) -> int:
        """How many wait in earnest."""
        return sum(not ticket.future.done() for ticket in self._turns)

    def push(self, ticket: Ticket) -> None:
        """Let `ticket` wait."""
        ticket.timer.set(ticket.remaining_s, ticket.expire)
        self._turns.add(ticket, ticket.caller, ticket.deadline)

    def pop(self) -> Ticket | None:
        """The ticket whose turn it is, neither settled nor too late; None if there is none."""
        while self._turns:
            ticket = self._turns.pop()
            if ticket.future.done():
                continue
            if ticket.remaining_s > 0:
                ticket.timer.cancel()
                ticket.charged_s = self._usual_s.get(ticket.caller, 0.0)
                self._turns.charge(ticket.caller, ticket.charged_s)
                return ticket
            ticket.expire()
        return None

    def done(self, ticket: Ticket, seconds: float) -> None:
        """A worker was `seconds` at work on `ticket`, and no longer is."""
        self._turns.correct(ticket.caller, seconds - ticket.charged_s)
        usual_s = self._usual_s.get(ticket.caller, seconds)
        self._usual_s[ticket.caller] = usual_s + _WEIGHT * (seconds - usual_s)

    def fail_all(self, error: Callable[[], HieraError]) -> None:
        """Settle every ticket that waits."""
        for ticket in self._turns:
            ticket.fail(error())
        self._turns.clear()
