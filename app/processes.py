"""`--http-workers N`: this process hosts the engines, and keeps N HTTP workers that share them.

    connections ──accept──▶ engine host ──each connection to the next worker──▶ HTTP worker, with its media workers
                            registry, batchers, engines ◀──rows of decoded files, by descriptor──┘

The host listens and hands connections out in turn, so they spread evenly, and no connection waits in the queue of a
worker that has died. It never reads from one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import uvloop

from app.core import create_registry, create_rollout, load_models
from app.drain import Drain
from app.http_worker import WRONG_SETTING_STATUS
from app.interpreter import MODULE_COMMAND, import_path
from app.main import create_host_metrics
from app.pauses import growing_pause_s
from app.serving.board import clear_line, create_board
from app.serving.changes import Order, Report
from app.serving.host import Session
from app.serving.table import ModelTable
from app.serving.wire import Phase, State
from app.settings import Settings
from app.telemetry.totals import Totals

_log = logging.getLogger("hiera.server")

_LOOK_EVERY_S = 0.1
_BEAT_S = 1.0
_START_TIMEOUT_S = 60.0
_SILENCE_S = 20.0  # a worker that has not reported for so long hangs
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_REPORT_TIMEOUT_S = 1.0
_CLEAN_UP_S = 10.0  # for a worker, beyond the bound of its shutdown
_ACCEPTS_AT_A_TIME = 32


@dataclass
class _Place:
    """A worker's place; its successors take the same."""

    line: int
    process: subprocess.Popen[bytes] | None = None
    session: Session | None = None
    losses: int = 0


