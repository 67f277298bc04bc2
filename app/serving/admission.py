"""Says no early: before a byte is decoded, when the queue is full or the deadline cannot be met.

Rows and bytes in flight are bounded, from the admission of a request to its answer. The wait is predicted from the work
that every model has in flight on a device, by its measured batch cost, so a burst on one model is seen by the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from app.errors import Overloaded

# A refused caller that came back at once would only be refused again.
_MIN_RETRY_S = 0.05
# How many times its predicted wait a request must be able to bear. Half of what callers allow is left for what no
# prediction knows (a worker that is killed, a core that others take): a queue that is as long as its deadlines loses
# all of its work at the first stumble, and goes on losing it. A shorter one answers as many.
_HEADROOM = 2.0


@dataclass(frozen=True)
class Lane:
    """Where a request's work will queue: a model on a device. `predict_s` gives the seconds that so many rows take by
    what was lately observed, `measured_s` by what was measured at warm-up."""

    model: str
    device: str
    predict_s: Callable[[int], float]
    measured_s: Callable[[int], float]


@dataclass(frozen=True)
class InFlight:
    """What has been admitted and not released."""

    rows: int
    bytes: int


NOTHING = InFlight(0, 0)


class Peers(Protocol):
    """Other processes that admit work for the same engines."""

    def publish(self, mine: InFlight, backlog_s: Mapping[str, float]) -> None:
        """This process has `mine` in flight, which is so many seconds of work by device."""
        ...

    def in_flight(self) -> InFlight:
        """What the others have in flight."""
        ...

    def backlog_s(self, device: str) -> float:
        """Seconds of the others' work on `device`."""
        ...


