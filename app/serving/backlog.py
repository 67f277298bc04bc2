"""The work that waits for each device, in order of deadline, and what a newcomer's deadline means in it.

Media workers and batchers take the most urgent first, so a request waits for what is more urgent than itself and for
the batch that runs; and whom it overtakes waits for it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

_by_deadline = attrgetter("deadline")


@dataclass(frozen=True)
class Lane:
    """Where a request's work will queue: a model on a device. `predict_s` gives the seconds that so many rows take by
    what was lately observed, `measured_s` by what was measured at warm-up; `batch_s` those of the largest batch, which
    nobody interrupts."""

    model: str
    device: str
    predict_s: Callable[[int], float]
    measured_s: Callable[[int], float]
    batch_s: Callable[[], float]


@dataclass(eq=False, slots=True)
class Place:
    """A request's place: so many rows, until a deadline by the monotonic clock."""

    lane: Lane
    deadline: float
    rows: int


class Backlog:
    """Places in the queues of all devices. Not thread-safe."""

    def __init__(self) -> None:
        self._rows: dict[Lane, int] = {}
        self._queues: dict[str, list[Place]] = {}  # by device, the most urgent first

    def __contains__(self, lane: Lane) -> bool:
        """Whether anything waits there."""
        return lane in self._rows

    def join(self, lane: Lane, rows: int, deadline: float) -> Place:
        """Begin to wait."""
        place = Place(lane, deadline, 0)
        insort(self._queues.setdefault(lane.device, []), place, key=_by_deadline)
        self.grow(place, rows)
        return place

    def grow(self, place: Place, rows: int) -> None:
        """So many more rows wait there."""
        place.rows += rows
        self._rows[place.lane] = self._rows.get(place.lane, 0) + rows

    def leave(self, place: Place) -> None:
        """Wait no more."""
        queue = self._queues[place.lane.device]
        del queue[queue.index(place, bisect_left(queue, place.deadline, key=_by_deadline))]
        left = self._rows[place.lane] - place.rows
        if left:
            self._rows[place.lane] = left
        else:
            del self._rows[place.lane]

    def seconds(self) -> dict[str, float]:
        """Of all work, by device."""
        seconds: dict[str, float] = {}
        for lane, rows in self._rows.items():
            seconds[lane.device] = seconds.get(lane.device, 0.0) + lane.predict_s(rows)
        return seconds

    def position(self, device: str, deadline: float) -> int:
        """How many are more urgent than a newcomer, or as urgent; it overtakes the others."""
        return bisect_right(self._queues.get(device, []), deadline, key=_by_deadline)

    def seconds_before(self, device: str, position: int) -> float:
        """Of the work before a newcomer: that of the more urgent, and of the others the batch that may be running."""
        queue = self._queues.get(device, [])
        counts_first = position <= len(queue) // 2  # of two halves, count the shorter one
        counted: dict[Lane, int] = {}
        for place in queue[:position] if counts_first else queue[position:]:
            counted[place.lane] = counted.get(place.lane, 0) + place.rows
        seconds = 0.0
        for lane, rows in self._rows.items():
            if lane.device == device:
                first = counted.get(lane, 0) if counts_first else rows - counted.get(lane, 0)
                lane_s = lane.predict_s(rows)
                seconds += lane_s if first == rows else min(lane_s, lane.predict_s(first) + lane.batch_s())
        return seconds

    def shortest_spare_s(self, device: str, position: int, new_s: float, now: float, headroom: float) -> float:
        """What a newcomer's `new_s` seconds of work leave to the worst off of those whom it overtakes: the seconds
        until its deadline, divided by `headroom`, less those until it is done. Below 0, it should not come in; who is
        lost even without it does not count. Infinite where nobody is overtaken."""
        overtaken = self._queues.get(device, [])[position:]
        spare_s = math.inf
        if not overtaken:
            return spare_s
        row_s = {lane: lane.predict_s(rows) / max(rows, 1) for lane, rows in self._rows.items()}
        done_s = self.seconds()[device] - sum(each.rows * row_s[each.lane] for each in overtaken)
        for each in overtaken:
            done_s += each.rows * row_s[each.lane]
            left_s = each.deadline - now
            if done_s <= left_s:
                spare_s = min(spare_s, left_s / headroom - (done_s + new_s))
        return spare_s
