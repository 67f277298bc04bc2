"""Says no early: before a byte is decoded, when the queue is full or the deadline cannot be met.

Rows and bytes in flight are bounded, from the admission of a request to its answer. The wait is predicted from the work
that every model has in flight on a device, by its measured batch cost, so a burst on one model is seen by the others.
Callers take turns, and each one's work is done in order of deadline. So a request waits for what its own caller has
that is more urgent, for as much of others', and for the batch that runs; and it is let in only if those whom it
overtakes can bear it. No caller may take all the room.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from app.errors import Overloaded
from app.serving.backlog import Backlog, Place
from app.serving.demand import NOTHING, Demand, InFlight, Peers

# A refused caller that came back at once would only be refused again.
_MIN_RETRY_S = 0.05
# How many times its predicted wait a request must be able to bear. Half of what callers allow is left for what no
# prediction knows (a worker that is killed, a core that others take): a queue that is as long as its deadlines loses
# all of its work at the first stumble, and goes on losing it. A shorter one answers as many.
_HEADROOM = 2.0
# What is left of that to a request which others overtake.
_OVERTAKEN_HEADROOM = 1.5
# Where there are several callers, each may hold this many times what is left free (dynamic thresholds, Choudhury and
# Hahne 1998): one alone two thirds of the room, two together two fifths each, and a newcomer always finds some.
_HELD_TO_FREE = 2
# For how long a caller who has left is expected back.
_LATELY_S = 60.0


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
        self._backlog = Backlog()  # of what is in flight and not set aside
        self._total_rows = 0
        self._total_bytes = 0
        self._held: dict[str, InFlight] = {}  # by caller; none is nothing
        self._asked: tuple[str, float] = ("", -math.inf)  # who was the last to ask, and when
        self._asked_before: tuple[str, float] = ("", -math.inf)  # and of the others the last

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
            return self._all_s(device)

    def admit(self, demand: Demand) -> Reservation:
        """Reserve room for a request.

        Raises:
            Overloaded: no room, or the predicted wait ends after the deadline; `retry_after_s` says when it would fit.
        """
        reservation = Reservation(self, replace(demand, rows=0, nbytes=0))
        self._reserve(reservation, demand)
        return reservation

    def refusal(self, demand: Demand) -> Overloaded | None:
        """What `admit` would raise now; nothing is reserved. A refusal counts as one."""
        with self._lock:
            refusal = self._refusal(demand)
        if refusal is None:
            return None
        reason, error = refusal
        self._on_reject(demand.lane.model, reason)
        return error

    def _reserve(self, reservation: Reservation, more: Demand) -> None:
        with self._lock:
            if reservation.released:
                return
            held = reservation.held
            refusal = self._refusal(more, InFlight(held.rows, held.nbytes))
            if refusal is None:
                reservation.held = replace(held, rows=held.rows + more.rows, nbytes=held.nbytes + more.nbytes)
                if reservation.place is not None:
                    self._backlog.grow(reservation.place, more.rows)
                elif not reservation.aside:
                    self._join(reservation)
                self._count(more.caller, more.rows, more.nbytes)
        if refusal is not None:
            reason, error = refusal
            self._on_reject(more.lane.model, reason)
            raise error

    def _refusal(self, demand: Demand, own: InFlight = NOTHING) -> tuple[str, Overloaded] | None:
        """Why a demand is refused; of a request that has `own` already."""
        lane, rows, nbytes = demand.lane, demand.rows, demand.nbytes
        shared = self._is_shared(demand.caller)
        others = NOTHING if self._peers is None else self._peers.in_flight()
        total_rows, total_bytes = self._total_rows + others.rows, self._total_bytes + others.bytes
        if total_rows == 0 and total_bytes == 0:
            # Alone in the house: a prediction is no reason to refuse, and one request may be larger than the bounds.
            return None
        excess = total_rows + rows - self._max_rows
        if excess > 0:
            wait_s = min(self._all_s(lane.device), lane.predict_s(excess))
            return "queue_rows", _overloaded("the queue is full; try again later", wait_s)
        if total_bytes + nbytes > self._max_bytes:
            wait_s = self._all_s(lane.device)
            return "queue_bytes", _overloaded("too many bytes are being worked on; try again later", wait_s)
        free = InFlight(self._max_rows - total_rows - rows, self._max_bytes - total_bytes - nbytes)
        if shared and self._holds_too_much(demand, own, free):
            wait_s = min(self._all_s(lane.device), lane.predict_s(rows))
            return "share", _overloaded("this key has more in the queue than it leaves free; try again later", wait_s)
        return None if demand.decode_s is None else self._lateness(demand, demand.decode_s)

    def _lateness(self, demand: Demand, decode_s: float) -> tuple[str, Overloaded] | None:
        lane, rows, caller, deadline = demand.lane, demand.rows, demand.caller, demand.deadline
        # What was observed of a lane that stands empty may be long over, and only rows that are let in can show that.
        own_s = lane.predict_s(rows) if lane in self._backlog else min(lane.predict_s(rows), lane.measured_s(rows))
        before_s = self._backlog.seconds_before(lane.device, caller, deadline, own_s)
        if self._peers is not None:
            # Connections are spread over the processes, so of the others' work as much comes first as of what is here.
            # Where nothing is here, a caller who is told apart has little elsewhere, and waits for a turn of others.
            all_s = self._backlog.seconds().get(lane.device, 0.0)
            others_s = self._peers.backlog_s(lane.device)
            if all_s:
                before_s += others_s * before_s / all_s
            else:
                before_s += min(others_s, own_s) if caller else others_s
        now = self._clock()
        # Decoding of this request overlaps with the work before it.
        late_s = max(before_s, decode_s) + own_s - (deadline - now) / _HEADROOM
        if late_s <= 0:
            late_s = -self._backlog.shortest_spare_s(lane.device, caller, deadline, own_s, now, _OVERTAKEN_HEADROOM)
        if late_s > 0:
            return "deadline", _overloaded("the queue cannot make the deadline; try again later", late_s)
        return None

    def _all_s(self, device: str) -> float:
        others_s = 0.0 if self._peers is None else self._peers.backlog_s(device)
        return others_s + self._backlog.seconds().get(device, 0.0)

    def _is_shared(self, caller: str) -> bool:
        """Whether somebody else than this caller, who asks now, has something here or has asked lately."""
        now = self._clock()
        if self._asked[0] != caller:
            self._asked_before = self._asked
        self._asked = (caller, now)
        return now - self._asked_before[1] < _LATELY_S or len(self._held) > (caller in self._held)

    def _holds_too_much(self, demand: Demand, own: InFlight, free: InFlight) -> bool:
        """Whether a caller may not have what leaves `free`. Who has nothing else may have all of it."""
        held = self._held.get(demand.caller, NOTHING)
        if held == own:
            return False
        # Connections are spread over the processes that admit, so a caller has as much in each.
        everywhere = 1 if self._peers is None else self._peers.processes
        rows, nbytes = everywhere * held.rows + demand.rows, everywhere * held.bytes + demand.nbytes
        return rows > _HELD_TO_FREE * free.rows or nbytes > _HELD_TO_FREE * free.bytes

    def _count(self, caller: str, rows: int, nbytes: int) -> None:
        """So much more is in flight, or less."""
        held = self._held.get(caller, NOTHING)
        self._held[caller] = held = InFlight(held.rows + rows, held.bytes + nbytes)
        if held == NOTHING:
            del self._held[caller]
        self._total_rows += rows
        self._total_bytes += nbytes
        self._publish()

    def _publish(self) -> None:
        self._on_change(self._total_rows, self._total_bytes)
        if self._peers is not None:
            self._peers.publish(InFlight(self._total_rows, self._total_bytes), self._backlog.seconds())

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            if reservation.released:
                return
            reservation.released = True
            self._leave(reservation)
            held = reservation.held
            self._count(held.caller, -held.rows, -held.nbytes)

    def _set_aside(self, reservation: Reservation) -> None:
        with self._lock:
            if reservation.place is not None:
                reservation.aside = True
                self._leave(reservation)
                self._publish()

    def _resume(self, reservation: Reservation, decode_s: float) -> None:
        held = reservation.held
        with self._lock:
            if reservation.released or not reservation.aside:
                return
            refusal = self._lateness(held, decode_s) if self._all_s(held.lane.device) > 0 else None
            if refusal is None:
                reservation.aside = False
                self._join(reservation)
                self._publish()
        if refusal is not None:
            reason, error = refusal
            self._on_reject(held.lane.model, reason)
            raise error

    def _hurry(self, reservation: Reservation, deadline: float) -> None:
        with self._lock:
            reservation.held = replace(reservation.held, deadline=deadline)
            if reservation.place is not None:
                self._leave(reservation)
                self._join(reservation)

    def _join(self, reservation: Reservation) -> None:
        held = reservation.held
        reservation.place = self._backlog.join(held.lane, held.caller, held.rows, held.deadline)

    def _leave(self, reservation: Reservation) -> None:
        if reservation.place is not None:
            self._backlog.leave(reservation.place)
            reservation.place = None


class Reservation:
    """A request's share of what may be in flight, given back exactly once.

    Attributes:
        held: what was asked for and reserved so far.
    """

    __slots__ = ("_admission", "aside", "held", "place", "released")

    def __init__(self, admission: Admission, held: Demand) -> None:
        self._admission = admission
        self.held = held
        self.place: Place | None = None  # none while it is aside
        self.aside = False
        self.released = False

    def grow(self, *, rows: int = 0, nbytes: int = 0) -> None:
        """Reserve more, when a request turns out larger than it said; nothing after the release.

        Raises:
            Overloaded: no room for more; what was reserved before stays.
        """
        self._admission._reserve(self, replace(self.held, rows=rows, nbytes=nbytes, decode_s=None))

    def hurry(self, deadline: float) -> None:
        """Its answer must be there by then."""
        self._admission._hurry(self, deadline)

    def set_aside(self) -> None:
        """Its upload takes long: others' wait is not predicted from rows that may never come. The room stays taken."""
        self._admission._set_aside(self)

    def resume(self, decode_s: float) -> None:
        """Its upload is complete: after `set_aside`, judge the deadline again as `Admission.admit` does.

        Raises:
            Overloaded: the deadline cannot be made any more.
        """
        self._admission._resume(self, decode_s)

    def release(self) -> None:
        """Give everything back; idempotent."""
        self._admission._release(self)


def _overloaded(message: str, wait_s: float) -> Overloaded:
    return Overloaded(message, retry_after_s=max(wait_s, _MIN_RETRY_S))
