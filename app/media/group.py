"""The jobs of one kind (images, or videos) and the workers that do them: who is next, by when, and what came of it.

Every job settles exactly once: with rows, the file's fault, a limit, the caller's deadline, or Unavailable.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import BrokenMedia, LimitExceeded, Overloaded, Unavailable
from app.media.messages import JobHeader, Outcome
from app.media.process import ForkServer
from app.media.queue import JobQueue, Ticket
from app.media.shared import ONE_SHOT, DecodedRows, RowBuffer, SharedBytes, no_room
from app.media.spec import DecodeJob, row_shape, rows_of
from app.media.supervisor import Supervisor, Worker

_MOST_ATTEMPTS = 2

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupOptions:
    """How a group works.

    `timeout_s` is the longest that one job may run. `codec_threads` are given to a job that runs alone; jobs beside
    each other get one each. `abandoned_grace_s` is how long a job may run on when nobody waits for it any more: some
    times what another worker costs, cold caches included, so that neither killing nor waiting is ever a bad choice.
    """

    name: str
    workers: int
    timeout_s: float
    codec_threads: int
    recycle_after_jobs: int
    start_timeout_s: float
    abandoned_grace_s: float


@dataclass(frozen=True)
class _Run:
    """A job in a worker's hands; `hurried` if its caller's deadline comes before the server's own limit."""

    ticket: Ticket
    worker: Worker
    buffer: RowBuffer
    started: float
    is_new: bool
    hurried: bool


