"""Whose turn it is: callers who wait for the same thing get equal parts of it, each in order of its own deadlines."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Items that wait, a line for each caller (start-time fair queueing, Goyal et al. 1996, with equal weights).

    Next is the most urgent item of the caller who has had least, since last nobody waited. Who comes later begins with
    as much as the one who was given something last: absence is no credit. With a single caller all is in order of
    deadline. Not thread-safe.
    """

    def __init__(self) -> None:
        self._lines: dict[str, list[tuple[float, int, Item]]] = {}  # heaps; none is empty
        self._had: dict[str, float] = {}
        self._last = 0.0  # what the one who was given something last had had before
        self._numbers = itertools.count()  # among equal deadlines, first come first served

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Item]:
        """All that wait, in no order."""
        return (item for line in self._lines.values() for _, _, item in line)

    def add(self, item: Item, caller: str, deadline: float) -> None:
        """Let `item` wait."""
        if not self._lines:
            self._had.clear()
            self._last = 0.0
        line = self._lines.get(caller)
        if line is None:
            self._had[caller] = max(self._had.get(caller, 0.0), self._last)
            line = self._lines[caller] = []
        heapq.heappush(line, (deadline, next(self._numbers), item))

    def first(self) -> Item:
        """The item whose turn it is; it stays. There must be one."""
        return self._lines[self._next_caller()][0][2]

    def pop(self) -> Item:
        """Take the item whose turn it is. There must be one."""
        caller = self._next_caller()
        line = self._lines[caller]
        item = heapq.heappop(line)[2]
        if not line:
            del self._lines[caller]
        return item

    def charge(self, caller: str, cost: float) -> None:
        """`caller` is given this much of what all wait for, in whatever unit."""
        had = self._had.get(caller, 0.0)
        self._last = max(self._last, had)
        self._had[caller] = had + cost

    def correct(self, caller: str, cost: float) -> None:
        """What `caller` was charged before was too little by this, or too much where it is negative."""
        self._had[caller] = self._had.get(caller, 0.0) + cost

    def most_urgent(self) -> Iterator[Item]:
        """The most urgent item of each caller; the lines must stay as they are meanwhile."""
        return (line[0][2] for line in self._lines.values())

    def remove(self, item: Item, caller: str) -> None:
        """`item` waits no more; harmless if it does not."""
        line = [entry for entry in self._lines.get(caller, ()) if entry[2] is not item]
        if line:
            heapq.heapify(line)
            self._lines[caller] = line
        else:
            self._lines.pop(caller, None)

    def clear(self) -> None:
        """Nothing waits any more."""
        self._lines.clear()

    def _next_caller(self) -> str:
        lines = self._lines
        if len(lines) == 1:
            return next(iter(lines))
        return min(lines, key=lambda caller: (self._had[caller], lines[caller][0][0]))
