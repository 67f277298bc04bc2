"""What the tests of the pool share: pools of obedient hostile workers, and what the operating system says of us."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.media.limits import MediaLimits
from app.media.pool import MediaPool
from app.media.shared import DecodedRows, SharedBytes
from app.media.spec import DecodeJob, ImageSpec, VideoSpec

HOSTILE_WORKER = (sys.executable, "-P", "-s", str(Path(__file__).with_name("hostile_worker.py")))
PHOTO = DecodeJob(ImageSpec(resize_short_side=36, height=32, width=24))
CLIP = DecodeJob(
    VideoSpec(frames=4, stride=1, target_fps=8, mode="dense", resize_short_side=36, height=32, width=32), crops=3
)


class Counts:
    """A PoolObserver that remembers."""

    def __init__(self) -> None:
        self.states: dict[str, int] = {}
        self.restarts: Counter[str] = Counter()

    def workers(self, state: str, count: int) -> None:
        self.states[state] = count

    def restarted(self, reason: str) -> None:
        self.restarts[reason] += 1


def new_pool(**options: Any) -> MediaPool:
    """A pool of one image and one video worker that do as the upload says, not started."""
    defaults: dict[str, Any] = {
        "image_workers": 1,
        "video_workers": 1,
        "limits": MediaLimits(),
        "worker_memory_bytes": 512 << 20,
        "image_timeout_s": 30.0,
        "video_timeout_s": 30.0,
        "command": HOSTILE_WORKER,
    }
    return MediaPool(**{**defaults, **options})


@asynccontextmanager
async def a_pool(**options: Any) -> AsyncIterator[tuple[MediaPool, Counts]]:
    """A started pool of one image and one video worker that do as the upload says, closed at the end."""
    counts = Counts()
    pool = new_pool(observer=counts, **options)
    await pool.start()
    try:
        yield pool, counts
    finally:
        await pool.close(5.0)


async def order(
    pool: MediaPool, data: str | bytes, job: DecodeJob = PHOTO, within_s: float = 60.0, caller: str = ""
) -> DecodedRows:
    """Have `data` decoded and the upload closed."""
    with SharedBytes.of(data.encode() if isinstance(data, str) else data) as body:
        return await pool.decode(body, job, time.monotonic() + within_s, caller)


async def found(pool: MediaPool, data: str, job: DecodeJob = PHOTO) -> str:
    """What the worker reports in answer to an order."""
    with await order(pool, data, job) as rows:
        return rows.info.format


async def until(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait for something that the other processes bring about; fail if it does not come."""
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            raise AssertionError("what was waited for did not happen")
        await asyncio.sleep(0.01)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """Play an asynchronous scene in a loop of its own."""

    async def play() -> None:
        await scene()

    asyncio.run(play())


_of_others: set[int] = set()


def leave_out_children_of_others() -> None:
    """Call it before a test: what earlier tests or their libraries have started is none of the pool's."""
    _of_others.clear()
    _of_others.update(children())


def children() -> set[int]:
    """The processes that this one started in this test and has not reaped, zombies included: fork servers."""
    return _children_of("self") - _of_others


def workers() -> set[int]:
    """The processes that the fork servers have forked and not reaped."""
    return set().union(*(_children_of(str(pid)) for pid in children()))


def _children_of(pid: str) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.update(int(child) for child in (task / "children").read_text().split())
    return found
