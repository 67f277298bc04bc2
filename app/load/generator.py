"""Sends load and keeps what came back.

*Closed loop*: `connections` callers, each sending its next request when the last is answered. It finds the most that a
server does, and flatters its latency, since a slow answer also delays the next question.

*Open loop*: requests are due at Poisson times of a given rate whatever the server does. Latency counts from the moment
a request was due, so that waiting for a free connection or a late generator counts too (no "coordinated omission", Gil
Tene's term).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from app.errors import InvalidParameter
from app.load.arrivals import keep_time, poisson_arrivals
from app.load.connection import LOST, TIMED_OUT, Answer, Connection, connect
from app.load.target import Target

MAX_SECONDS = 3600.0
MAX_REQUESTS = 10_000_000
MAX_CONNECTIONS = 4096
_RECONNECT_S = 0.05
_WATCH_S = 0.25

Progress = Callable[[float, int], None]
"""Called a few times a second with the fraction of the time that is over and the answers so far."""


@dataclass(frozen=True)
class Workload:
    """What to send. Bounded in time and in count, always.

    `requests` are sent in turn. `rate_per_s` makes it an open loop, with at most `connections` at once; without it the
    loop is closed over just so many. The first `warmup_s` count neither in the samples nor in `max_requests`: a sample
    of an open loop belongs to the time when it was due, one of a closed loop to that when it was answered.
    `timeout_s` bounds connecting and each answer; an open loop sends nothing later than that after its end.
    """

    target: Target
    requests: tuple[bytes, ...]
    connections: int
    seconds: float
    warmup_s: float = 1.0
    rate_per_s: float | None = None
    max_requests: int = 1_000_000
    timeout_s: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        within = (
            ("connections", self.connections, 1, MAX_CONNECTIONS),
            ("seconds", self.seconds + self.warmup_s, 0.01, MAX_SECONDS),
            ("requests", self.max_requests, 1, MAX_REQUESTS),
            ("timeout", self.timeout_s, 0.01, MAX_SECONDS),
            ("rate", self.rate_per_s if self.rate_per_s is not None else 1.0, 0.01, 1e6),
        )
        for name, value, low, high in within:
            if not low <= value <= high:
                raise InvalidParameter(f"{name} {value:g} is out of range; it may be {low:g} to {high:g}")
        if not self.requests:
            raise InvalidParameter("a workload needs a request to send")


@dataclass
class Samples:
    """One entry for each request, in order of completion. Times are seconds; statuses as in `app.load.connection`."""

    status: array[int] = field(default_factory=lambda: array("h"))
    latency_s: array[float] = field(default_factory=lambda: array("d"))
    finished_s: array[float] = field(default_factory=lambda: array("d"))  # from the end of the warm-up
    timing: list[bytes] = field(default_factory=list)  # Server-Timing headers
    bodies: dict[int, bytes] = field(default_factory=dict)  # the first answer of each status
    seconds: float = 0.0  # that were measured
    generator_cpu_s: float = 0.0

    def add(self, answer: Answer, due_s: float, measured_from_s: float) -> None:
        self.status.append(answer.status)
        self.latency_s.append(answer.finished_s - due_s)
        self.finished_s.append(answer.finished_s - measured_from_s)
        self.timing.append(answer.timing)
        self.bodies.setdefault(answer.status, answer.body)


class _Run:
    """The state that the tasks of one run share."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.samples = Samples()
        self.sent = 0
        self.counted = 0  # of them, due after the warm-up
        self.started_s = time.perf_counter()
        self.measured_from_s = self.started_s + workload.warmup_s
        self.until_s = self.measured_from_s + workload.seconds
        self.connections: set[Connection] = set()
        self.idle = 0  # callers of an open loop that wait for something to do

    @property
    def is_over(self) -> bool:
        return time.perf_counter() >= self.until_s or self.counted >= self.workload.max_requests

    def next_request(self, due_s: float) -> bytes:
        request = self.workload.requests[self.sent % len(self.workload.requests)]
        self.sent += 1
        if due_s >= self.measured_from_s:
            self.counted += 1
        return request

    async def connection(self, current: Connection | None, due_s: float) -> Connection | None:
        """The same connection while it is open, else a new one; None when there is none to be had, which is recorded
        (and, since a refusal costs no time, comes after a pause)."""
        if current is not None and current.is_open:
            return current
        if current is not None:
            self.connections.discard(current)
        try:
            async with asyncio.timeout(self.workload.timeout_s):  # a listener with a full backlog leaves it hanging
                fresh = await connect(self.workload.target)
        except TimeoutError:
            self.record_unsent(TIMED_OUT, due_s)
            return None
        except OSError:
            await asyncio.sleep(_RECONNECT_S)
            self.record_unsent(LOST, due_s)
            return None
        self.connections.add(fresh)
        return fresh

    def record(self, answer: Answer, due_s: float) -> None:
        # What an open loop owes from its warm-up would add answers and their long waits to the time that is measured.
        belongs_to_s = answer.finished_s if self.workload.rate_per_s is None else due_s
        if belongs_to_s >= self.measured_from_s:
            self.samples.add(answer, due_s, self.measured_from_s)

    def record_unsent(self, status: int, due_s: float) -> None:
        self.record(Answer(status, b"", b"", time.perf_counter()), due_s)


