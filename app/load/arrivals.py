"""When an open-loop generator sends: at times drawn beforehand, whether or not the server keeps up."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator


def poisson_arrivals(rate_per_s: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due: independent arrivals, exponential gaps of mean 1 / rate."""
    draw = random.Random(seed)  # noqa: S311 - arrivals need no secrecy
    due_s = draw.expovariate(rate_per_s)
    while due_s < seconds:
        yield due_s
        due_s += draw.expovariate(rate_per_s)


async def keep_time(arrivals: Iterator[float], started_s: float) -> AsyncIterator[float]:
    """Yield each arrival's `time.perf_counter()` when it is due.

    Event loops keep time in whole milliseconds, which is as much as a small request takes; a sleeping thread is
    woken within some 0.06 ms.
    """
    loop = asyncio.get_running_loop()
    due: asyncio.Queue[float | None] = asyncio.Queue()
    stopped = threading.Event()

    def sleeper() -> None:
        for arrival in arrivals:
            wait_s = started_s + arrival - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)
            if stopped.is_set():
                return
            loop.call_soon_threadsafe(due.put_nowait, started_s + arrival)
        loop.call_soon_threadsafe(due.put_nowait, None)

    thread = threading.Thread(target=sleeper, name="arrivals", daemon=True)
    thread.start()
    try:
        while (moment := await due.get()) is not None:
            yield moment
    finally:
        stopped.set()