class WorkerGroup:
    """Runs jobs on `options.workers` processes. `on_changed` and `on_restarted` feed the metrics."""

    def __init__(
        self,
        options: GroupOptions,
        new_fork_server: Callable[[], ForkServer],
        on_changed: Callable[[], None],
        on_restarted: Callable[[str], None],
    ) -> None:
        self._options = options
        self._on_changed = on_changed
        self._on_restarted = on_restarted
        self._supervisor = Supervisor(
            options.name,
            options.workers,
            new_fork_server,
            self,
            recycle_after_jobs=options.recycle_after_jobs,
            start_timeout_s=options.start_timeout_s,
        )
        self._numbers = itertools.count()
        self._waiting = JobQueue()
        self._idle: list[Worker] = []
        self._runs: dict[Worker, _Run] = {}
        self._unsettled = 0
        self._settled = asyncio.Event()
        self._started = asyncio.Event()
        self._closing = False

    @property
    def trouble(self) -> str | None:
        """Why no job can be done; None while jobs can be, or may soon."""
        return self._supervisor.trouble

    @property
    def pending(self) -> int:
        """Jobs that wait for a worker."""
        return len(self._waiting)

    @property
    def states(self) -> dict[str, int]:
        """Workers by state."""
        return {"starting": self._supervisor.starting, "idle": len(self._idle), "busy": len(self._runs)}

    @property
    def confinements(self) -> set[str]:
        """What the ready workers' sandboxes are made of."""
        return {worker.confinement for worker in self._supervisor.ready if worker.confinement is not None}

    async def start(self) -> None:
        """Start the workers and wait until all are ready, or as many as can be had.

        Raises:
            Unavailable: they cannot be kept alive, or the group is closed meanwhile.
        """
        self._supervisor.start()
        await self._started.wait()
        self._check_available()

    async def run(self, body: SharedBytes, job: DecodeJob, deadline: float, caller: str) -> DecodedRows:
        """See `MediaPool.decode`."""
        self._check_available()
        body.seal()
        ticket = Ticket(next(self._numbers) & 0xFFFFFFFF, body, job, deadline, caller)
        self._waiting.push(ticket)
        self._unsettled += 1
        try:
            self._dispatch()
            return await ticket.future
        except asyncio.CancelledError:
            self._abandon(ticket)
            raise
        finally:
            self._unsettled -= 1
            self._settled.set()

    def refuse(self) -> None:
        """Take no more jobs."""
        self._closing = True
        self._started.set()

    async def close(self, grace_s: float) -> None:
        """Take no more jobs, give those accepted `grace_s` seconds to finish, then end the workers."""
        self.refuse()
        try:
            async with asyncio.timeout(grace_s):
                while self._unsettled:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            _logger.warning("%d %s jobs were not done within %g s", self._unsettled, self._options.name, grace_s)
        finally:
            self._supervisor.stop_replacing()
            self._waiting.fail_all(_shutting_down)
            for run in list(self._runs.values()):
                self._discard(run)
                run.ticket.fail(_shutting_down())
                self._supervisor.end(run.worker, "closed")
            self._idle.clear()
            await self._supervisor.close()

    # What the supervisor tells.

    def ready(self, worker: Worker) -> None:
        self._idle.append(worker)
        if len(self._supervisor.ready) >= self._options.workers:
            self._started.set()
        self._dispatch()

    def replaced(self, worker: Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
            self._supervisor.retire(worker)

    def answered(self, worker: Worker, outcome: Outcome) -> None:
        run = self._runs.get(worker)
        if run is None or run.ticket.number != outcome.number:
            _logger.error("a worker for %ss is ended: it answers a job that it was not given", self._options.name)
            self._supervisor.end(worker, "protocol")
            self.lost(worker, "protocol")
            return
        if outcome.trace:  # quoted, because it may hold what the file's author wished to see in a log
            _logger.error("the %s decoder failed: %r", self._options.name, outcome.trace)
        self._settle(run, outcome)
        if worker.retiring:
            self._supervisor.retire(worker)
        elif not worker.leaving:
            self._idle.append(worker)
            self._supervisor.replace_if_due(worker)
            self._dispatch()

    def lost(self, worker: Worker, reason: str) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        run = self._runs.get(worker)
        if run is not None:
            self._discard(run)
            ticket = run.ticket
            if reason == "killed" and ticket.attempts < _MOST_ATTEMPTS:
                self._wait_again(ticket)
            elif reason == "killed":  # twice while decoding this file: that is the kernel, out of memory
                ticket.fail(LimitExceeded("decoding the file takes more memory than one file may take"))
            elif reason == "cpu_time":
                ticket.fail(self._too_slow())
            else:
                ticket.fail(BrokenMedia("the file is damaged in a way that stops its decoder"))
        self.changed()

    def changed(self) -> None:
        self._on_changed()
        trouble = self.trouble
        if self._supervisor.struggling:  # go on with those that there are, if there are any
            self._started.set()
        if trouble is not None:
            self._waiting.fail_all(lambda: Unavailable(trouble))

    def restarted(self, reason: str) -> None:
        self._on_restarted(reason)

    # From waiting to running to settled.

    def _check_available(self) -> None:
        if self._closing:
            raise _shutting_down()
        if self.trouble is not None:
            raise Unavailable(self.trouble)

    def _dispatch(self) -> None:
        """Give the jobs whose turn it is to the idle workers."""
        while self._idle and (ticket := self._waiting.pop()) is not None:
            self._hand_over(ticket, self._idle.pop())
        self._on_changed()

    def _hand_over(self, ticket: Ticket, worker: Worker) -> None:
        rows_bytes = rows_of(ticket.job) * math.prod(row_shape(ticket.job.spec))
        try:
            buffer, is_new = worker.process.buffers.take(rows_bytes)
        except Overloaded as error:
            self._idle.append(worker)
            ticket.fail(error)
            return
        options = self._options
        threads = options.codec_threads
        if threads > 1 and (self._runs or len(self._waiting)):
            threads = 1
        limit_s = min(ticket.remaining_s, options.timeout_s)
        most_s = min(limit_s + options.abandoned_grace_s, options.timeout_s)
        run = _Run(ticket, worker, buffer, time.monotonic(), is_new, hurried=limit_s < options.timeout_s)
        self._runs[worker] = run
        ticket.attempts += 1
        header = JobHeader(ticket.number, buffer.slot, threads, ticket.body.size, rows_bytes, most_s * threads)
        try:
            worker.process.send(header, ticket.job, ticket.body, buffer if is_new else None)
        except ConnectionError:  # it died this moment, before it had the job; its exit status, which follows, tells why
            self._discard(run)
            ticket.attempts -= 1  # it was none; and this worker is idle no more, so that this comes to an end
            self._wait_again(ticket)
        except OSError as error:
            self._discard(run)
            self._idle.append(worker)
            ticket.fail(no_room(error))
        else:
            worker.jobs += 1
            ticket.timer.set(limit_s, self._overran, run)

    def _wait_again(self, ticket: Ticket) -> None:
        """Have `ticket` done by another worker."""
        if not ticket.future.done():
            self._waiting.push(ticket)
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _settle(self, run: _Run, outcome: Outcome) -> None:
        """Give `run`'s outcome to whoever waits for it. The worker has nothing to do any more."""
        ticket = run.ticket
        if outcome.info is None or ticket.future.done():
            self._discard(run)
            ticket.fail(outcome.error or BrokenMedia("the file cannot be decoded"))
            return
        self._forget(run)
        release = functools.partial(run.worker.process.buffers.give_back, run.buffer)
        decode_s = min(max(outcome.decode_s, 0.0), time.monotonic() - run.started)
        rows = run.buffer.rows((rows_of(ticket.job), *row_shape(ticket.job.spec)))  # [n, *row]
        ticket.future.set_result(
            DecodedRows(rows, outcome.info, decode_s, run.buffer.fd, release, reused=run.buffer.slot != ONE_SHOT)
        )

    def _discard(self, run: _Run) -> None:
        """Forget `run`, and whatever it wrote."""
        self._forget(run)
        run.worker.process.buffers.give_back(run.buffer, mapped=not run.is_new)  # it may have failed before mapping

    def _forget(self, run: _Run) -> None:
        del self._runs[run.worker]
        run.ticket.timer.cancel()
        self._waiting.done(run.ticket, time.monotonic() - run.started)

    # When time runs out.

    def _overran(self, run: _Run) -> None:
        """The job has run as long as it may: for its caller, for this server, or after its caller left."""
        ticket = run.ticket
        if run.hurried and not ticket.future.done():
            ticket.expire()
            self._let_run_on(run)
            return
        self._discard(run)
        reason = "abandoned" if ticket.future.cancelled() else "deadline" if run.hurried else "timeout"
        ticket.fail(self._too_slow())
        self._supervisor.end(run.worker, reason)

    def _let_run_on(self, run: _Run) -> None:
        """Nobody waits for `run` any more: it may go on for about as long as starting another worker would take."""
        left_s = run.started + self._options.timeout_s - time.monotonic()
        run.ticket.timer.set(min(left_s, self._options.abandoned_grace_s), self._overran, run)

    def _abandon(self, ticket: Ticket) -> None:
        """Nobody waits for `ticket` any more: it is not run, or not for long."""
        run = next((run for run in self._runs.values() if run.ticket is ticket), None)
        if run is not None:
            self._let_run_on(run)
            return
        ticket.timer.cancel()
        if not ticket.future.cancelled() and ticket.future.exception() is None:  # outcome and cancellation crossed
            ticket.future.result().close()

    def _too_slow(self) -> LimitExceeded:
        return LimitExceeded(f"the file takes longer than {self._options.timeout_s:g} s to decode")


def _shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down")
