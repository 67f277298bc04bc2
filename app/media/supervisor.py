"""Keeps a number of workers alive: starts, watches, replaces and ends them. What they do is not its matter.

A worker is *starting*, then *ready*; once it is killed, retired or dead it is *leaving*, until the kernel has handed
over its exit status. Replacements start at once, except after workers that were lost before they got anything to do:
those are followed by pauses, which grow while none starts well, and by `trouble`, which says what is wrong.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import signal
import time
from collections.abc import Callable
from typing import Protocol

from app.media.messages import Outcome, ProtocolViolation, Ready
from app.media.process import ForkServer, WorkerProcess
from app.media.timer import Timer
from app.pauses import growing_pause_s

FAILED_STARTS_TOLERATED = 3
# The workers of a fork server have one layout of their memory. Who wants to find it out crashes thousands of them.
CRASHES_TOLERATED = 20
_PROVEN_AFTER_S = 10.0  # a worker that waited this long for a job did start properly
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_EXIT_GRACE_S = 1.0  # from our hanging up to the end of the process; then it is killed
_LONE_GRACE_S = 3.0  # from its hanging up to the news of its end
_NEWS_GRACE_S = 5.0  # from killing it to the news of its end; then its fork server is killed too

_logger = logging.getLogger(__name__)


class Worker:
    """A worker process and its standing.

    Attributes:
        confinement: what its sandbox is made of; None until it is ready.
        jobs: how many it was given.
        due: whether it was given enough and should be replaced; `retiring`: whether its replacement is there.
        leaving: whether it is past use.
    """

    def __init__(self, process: WorkerProcess, recycle_after_jobs: int) -> None:
        self.process = process
        self.confinement: str | None = None
        self.ready_at: float | None = None
        self.jobs = 0
        self.recycle_after_jobs = round(recycle_after_jobs * random.uniform(0.8, 1.2))  # noqa: S311 - not all at once
        self.retiring = False
        self.leaving = False
        self.timer = Timer()

    @property
    def due(self) -> bool:
        return self.jobs >= self.recycle_after_jobs

    @property
    def proven(self) -> bool:
        """Whether it was of use: it took a job, or waited for one for a while."""
        waited = self.ready_at is not None and time.monotonic() - self.ready_at > _PROVEN_AFTER_S
        return self.jobs > 0 or waited


class Listener(Protocol):
    """Who hears what becomes of the workers."""

    def ready(self, worker: Worker) -> None:
        """`worker` can take jobs."""

    def replaced(self, worker: Worker) -> None:
        """Another stands in for `worker`, which has done its share: `retire` it as soon as it is idle."""

    def answered(self, worker: Worker, outcome: Outcome) -> None:
        """`worker` finished a job, or says so."""

    def lost(self, worker: Worker, reason: str) -> None:
        """`worker` ended by itself: "crashed", "killed" (by someone else), "cpu_time", "protocol" or "start_failed"."""

    def changed(self) -> None:
        """The number of workers in some state, or `trouble`, may be another now."""

    def restarted(self, reason: str) -> None:
        """A worker was lost or ended for `reason`, and another takes its place."""


class Supervisor:
    """Keeps `count` workers alive between `start` and `close`. Lives in one event loop."""

    def __init__(
        self,
        name: str,
        count: int,
        new_fork_server: Callable[[], ForkServer],
        listener: Listener,
        *,
        recycle_after_jobs: int,
        start_timeout_s: float,
    ) -> None:
        self._name = name
        self._count = count
        self._new_fork_server = new_fork_server
        self._forks = new_fork_server()
        self._crashes = 0  # of its workers
        self._trial: Worker | None = None  # the first of another fork server, until it is ready; one more than `count`
        self._listener = listener
        self._recycle_after_jobs = recycle_after_jobs
        self._start_timeout_s = start_timeout_s
        self._workers: list[Worker] = []  # starting or ready, oldest first
        self._leaving: set[Worker] = set()
        self._failed_starts = 0
        self._pause: asyncio.TimerHandle | None = None
        self._closing = False
        self._reaped = asyncio.Event()

    @property
    def starting(self) -> int:
        """How many workers are on their way."""
        return sum(worker.ready_at is None for worker in self._workers)

    @property
    def ready(self) -> list[Worker]:
        """Those that can take jobs, idle or busy."""
        return [worker for worker in self._workers if worker.ready_at is not None]

    @property
    def struggling(self) -> bool:
        """Whether workers fail to start one after the other; some may work."""
        return self._failed_starts >= FAILED_STARTS_TOLERATED

    @property
    def trouble(self) -> str | None:
        """Why there are no workers and will be none soon; None while all is well or may yet be."""
        if not self.struggling or self.ready:
            return None
        return f"the processes that decode {self._name}s cannot be kept alive; the server's log says why"

    def start(self) -> None:
        """Start all workers at once; `Listener.ready` tells of each."""
        self._fill()

    def replace_if_due(self, worker: Worker) -> None:
        """Start a replacement for `worker` if it has done its share of jobs."""
        if worker.due and not worker.retiring:
            self._fill()

    def retire(self, worker: Worker) -> None:
        """Let an idle worker go; its replacement is already there."""
        self._listener.restarted("recycled")
        self._hang_up(worker)

    def end(self, worker: Worker, reason: str) -> None:
        """Kill `worker`, unless it has gone already, and replace it. `reason` is a word for the metrics."""
        if not worker.leaving:
            worker.process.kill()
            self._leave(worker)
            self._replace(worker, reason)

    def stop_replacing(self) -> None:
        """Start no worker any more, whatever ends from here on."""
        self._closing = True

    async def close(self) -> None:
        """Hang up on all workers, kill those that do not end by themselves, and return when all were reaped."""
        self.stop_replacing()
        if self._pause is not None:
            self._pause.cancel()
        if self._trial is not None:  # nobody else is on that fork server
            self._trial.process.fork_server.kill()
        for worker in list(self._workers):
            if worker.ready_at is None:
                worker.process.kill()
            self._hang_up(worker)
        while self._leaving:
            self._reaped.clear()
            await self._reaped.wait()
        self._forks.close()

    def _fill(self) -> None:
        """Start what is missing. Of the workers that have done their share, one at a time is replaced."""
        if self._closing or self._pause is not None:
            return
        while self._missing() > 0:
            try:
                process = self._forks.fork()
            except OSError as error:
                _logger.error("cannot start a worker for %ss: %s", self._name, error)
                self._start_failed()
                break
            self._add(process)
        self._listener.changed()

    def _add(self, process: WorkerProcess) -> Worker:
        worker = Worker(process, self._recycle_after_jobs)
        self._workers.append(worker)
        worker.timer.set(self._start_timeout_s, self._start_overran, worker)
        process.on_exit = functools.partial(self._exited, worker)
        asyncio.get_running_loop().add_reader(process.channel.fileno(), self._heard, worker)
        return worker

    def _missing(self) -> int:
        staying = [worker for worker in self._workers if not worker.retiring and worker is not self._trial]
        return self._count + any(worker.due for worker in staying) - len(staying)

    def _replace(self, worker: Worker, reason: str) -> None:
        if self._closing:
            return
        self._listener.restarted(reason)
        if worker.proven or reason == "killed":  # it did start; what ended it then is no sign that others won't
            self._failed_starts = 0
        if worker is self._trial:
            self._trial = None
            self._not_renewed(worker.process.fork_server)
        elif not worker.proven:  # if it was killed, the pause is for a kernel that is out of memory
            self._start_failed()
        if reason == "crashed":
            self._crashes += 1
            if self._crashes >= CRASHES_TOLERATED:
                self._renew()
        self._fill()

    def _renew(self) -> None:
        """Try out another fork server. This one, which works, goes on until a worker of the other is ready."""
        crashes, self._crashes = self._crashes, 0
        if self._trial is not None:
            return
        _logger.warning("%d workers for %ss have crashed: their fork server is renewed", crashes, self._name)
        forks = self._new_fork_server()
        try:
            self._trial = self._add(forks.fork())
        except OSError as error:
            _logger.error("cannot start a worker for %ss: %s", self._name, error)
            self._not_renewed(forks)

    def _not_renewed(self, forks: ForkServer) -> None:
        _logger.error("the fork server for %ss goes on: the one to replace it does not start", self._name)
        forks.retire()

    def _renewed(self, forks: ForkServer) -> None:
        """Go on with `forks`, and replace the workers of the fork server before it without a gap."""
        self._trial = None
        self._forks.retire()
        self._forks, self._crashes = forks, 0
        for worker in self._workers:
            if worker.process.fork_server is not forks:
                worker.recycle_after_jobs = 0

    def _start_failed(self) -> None:
        if self._pause is None:  # else one hiccup of a fork server would count for each of its workers
            self._failed_starts += 1
            pause_s = growing_pause_s(self._failed_starts, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            self._pause = asyncio.get_running_loop().call_later(pause_s, self._resume)
        self._listener.changed()

    def _resume(self) -> None:
        self._pause = None
        self._fill()

    def _start_overran(self, worker: Worker) -> None:
        _logger.error("a worker for %ss was not ready after %g s", self._name, self._start_timeout_s)
        self.end(worker, "start_failed")
        worker.process.fork_server.kill()  # it does not fork, or not in time: another one may

    def _heard(self, worker: Worker) -> None:
        """Read one message; the loop calls again if there are more."""
        try:
            reply = worker.process.receive()
        except BlockingIOError:
            return
        except ProtocolViolation as error:
            self._misbehaved(worker, str(error))
            return
        if isinstance(reply, Outcome):
            self._failed_starts = 0
            self._listener.answered(worker, reply)
        elif reply is None:  # the exit status tells why, in a moment
            asyncio.get_running_loop().remove_reader(worker.process.channel.fileno())
            worker.timer.set(_LONE_GRACE_S, self._misbehaved, worker, "it hung up and lives on")
        elif worker.ready_at is None:
            self._became_ready(worker, reply)
        else:
            self._misbehaved(worker, "it says twice that it is ready")

    def _became_ready(self, worker: Worker, reply: Ready) -> None:
        worker.timer.cancel()
        worker.confinement = reply.confinement
        worker.ready_at = time.monotonic()
        if worker is self._trial:
            self._renewed(worker.process.fork_server)
        self._listener.ready(worker)
        if sum(not other.retiring for other in self.ready) > self._count:
            self._retire_one()
        self._listener.changed()

    def _retire_one(self) -> None:
        done = next((other for other in self._workers if other.due and not other.retiring), None)
        if done is not None:
            done.retiring = True
            self._listener.replaced(done)
            self._fill()  # another may be due by now

    def _misbehaved(self, worker: Worker, what: str) -> None:
        _logger.error("a worker for %ss is ended: %s", self._name, what)
        self.end(worker, "protocol")
        self._listener.lost(worker, "protocol")

    def _exited(self, worker: Worker) -> None:
        """The process has ended. If nobody wanted that, its status tells why."""
        if not worker.leaving:
            self._heard(worker)  # what it said last
        unexpected = not worker.leaving
        if unexpected:
            self._leave(worker)
        worker.timer.cancel()
        words = worker.process.last_words()
        status = worker.process.reap()
        self._leaving.discard(worker)
        self._reaped.set()
        if unexpected:
            reason = _reason(status) if worker.ready_at is not None else "start_failed"
            _logger.error("a worker for %ss ended: %s, status %s, last words %r", self._name, reason, status, words)
            self._replace(worker, reason)
            self._listener.lost(worker, reason)

    def _hang_up(self, worker: Worker) -> None:
        self._leave(worker)
        worker.process.hang_up()

    def _leave(self, worker: Worker) -> None:
        """Stop listening to `worker` and await its end; it is killed if that takes long."""
        worker.leaving = True
        self._workers.remove(worker)
        self._leaving.add(worker)
        asyncio.get_running_loop().remove_reader(worker.process.channel.fileno())
        worker.timer.set(_EXIT_GRACE_S, self._insist, worker)
        self._listener.changed()

    def _insist(self, worker: Worker) -> None:
        worker.process.kill()
        worker.timer.set(_NEWS_GRACE_S, worker.process.fork_server.kill)


def _reason(status: int | None) -> str:
    """Why a worker ended, from its exit status (negative: the signal)."""
    return {-signal.SIGKILL: "killed", -signal.SIGXCPU: "cpu_time"}.get(status or 0, "crashed")
