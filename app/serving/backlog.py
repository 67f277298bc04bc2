"""The work that waits for each device, and what a newcomer's deadline means in it.

Media workers and batchers let callers take turns, and do each caller's most urgent work first. So a request waits for
what its own caller has that is more urgent, for as much of every other caller's work, and for the batch that runs; and
whom it overtakes waits for it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter

_by_deadline = attrgetter("deadline")
_LOOKED_AT = 64  # places of a line


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
    """A request's place: so many rows of a caller, until a deadline by the monotonic clock."""

    lane: Lane
    caller: str
    deadline: float
    rows: int


@dataclass(slots=True)
class _Line:
    """One caller's work on one device."""

    places: list[Place] = field(default_factory=list)  # the most urgent first
    rows: dict[Lane, int] = field(default_factory=dict)

    def rows_before(self, deadline: float) -> Mapping[Lane, int]:
        """The rows that are as urgent as a newcomer's, or more so."""
        position = bisect_right(self.places, deadline, key=_by_deadline)
        if position <= len(self.places) // 2:  # of two halves, count the shorter one
            return _count(self.places[:position])
        later = _count(self.places[position:])
        return {lane: rows - later.get(lane, 0) for lane, rows in self.rows.items()}


class Backlog:
    """Places in the queues of all devices. Not thread-safe."""

    def __init__(self) -> None:
        self._rows: dict[Lane, int] = {}
        self._lines: dict[str, dict[str, _Line]] = {}  # by device and caller; none is empty

    def __contains__(self, lane: Lane) -> bool:
        """Whether anything waits there."""
        return lane in self._rows

    def join(self, lane: Lane, caller: str, rows: int, deadline: float) -> Place:
        """Begin to wait."""
        place = Place(lane, caller, deadline, 0)
        line = self._lines.setdefault(lane.device, {}).setdefault(caller, _Line())
        insort(line.places, place, key=_by_deadline)
        self.grow(place, rows)
        return place

    def grow(self, place: Place, rows: int) -> None:
        """So many more rows wait there."""
        place.rows += rows
        for counts in (self._rows, self._lines[place.lane.device][place.caller].rows):
            counts[place.lane] = counts.get(place.lane, 0) + rows

    def leave(self, place: Place) -> None:
        """Wait no more."""
        lines = self._lines[place.lane.device]
        line = lines[place.caller]
        del line.places[line.places.index(place, bisect_left(line.places, place.deadline, key=_by_deadline))]
        for counts in (self._rows, line.rows):
            left = counts.get(place.lane, 0) - place.rows
            if left:
                counts[place.lane] = left
            else:
                counts.pop(place.lane, None)
        if not line.places:
            del lines[place.caller]

    def seconds(self) -> dict[str, float]:
        """Of all work, by device."""
        seconds: dict[str, float] = {}
        for lane, rows in self._rows.items():
            seconds[lane.device] = seconds.get(lane.device, 0.0) + lane.predict_s(rows)
        return seconds

    def seconds_before(self, device: str, caller: str, deadline: float, own_s: float) -> float:
        """Of the work before a newcomer's `own_s` seconds: what its caller has that is more urgent, as much of each
        other caller's, and of the rest the batch that may be running."""
        lines = self._lines.get(device, {})
        mine = lines.get(caller)
        first: dict[Lane, float] = dict(mine.rows_before(deadline)) if mine else {}
        if len(lines) > (mine is not None):
            row_s = self._row_s()
            turn_s = own_s + _seconds(first, row_s)
            for other, line in lines.items():
                if other != caller:
                    share = min(1.0, turn_s / max(_seconds(line.rows, row_s), 1e-9))
                    for lane, rows in line.rows.items():
                        first[lane] = first.get(lane, 0.0) + share * rows
        seconds = 0.0
        for lane, rows in self._rows.items():
            if lane.device == device:
                before = math.ceil(first.get(lane, 0.0))
                lane_s = lane.predict_s(rows)
                seconds += lane_s if before >= rows else min(lane_s, lane.predict_s(before) + lane.batch_s())
        return seconds

    def shortest_spare_s(
        self, device: str, caller: str, deadline: float, own_s: float, now: float, headroom: float
    ) -> float:
        """What a newcomer's `own_s` seconds of work leave to the worst off of those whom it makes wait longer: the
        seconds until its deadline, divided by `headroom`, less those until it is done. Below 0, it should not come in;
        who is lost even without it does not count. Infinite where nobody waits longer."""
        lines = self._lines.get(device, {})
        if len(lines) <= (caller in lines) and not any(line.places[-1].deadline > deadline for line in lines.values()):
            return math.inf  # at the end of the only line
        row_s = self._row_s()
        work_s = {each: _seconds(line.rows, row_s) for each, line in lines.items()}
        today, then = _Turns(work_s.values()), _Turns((work_s | {caller: work_s.get(caller, 0.0) + own_s}).values())
        spare_s = math.inf
        for each, line in lines.items():
            if each == caller:
                start, shift_s = bisect_right(line.places, deadline, key=_by_deadline), own_s
            elif work_s[each] <= work_s.get(caller, 0.0):
                continue  # every turn of theirs comes before the newcomer's
            else:
                start, shift_s = 0, 0.0
            if start == len(line.places):
                continue
            done_s = list(accumulate(place.rows * row_s.get(place.lane, 0.0) for place in line.places))
            # Neighbours are about as badly off: some of a long line stand for all.
            step = max(1, (len(line.places) - start) // _LOOKED_AT)
            for at in range(len(line.places) - 1, start - 1, -step):
                place, own_done_s = line.places[at], done_s[at]
                before_s, after_s = today.done_s(own_done_s), then.done_s(own_done_s + shift_s)
                left_s = place.deadline - now
                if before_s < after_s and before_s <= left_s:
                    spare_s = min(spare_s, left_s / headroom - after_s)
        return spare_s

    def _row_s(self) -> dict[Lane, float]:
        """Seconds of a row of each lane, as deep as its queue is."""
        return {lane: lane.predict_s(rows) / max(rows, 1) for lane, rows in self._rows.items()}


class _Turns:
    """When work is done by callers who take turns, each having so many seconds of it."""

    def __init__(self, work_s: Iterable[float]) -> None:
        self._work_s = sorted(work_s)
        self._sums_s = [0.0, *accumulate(self._work_s)]

    def done_s(self, own_s: float) -> float:
        """Seconds until a caller has had `own_s` of its work done: every other one has had as much by then, or all."""
        done = bisect_left(self._work_s, own_s)
        return self._sums_s[done] + (len(self._work_s) - done) * own_s


def _count(places: Iterable[Place]) -> dict[Lane, int]:
    counts: dict[Lane, int] = {}
    for place in places:
        counts[place.lane] = counts.get(place.lane, 0) + place.rows
    return counts


def _seconds(rows: Mapping[Lane, float], row_s: Mapping[Lane, float]) -> float:
    return sum(count * row_s.get(lane, 0.0) for lane, count in rows.items())