async def _caller(run: _Run) -> None:
    """One of a closed loop's callers."""
    connection: Connection | None = None
    while not run.is_over:
        due_s = time.perf_counter()
        request = run.next_request(due_s)
        connection = await run.connection(connection, due_s)
        if connection is None:
            continue
        due_s = time.perf_counter()  # connecting is no part of a request
        run.record(await connection.exchange(request), due_s)


async def _open_caller(run: _Run, due: asyncio.Queue[float | None]) -> None:
    """One of an open loop's connections: takes whatever is due next."""
    connection: Connection | None = None
    while True:
        run.idle += 1
        due_s = await due.get()
        run.idle -= 1
        if due_s is None:
            return
        if time.perf_counter() > run.until_s + run.workload.timeout_s:
            run.record_unsent(TIMED_OUT, due_s)  # else a server that is behind has the run go on until it has caught up
            continue
        request = run.next_request(due_s)
        connection = await run.connection(connection, due_s)
        if connection is not None:
            run.record(await connection.exchange(request), due_s)


def _counted_from(warmup_s: float, arrivals: Iterator[float], most: int) -> Iterator[float]:
    """The arrivals of the warm-up, and at most so many after it."""
    for arrival in arrivals:
        if arrival >= warmup_s:
            if most == 0:
                return
            most -= 1
        yield arrival


async def _open_loop(run: _Run, rate_per_s: float) -> None:
    workload = run.workload
    due: asyncio.Queue[float | None] = asyncio.Queue()
    callers: list[asyncio.Task[None]] = []
    arrivals = poisson_arrivals(rate_per_s, workload.warmup_s + workload.seconds, workload.seed)
    async for due_s in keep_time(_counted_from(workload.warmup_s, arrivals, workload.max_requests), run.started_s):
        due.put_nowait(due_s)
        if due.qsize() > run.idle and len(callers) < workload.connections:
            callers.append(asyncio.create_task(_open_caller(run, due)))
    for _ in callers:
        due.put_nowait(None)
    await asyncio.gather(*callers)


async def _closed_loop(run: _Run) -> None:
    await asyncio.gather(*(_caller(run) for _ in range(run.workload.connections)))


async def _watch(run: _Run, progress: Progress | None) -> None:
    """Ends requests that take too long, and reports progress; runs until cancelled."""
    while True:
        await asyncio.sleep(_WATCH_S)
        now_s = time.perf_counter()
        for connection in list(run.connections):
            if connection.is_waiting and now_s - connection.sent_s > run.workload.timeout_s:
                connection.abandon(TIMED_OUT)
        if progress is not None:
            elapsed = (now_s - run.started_s) / (run.until_s - run.started_s)
            progress(min(1.0, max(elapsed, run.counted / run.workload.max_requests)), len(run.samples.status))


async def generate(workload: Workload, progress: Progress | None = None) -> Samples:
    """Send a workload and wait for the last answers (no longer than its time-out)."""
    run = _Run(workload)
    cpu_s = time.process_time()
    watcher = asyncio.create_task(_watch(run, progress))
    try:
        await (_closed_loop(run) if workload.rate_per_s is None else _open_loop(run, workload.rate_per_s))
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        for connection in run.connections:
            connection.abandon(LOST)
    # Only the limit of requests ends a run early: an open loop's last answer may come before its end.
    ended_s = min(time.perf_counter(), run.until_s) if run.counted >= workload.max_requests else run.until_s
    run.samples.seconds = max(1e-9, ended_s - run.measured_from_s)
    run.samples.generator_cpu_s = time.process_time() - cpu_s
    return run.samples


def run_workload(workload: Workload, progress: Progress | None = None) -> Samples:
    """`generate` in an event loop of its own, uvloop where there is one, without pauses for garbage."""
    try:
        import uvloop
    except ImportError:  # not made for every platform
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    else:
        new_loop = uvloop.new_event_loop
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(generate(workload, progress))
    finally:
        gc.enable()
