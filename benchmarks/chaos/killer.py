"""Kills media workers by chance, as the kernel does when memory runs out: with SIGKILL, by process id."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from types import TracebackType

from app.load.processes import media_workers


class Killer:
    """`with Killer(pid, per_s=0.3) as killer: …` kills media workers of the server `pid`, so many a second on average.

    `killed` counts them.
    """

    def __init__(self, pid: int, per_s: float, seed: int = 0) -> None:
        self.killed = 0
        self._pid = pid
        self._per_s = per_s
        self._draw = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kill, name="killer", daemon=True)

    def __enter__(self) -> Killer:
        if self._per_s > 0:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def _kill(self) -> None:
        while not self._stop.wait(self._draw.expovariate(self._per_s)):
            victims = media_workers(self._pid)
            if victims:
                with contextlib.suppress(ProcessLookupError):  # it ended by itself
                    os.kill(self._draw.choice(victims), signal.SIGKILL)
                    self.killed += 1
