"""How long a file will wait for a media worker, predicted from what decoding has lately taken.

What a worker needs for a file differs from caller to caller, and is known when it is done. But that says too little:
beside a busy engine and a busy event loop on few cores, a file that takes 2 ms by itself keeps the next one waiting
for 5. So the whole time is observed too, from the moment that a file began to wait, and compared with what the workers
alone should have taken for what was before it: the caller's own files with an earlier deadline, as much of each other
caller's, and half of what the workers have in hand.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import NamedTuple

# About the last twenty files count.
_WEIGHT = 0.05


class Expected(NamedTuple):
    """When a file should be decoded, as far as the workers alone count: in seconds, or where nothing is known of the
    callers' files yet, in files that are all alike."""

    amount: float
    in_seconds: bool

    def seconds(self, file_s: float) -> float:
        return self.amount if self.in_seconds else self.amount * file_s


class DecodeLoad:
    """Files in decoding for one task and what each adds to the wait. Used on one event loop.

    Args:
        workers: how many files are decoded at a time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = max(1, workers)
        self._deadlines: dict[str, list[float]] = {}  # by caller, of the files in decoding, ascending; none is empty
        self._file_s: dict[str, float] = {}  # by caller, what a worker takes for one of its files
        self._expected_s = 0.0  # what the workers alone should have taken, and what it took
        self._taken_s = 0.0

    def enter(self, deadline: float, caller: str = "") -> Expected:
        """A file begins to wait for a worker. What is returned is for `observe`."""
        insort(self._deadlines.setdefault(caller, []), deadline)
        return Expected(self._workers_s(0, deadline, caller), in_seconds=bool(self._file_s))

    def leave(self, deadline: float, caller: str = "") -> None:
        """A file is decoded, failed, or is no longer wanted."""
        mine = self._deadlines[caller]
        del mine[bisect_left(mine, deadline)]
        if not mine:
            del self._deadlines[caller]

    def observe(self, expected: Expected, taken_s: float, worker_s: float, caller: str = "") -> None:
        """A file that entered so was decoded after `taken_s`, of which a worker took `worker_s`."""
        known_s = self._file_s.get(caller, worker_s)
        self._file_s[caller] = known_s + _WEIGHT * (worker_s - known_s)
        self._compare(expected.seconds(worker_s), taken_s)

    def observe_expiry(self, expected: Expected, taken_s: float, caller: str = "") -> None:
        """The same of a file that was not decoded after `taken_s`, when its deadline passed: it takes longer still.
        Without these, only files that were lucky would count."""
        if not self._file_s:
            self._file_s[caller] = taken_s / expected.amount
        expected_s = expected.seconds(taken_s / expected.amount)
        if taken_s > self._stretch * expected_s:
            self._compare(expected_s, taken_s)

    def predict_s(self, files: int, deadline: float, caller: str = "") -> float:
        """Seconds until `files` more files of this deadline would be decoded; 0 until the first one has been seen, and
        for one that would be alone: what was last seen may be long over, and whoever it kept out could not show that.
        """
        if not self._file_s or sum(map(len, self._deadlines.values())) + files <= 1:
            return 0.0
        return self._stretch * self._workers_s(files, deadline, caller)

    @property
    def _stretch(self) -> float:
        return self._taken_s / self._expected_s if self._expected_s else 1.0

    def _compare(self, expected_s: float, taken_s: float) -> None:
        weight = _WEIGHT if self._expected_s else 1.0
        self._expected_s += weight * (expected_s - self._expected_s)
        self._taken_s += weight * (taken_s - self._taken_s)

    def _workers_s(self, more: int, deadline: float, caller: str) -> float:
        """Seconds that the workers alone take until the caller's files up to that deadline, and so many more, are done;
        as if each file took one, where nothing is known."""
        least_s = min(self._file_s.values(), default=1.0)
        # Of who has nothing here the best is assumed: what it sent last may be long over, too.
        file_s = self._file_s.get(caller, least_s) if caller in self._deadlines else least_s
        mine = self._deadlines.get(caller, [])
        own = bisect_right(mine, deadline)
        before_s = own_s = (own + more) * file_s
        later, later_s = float(len(mine) - own), (len(mine) - own) * file_s
        for other, theirs in self._deadlines.items():
            if other != caller:
                each_s = self._file_s.get(other, least_s)
                turn_s = min(len(theirs) * each_s, own_s)
                before_s += turn_s
                later += len(theirs) - turn_s / each_s
                later_s += len(theirs) * each_s - turn_s
        in_hand_s = later_s * min(1.0, self._workers / later) / 2 if later > 0 else 0.0
        return max(file_s, (before_s + in_hand_s) / self._workers)
