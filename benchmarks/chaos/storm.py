"""All clients at once, in a process of its own: in an open loop at a given rate, or a closed one to find the most.

The same code and the same requests measure the capacity and make the storm, so that what the generator itself costs is
in both.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import time
from dataclasses import dataclass, field

import uvloop

from app.load.arrivals import poisson_arrivals
from app.load.connection import TIMED_OUT
from app.load.generator import Progress
from app.load.isolated import in_a_process
from app.load.target import Target
from benchmarks.chaos.clients import Behaviour, Clients, Outcome, Role

_PATIENCE_S = 40.0  # longer than the server lets any request take
_WATCH_S = 0.5


@dataclass(frozen=True)
class Storm:
    """What to send.

    Attributes:
        roles: drawn by their shares (closed loop: only those that ask, in turn).
        seconds: that count, after `warmup_s`.
        callers: of the closed loop; of the open one, the most requests in flight.
        rate_per_s: makes it an open loop.
        cores: the CPUs to keep to.
    """

    target: Target
    roles: tuple[Role, ...]
    seconds: float
    callers: int
    rate_per_s: float | None = None
    warmup_s: float = 2.0
    seed: int = 0
    cores: tuple[int, ...] = ()


@dataclass
class Sent:
    """What came of it. `outcomes` are those of requests that were due after the warm-up.

    Attributes:
        began_s: when counting began, as `time.perf_counter()`.
        unsent: requests of an open loop that were due while too many were in flight.
        late_s: how late requests were sent after they were due.
        cpu_s: that the generator used, of `wall_s`.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    began_s: float = 0.0
    unsent: int = 0
    late_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0


def send(storm: Storm, progress: Progress | None = None) -> Sent:
    """Send it from a fresh process, and wait for the last answers."""
    return in_a_process(run_storm, storm, progress)


def run_storm(storm: Storm, progress: Progress) -> Sent:
    """`send`, in this process."""
    if storm.cores:
        os.sched_setaffinity(0, storm.cores)
    gc.disable()
    return uvloop.run(_Run(storm, progress).run())


class _Run:
    def __init__(self, storm: Storm, progress: Progress) -> None:
        self._storm = storm
        self._progress = progress
        self._clients = Clients(storm.target, storm.seed)
        self._sent = Sent()
        self._started_s = time.perf_counter()
        self._until_s = self._started_s + storm.warmup_s + storm.seconds
        self._sent.began_s = self._started_s + storm.warmup_s

    async def run(self) -> Sent:
        cpu_s = time.process_time()
        watching = asyncio.create_task(self._watch())
        try:
            await (self._closed_loop() if self._storm.rate_per_s is None else self._open_loop(self._storm.rate_per_s))
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            self._clients.close()
        self._sent.cpu_s = time.process_time() - cpu_s
        self._sent.wall_s = time.perf_counter() - self._started_s
        return self._sent

    async def _closed_loop(self) -> None:
        roles = [number for number, role in enumerate(self._storm.roles) if role.behaviour is Behaviour.ASKS]
        shares = [self._storm.roles[number].share for number in roles]
        draw = random.Random(self._storm.seed)

        async def caller() -> None:
            while (now_s := time.perf_counter()) < self._until_s:
                await self._play(draw.choices(roles, shares)[0], now_s)

        await asyncio.gather(*(caller() for _ in range(self._storm.callers)))

    async def _open_loop(self, rate_per_s: float) -> None:
        storm, draw = self._storm, random.Random(self._storm.seed)
        cumulative = list(itertools.accumulate(role.share for role in storm.roles))
        numbers = range(len(storm.roles))
        playing: set[asyncio.Task[None]] = set()
        for arrival_s in poisson_arrivals(rate_per_s, storm.warmup_s + storm.seconds, storm.seed):
            due_s = self._started_s + arrival_s
            while (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)  # in whole milliseconds; those that are due by then go out together
            if len(playing) >= storm.callers:
                self._sent.unsent += due_s >= self._sent.began_s
                await asyncio.sleep(0)
                continue
            number = draw.choices(numbers, cum_weights=cumulative)[0]
            task = asyncio.create_task(self._play(number, due_s))
            playing.add(task)
            task.add_done_callback(playing.discard)
        await asyncio.gather(*playing)

    async def _play(self, number: int, due_s: float) -> None:
        outcome = await self._clients.play(number, self._storm.roles[number], due_s)
        if due_s >= self._sent.began_s:
            self._sent.outcomes.append(outcome)
            self._sent.late_s.append(outcome.sent_s - due_s)

    async def _watch(self) -> None:
        """Give up on requests that hang, and tell of the progress."""
        while True:
            await asyncio.sleep(_WATCH_S)
            now_s = time.perf_counter()
            for connection in list(self._clients.open):
                if connection.is_waiting and now_s - connection.sent_s > _PATIENCE_S:
                    connection.abandon(TIMED_OUT)
            fraction = (now_s - self._started_s) / (self._until_s - self._started_s)
            self._progress(min(1.0, fraction), len(self._sent.outcomes))
