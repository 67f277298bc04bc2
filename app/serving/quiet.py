"""Quiet for measuring: while one model is being timed, no other is being built."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Quiet:
    """Many may be busy at a time, or one may measure.

    Args:
        patience_s: how long to wait for the others. A build that hangs must not keep the other models from service, and
            a measurement that was disturbed is corrected while serving.
    """

    def __init__(self, patience_s: float = 60.0) -> None:
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._busy = 0
        self._measuring = False

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around work that would disturb a measurement; waits for one that is going on."""
        with self._changed:
            self._changed.wait_for(lambda: not self._measuring, self._patience_s)
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Around a measurement; waits until nobody is busy or measuring."""
        with self._changed:
            self._changed.wait_for(lambda: not self._measuring and not self._busy, self._patience_s)
            self._measuring = True
        try:
            yield
        finally:
            with self._changed:
                self._measuring = False
                self._changed.notify_all()
