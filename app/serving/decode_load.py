"""How long a file will wait for a media worker, predicted from what decoding has lately taken.

A worker's own time says too little: beside a busy engine and a busy event loop on few cores, a file that takes 2 ms by
itself keeps the next one waiting for 5. So it is the whole time that counts, from the moment that a file began to wait,
divided by the files that were before it: those of the same caller with an earlier deadline, as many of each other
caller, and what the workers have in hand.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

# About the last twenty files count.
_WEIGHT = 0.05


class DecodeLoad:
    """Files in decoding for one task and what each adds to the wait. Used on one event loop.

    Args:
        workers: how many files are decoded at a time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = max(1, workers)
        self._deadlines: dict[str, list[float]] = {}  # by caller, of the files in decoding, ascending; none is empty
        self._seconds: float | None = None

    def enter(self, deadline: float, caller: str = "") -> float:
        """A file begins to wait for a worker.

        Returns:
            How many files each worker has until it is done, at least 1: for `observe`.
        """
        insort(self._deadlines.setdefault(caller, []), deadline)
        return self._turns(0, deadline, caller)

    def leave(self, deadline: float, caller: str = "") -> None:
        """A file is decoded, failed, or is no longer wanted."""
        mine = self._deadlines[caller]
        del mine[bisect_left(mine, deadline)]
        if not mine:
            del self._deadlines[caller]

    def observe(self, turns: float, seconds: float) -> None:
        """A file that entered as one of `turns` for its worker was decoded `seconds` later."""
        each_s = seconds / turns
        if self._seconds is None:
            self._seconds = each_s
        else:
            self._seconds += _WEIGHT * (each_s - self._seconds)

    def observe_expiry(self, turns: float, seconds: float) -> None:
        """The same of a file that was not decoded after `seconds`, when its deadline passed: it takes longer still.
        Without these, only files that were lucky would count."""
        if self._seconds is None or seconds / turns > self._seconds:
            self.observe(turns, seconds)

    def predict_s(self, files: int, deadline: float, caller: str = "") -> float:
        """Seconds until `files` more files of this deadline would be decoded; 0 until the first one has been seen, and
        for one that would be alone: what was last seen may be long over, and whoever it kept out could not show that.
        """
        if self._seconds is None or self._total + files <= 1:
            return 0.0
        return self._seconds * self._turns(files, deadline, caller)

    @property
    def _total(self) -> int:
        return sum(map(len, self._deadlines.values()))

    def _turns(self, more: int, deadline: float, caller: str) -> float:
        own = bisect_right(self._deadlines.get(caller, ()), deadline) + more
        before = own + sum(min(len(each), own) for other, each in self._deadlines.items() if other != caller)
        in_hand = min(self._total + more - before, self._workers)  # of those whose turn comes later
        return max(1.0, (before + in_hand) / self._workers)