class EngineHost:
    """The engines and the HTTP workers in front of them.

    Args:
        settings: with `http_workers` above 1.
        listener: the listening socket.
        on_serving: called once, when the first worker takes connections.
    """

    def __init__(self, settings: Settings, listener: socket.socket, on_serving: Callable[[], None]) -> None:
        listener.setblocking(False)
        self._settings = settings
        self._listener = listener
        self._on_serving = on_serving
        self._has_served = False
        self._metrics = create_host_metrics()
        self._registry = create_registry(settings, self._metrics)
        self._rollout, self._watch = create_rollout(settings, self._registry)
        self._totals = Totals(self._metrics.registry)
        self._table = ModelTable(self._registry)
        self._board = create_board(settings.http_workers)
        self._places = [_Place(line) for line in range(settings.http_workers)]
        self._turn = 0
        self._accepting = False
        self._draining = asyncio.Event()
        self._stopping = asyncio.Event()
        self._drain = Drain(
            settings.shutdown_grace_seconds,
            on_drain=self._begin_drain,
            on_stop=self._stopping.set,
            on_drop=lambda: self._direct(Phase.DROP),
        )
        self._state = State("the engines are being started", None, {})
        self._told = 0.0
        self._status = 0

    async def run(self) -> int:
        """Serve until a signal, then drain.

        Returns:
            The exit status: 0; 2 when the workers find a setting wrong before any of them has served; 1 after a fault
            of our own.
        """
        self._drain.listen()
        threading.Thread(target=self._load_models, name="load-models", daemon=True).start()
        keepers = [asyncio.create_task(self._keep(place)) for place in self._places]
        looking = asyncio.create_task(self._look())
        for task in (*keepers, looking):
            task.add_done_callback(self._end_if_failed)
        await self._stopping.wait()
        if self._watch is not None:
            self._watch.stop()
        self._stop_accepting()
        self._listener.close()
        self._direct(Phase.STOP)
        _, late = await asyncio.wait(keepers, timeout=self._settings.shutdown_timeout_seconds + _CLEAN_UP_S)
        for place in self._places:
            if place.process is not None:
                _log.warning("HTTP worker %d did not end in time and is killed", place.line)
                place.process.kill()
        if late:
            await asyncio.wait(late)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        self._table.close()
        await asyncio.to_thread(self._registry.close, 1.0)
        return self._status

    def _end_if_failed(self, task: asyncio.Task[None]) -> None:
        """Without one of its own tasks the host would go on with a worker less, or watch none: better to start anew."""
        if not task.cancelled() and task.exception() is not None:
            _log.critical("a fault of the server's own ends it", exc_info=task.exception())
            self._end(1)

    def _end(self, status: int) -> None:
        """Take no more requests, finish those that there are, and leave `run` with `status`."""
        self._status = status
        self._draining.set()
        self._drain.stop()

    def _load_models(self) -> None:
        load_models(self._settings.model_repository, self._registry, self._metrics, self._watch)

    async def _keep(self, place: _Place) -> None:
        """Have a worker at `place`, one after the other, until the drain."""
        loop = asyncio.get_running_loop()
        while not self._draining.is_set():
            began = time.monotonic()
            ended = asyncio.Event()
            try:
                channel, process, watch = self._spawn(place.line)
            except OSError as error:  # no descriptors, processes or memory just now
                pause_s = self._count_loss(place, began)
                reason = error.strerror or error
                _log.error("HTTP worker %d cannot be started: %s; the next try is in %g s", place.line, reason, pause_s)
                await self._pause(pause_s)
                continue
            loop.add_reader(watch, ended.set)
            session = Session(channel, self._table, self._scrape, self._administer, ended.set)
            place.process, place.session = process, session
            await ended.wait()
            loop.remove_reader(watch)
            os.close(watch)
            if not self._draining.is_set():
                process.kill()
            status = await asyncio.to_thread(process.wait)
            session.close()
            place.process = place.session = None
            self._totals.retire(session.samples)
            clear_line(self._board, place.line)
            if self._draining.is_set():
                return
            # Once the server serves, a slip in a file that workers read at their start must not end the healthy ones.
            if status == WRONG_SETTING_STATUS and not self._has_served:
                self._end(status)
                return
            pause_s = self._count_loss(place, began)
            _log.error("HTTP worker %d ended with status %d; the next one starts in %g s", place.line, status, pause_s)
            await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> None:
        """Wait before the next worker, but not into the drain."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), pause_s)

    def _count_loss(self, place: _Place, began: float) -> float:
        """Seconds to wait before the next worker, more after each of several losses."""
        place.losses = 1 if time.monotonic() - began > _LONGEST_PAUSE_S else place.losses + 1
        return growing_pause_s(place.losses, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)

    def _spawn(self, line: int) -> tuple[socket.socket, subprocess.Popen[bytes], int]:
        """Start a worker: our end of its channel, its process, and a descriptor that is readable once that has ended.

        Raises:
            OSError: there is no room for another process or descriptor; nothing is left of it.
        """
        with os.fdopen(os.memfd_create("settings", os.MFD_CLOEXEC), "wb", 0) as settings:
            settings.write(pickle.dumps(self._settings))
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with theirs:
                try:
                    process, watch = self._start(line, (theirs.fileno(), self._board, settings.fileno()))
                except BaseException:
                    ours.close()
                    raise
        return ours, process, watch

    def _start(self, line: int, descriptors: tuple[int, int, int]) -> tuple[subprocess.Popen[bytes], int]:
        """A worker's process, and a descriptor that tells of its end."""
        process = subprocess.Popen(  # noqa: S603 - the command is ours
            [*MODULE_COMMAND, "app.http_worker", *map(str, (*descriptors, line, os.getpid()))],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONPATH": import_path()},
            process_group=0,  # Ctrl-C is for the host
        )
        try:
            return process, os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise

    async def _look(self) -> None:
        """Keep the workers informed, watch them, and take connections while any of them can."""
        while True:
            sessions = self._sessions()
            self._show_models()
            now = time.monotonic()
            state = self._table.state(self._workers_reason())
            turned = (state.unready_reason, state.hopeless_reason) != (
                self._state.unready_reason,
                self._state.hopeless_reason,
            )
            self._state = state
            since_s = now - self._told
            if turned or since_s >= _BEAT_S:
                self._told = now
                if since_s > 2 * _BEAT_S:
                    self._excuse(since_s - _BEAT_S, now)
                for session in sessions:
                    session.show_state(state)
                self._end_silent(now)
            if not self._accepting and not self._stopping.is_set() and any(each.serving for each in sessions):
                self._accepting = True
                asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)
                if not self._has_served:
                    self._has_served = True
                    self._on_serving()
            await asyncio.sleep(_LOOK_EVERY_S)

    def _sessions(self) -> list[Session]:
        return [place.session for place in self._places if place.session is not None]

    def _show_models(self) -> None:
        if self._table.refresh():
            for session in self._sessions():
                session.show_models()
        self._table.let_go()

    async def _administer(self, order: Order) -> Report:
        """Change the models; the answer comes when every worker has taken the new table in."""
        try:
            return await self._rollout.administer(order)
        finally:
            self._show_models()
            await self._hear_all()

    async def _hear_all(self) -> None:
        """Wait until every worker has reported, and so has read all that was sent to it before; not for ever."""
        reports = [session.report() for session in self._sessions() if session.serving]
        if reports:
            await asyncio.wait(reports, timeout=_REPORT_TIMEOUT_S)

    def _workers_reason(self) -> str | None:
        """Why the HTTP workers are not all well."""
        for place in self._places:
            if place.session is None or not place.session.serving:
                return "an HTTP worker is being started"
            if place.session.unhealthy is not None:
                return place.session.unhealthy
        return None

    def _excuse(self, unasked_s: float, now: float) -> None:
        """Take time in which this process stood still (stopped, paused) off the workers' silence: nobody asked them,
        and whatever stopped this process may have stopped them too."""
        for session in self._sessions():
            session.heard = min(session.heard + unasked_s, now)

    def _end_silent(self, now: float) -> None:
        for place in self._places:
            if place.session is not None and place.process is not None:
                allowed_s = _SILENCE_S if place.session.serving else _START_TIMEOUT_S
                if now - place.session.heard > allowed_s:
                    _log.error("HTTP worker %d has not reported for %g s and is killed", place.line, allowed_s)
                    place.process.kill()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_A_TIME):
            serving = [place.session for place in self._places if place.session and place.session.serving]
            if not serving:
                self._stop_accepting()  # `_look` begins again; until then connections wait in the backlog
                return
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                _log.error("connections cannot be accepted: %s", error)
                self._stop_accepting()
                return
            self._turn += 1
            serving[self._turn % len(serving)].give(connection)

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())

    async def _scrape(self, accept: str) -> tuple[bytes, str]:
        """The metrics of all processes; of a worker that does not report in time, its last ones."""
        await self._hear_all()
        return self._totals.render([session.samples for session in self._sessions()], accept)

    def _begin_drain(self) -> None:
        self._draining.set()
        self._direct(Phase.DRAIN)

    def _direct(self, phase: Phase) -> None:
        for place in self._places:
            if place.session is not None:
                place.session.direct(phase)


def serve(settings: Settings, listener: socket.socket, on_serving: Callable[[], None]) -> int:
    """Serve with `settings.http_workers` HTTP processes until a signal, then drain. Returns the exit status."""

    async def host_engines() -> int:
        return await EngineHost(settings, listener, on_serving).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(host_engines())
