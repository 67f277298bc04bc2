"""How long a file will wait for a media worker, predicted from what decoding has lately taken."""

from __future__ import annotations

# About the last twenty files count.
_WEIGHT = 0.05


class DecodeLoad:
    """Files in decoding for one task and their usual cost. Used on one event loop.

    Args:
        workers: how many files are decoded at a time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = max(1, workers)
        self._in_decode = 0
        self._seconds: float | None = None

    def enter(self) -> None:
        """A file begins to wait for a worker."""
        self._in_decode += 1

    def leave(self) -> None:
        """A file is decoded, failed, or is no longer wanted."""
        self._in_decode -= 1

    def observe(self, seconds: float) -> None:
        """A worker took `seconds` for a file."""
        if self._seconds is None:
            self._seconds = seconds
        else:
            self._seconds += _WEIGHT * (seconds - self._seconds)

    def predict_s(self, files: int) -> float:
        """Seconds until `files` more files would be decoded; 0 until the first one has been seen."""
        if self._seconds is None:
            return 0.0
        return self._seconds * max(1.0, (self._in_decode + files) / self._workers)