class Admission:
    """Counts what is in flight; thread-safe.

    Args:
        max_rows: most rows in flight, over all models.
        max_bytes: most bytes in flight: uploads and decoded rows together.
        on_reject: told the model and the reason of every refusal.
        on_change: told of what is in flight whenever that changes; it must be quick, as the lock is held.
        clock: monotonic seconds, those of the deadlines.
        peers: counted with what is in flight here; None when no other process shares the engines.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_bytes: int,
        on_reject: Callable[[str, str], None] = lambda model, reason: None,
        on_change: Callable[[int, int], None] = lambda rows, nbytes: None,
        clock: Callable[[], float] = time.monotonic,
        peers: Peers | None = None,
    ) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._on_reject = on_reject
        self._on_change = on_change
        self._clock = clock
        self._peers = peers
        self._lock = threading.Lock()
        self._rows: dict[Lane, int] = {}
        self._total_rows = 0
        self._total_bytes = 0

    @property
    def max_rows(self) -> int:
        """Most rows in flight: a request that has more would never find room among others."""
        return self._max_rows

    @property
    def in_flight(self) -> InFlight:
        with self._lock:
            return InFlight(self._total_rows, self._total_bytes)

    def predicted_wait_s(self, device: str) -> float:
        """Seconds until all that is in flight on a device will be done."""
        with self._lock:
            return self._backlog_s(device)

    def admit(self, lane: Lane, *, rows: int, nbytes: int, deadline: float, decode_s: float = 0.0) -> Reservation:
        """Reserve room for a request.

        Args:
            rows: rows that it will submit, as far as is known yet.
            nbytes: bytes of its upload and of its rows, likewise.
            deadline: when its answer must be there, by the clock.
            decode_s: predicted seconds from now until its rows are decoded.

        Raises:
            Overloaded: no room, or the predicted wait ends after the deadline; `retry_after_s` says when it would fit.
        """
        reservation = Reservation(self, lane)
        self._reserve(reservation, rows, nbytes, deadline, decode_s)
        return reservation

    def refusal(
        self, lane: Lane, *, rows: int, nbytes: int, deadline: float, decode_s: float = 0.0
    ) -> Overloaded | None:
        """What `admit` would raise now; nothing is reserved. A refusal counts as one."""
        with self._lock:
            refusal = self._refusal(lane, rows, nbytes, deadline, decode_s)
        if refusal is None:
            return None
        reason, error = refusal
        self._on_reject(lane.model, reason)
        return error

    def _reserve(
        self, reservation: Reservation, rows: int, nbytes: int, deadline: float | None, decode_s: float
    ) -> None:
        lane = reservation.lane
        with self._lock:
            if reservation.released:
                return
            refusal = self._refusal(lane, rows, nbytes, deadline, decode_s)
            if refusal is None:
                if not reservation.aside:
                    self._rows[lane] = self._rows.get(lane, 0) + rows
                self._total_rows += rows
                self._total_bytes += nbytes
                reservation.rows += rows
                reservation.nbytes += nbytes
                self._publish()
        if refusal is not None:
            reason, error = refusal
            self._on_reject(lane.model, reason)
            raise error

    def _refusal(
        self, lane: Lane, rows: int, nbytes: int, deadline: float | None, decode_s: float
    ) -> tuple[str, Overloaded] | None:
        others = NOTHING if self._peers is None else self._peers.in_flight()
        total_rows, total_bytes = self._total_rows + others.rows, self._total_bytes + others.bytes
        if total_rows == 0 and total_bytes == 0:
            # Alone in the house: a prediction is no reason to refuse, and one request may be larger than the bounds.
            return None
        backlog_s = self._backlog_s(lane.device)
        excess = total_rows + rows - self._max_rows
        if excess > 0:
            wait_s = min(backlog_s, lane.predict_s(excess))
            return "queue_rows", _overloaded("the queue is full; try again later", wait_s)
        if total_bytes + nbytes > self._max_bytes:
            return "queue_bytes", _overloaded("too many bytes are being worked on; try again later", backlog_s)
        return None if deadline is None else self._lateness(lane, rows, deadline, backlog_s, decode_s)

    def _lateness(
        self, lane: Lane, rows: int, deadline: float, backlog_s: float, decode_s: float
    ) -> tuple[str, Overloaded] | None:
        # What was observed of a lane that stands empty may be long over, and only rows that are let in can show that.
        own_s = lane.predict_s(rows) if lane in self._rows else min(lane.predict_s(rows), lane.measured_s(rows))
        # Decoding of this request overlaps with the work before it.
        needed_s = _HEADROOM * (max(backlog_s, decode_s) + own_s)
        late_s = needed_s - (deadline - self._clock())
        if late_s > 0:
            return "deadline", _overloaded("the queue cannot make the deadline; try again later", late_s / _HEADROOM)
        return None

    def _backlog_s(self, device: str) -> float:
        others_s = 0.0 if self._peers is None else self._peers.backlog_s(device)
        return others_s + sum(lane.predict_s(rows) for lane, rows in self._rows.items() if lane.device == device)

    def _publish(self) -> None:
        self._on_change(self._total_rows, self._total_bytes)
        if self._peers is None:
            return
        backlog_s: dict[str, float] = {}
        for lane, rows in self._rows.items():
            backlog_s[lane.device] = backlog_s.get(lane.device, 0.0) + lane.predict_s(rows)
        self._peers.publish(InFlight(self._total_rows, self._total_bytes), backlog_s)

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            if reservation.released:
                return
            reservation.released = True
            if not reservation.aside:
                self._forget_rows(reservation)
            self._total_rows -= reservation.rows
            self._total_bytes -= reservation.nbytes
            self._publish()

    def _set_aside(self, reservation: Reservation) -> None:
        with self._lock:
            if not reservation.released and not reservation.aside:
                reservation.aside = True
                self._forget_rows(reservation)
                self._publish()

    def _resume(self, reservation: Reservation, deadline: float, decode_s: float) -> None:
        lane, rows = reservation.lane, reservation.rows
        with self._lock:
            if reservation.released or not reservation.aside:
                return
            backlog_s = self._backlog_s(lane.device)
            refusal = self._lateness(lane, rows, deadline, backlog_s, decode_s) if backlog_s else None
            if refusal is None:
                reservation.aside = False
                self._rows[lane] = self._rows.get(lane, 0) + rows
                self._publish()
        if refusal is not None:
            reason, error = refusal
            self._on_reject(lane.model, reason)
            raise error

    def _forget_rows(self, reservation: Reservation) -> None:
        left = self._rows[reservation.lane] - reservation.rows
        if left:
            self._rows[reservation.lane] = left
        else:
            del self._rows[reservation.lane]


class Reservation:
    """A request's share of what may be in flight, given back exactly once."""

    __slots__ = ("_admission", "aside", "lane", "nbytes", "released", "rows")

    def __init__(self, admission: Admission, lane: Lane) -> None:
        self._admission = admission
        self.lane = lane
        self.rows = 0
        self.nbytes = 0
        self.aside = False
        self.released = False

    def grow(self, *, rows: int = 0, nbytes: int = 0) -> None:
        """Reserve more, when a request turns out larger than it said; nothing after the release.

        Raises:
            Overloaded: no room for more; what was reserved before stays.
        """
        self._admission._reserve(self, rows, nbytes, None, 0.0)

    def set_aside(self) -> None:
        """Its upload takes long: others' wait is not predicted from rows that may never come. The room stays taken."""
        self._admission._set_aside(self)

    def resume(self, deadline: float, decode_s: float) -> None:
        """Its upload is complete: after `set_aside`, judge the deadline again as `Admission.admit` does.

        Raises:
            Overloaded: the deadline cannot be made any more.
        """
        self._admission._resume(self, deadline, decode_s)

    def release(self) -> None:
        """Give everything back; idempotent."""
        self._admission._release(self)


def _overloaded(message: str, wait_s: float) -> Overloaded:
    return Overloaded(message, retry_after_s=max(wait_s, _MIN_RETRY_S))
