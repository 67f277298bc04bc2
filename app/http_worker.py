"""An HTTP worker: uvicorn and media workers in front of engines that live in the process that started this one.

Started by `app.processes` as `python -m app.http_worker CHANNEL_FD BOARD_FD SETTINGS_FD LINE PARENT_PID`. Connections
come over the channel, and so do the steps of a drain; signals are for the engine host.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Iterator

from fastapi import FastAPI

from app.core import SharedEngines
from app.main import connection_limits, create_app
from app.media.sandbox import die_with_parent
from app.server import DrainingServer
from app.serving.board import AdmissionBoard
from app.serving.remote import HostLink, LinkEvents
from app.serving.wire import Phase
from app.settings import Settings, SettingsError
from app.telemetry import logs
from app.telemetry.totals import encode_samples

WRONG_SETTING_STATUS = 2

_log = logging.getLogger("hiera.server")


class DirectedServer(DrainingServer):
    """A `DrainingServer` that gets its connections and its orders from the engine host.

    Args:
        app: from `create_app`, over the models of `link`.
        link: to the host; opened when the server starts.
        channel: the socket that leads there.
        settings: the bounds of connections and of a drain.
    """

    def __init__(self, app: FastAPI, link: HostLink, channel: socket.socket, settings: Settings) -> None:
        super().__init__(
            app,
            connection_limits(settings, settings.http_workers),
            app.state.gate,
            grace_s=settings.shutdown_grace_seconds,
            timeout_s=settings.shutdown_timeout_seconds,
            on_drain=app.state.server.begin_drain,
            on_stop=app.state.server.refuse_requests,
            on_drop=app.state.server.drop_calls,
        )
        self._app = app
        self._link = link
        self._channel = channel
        self._adoptions: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The host tells what to do; a supervisor that signals every process must not hurry a drain."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the link, start the application, and ask for connections."""
        metrics = self._app.state.metrics
        events = LinkEvents(
            on_connection=self._adopt,
            on_phase=self._direct,
            on_end=_end_with_host,
            samples=lambda: encode_samples(metrics.registry),
            unhealthy=self._app.state.server.media_reason,
        )
        self._link.open(self._channel, events)
        await super().startup(sockets)
        self._link.serve()

    def _adopt(self, connection: socket.socket) -> None:
        task = asyncio.create_task(self._serve_connection(connection))
        self._adoptions.add(task)
        task.add_done_callback(self._adoptions.discard)

    async def _serve_connection(self, connection: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
        except OSError:  # the caller has gone already
            connection.close()

    def _direct(self, phase: Phase) -> None:
        if phase is Phase.DRAIN:
            self._on_drain()
        elif phase is Phase.STOP:
            self._stop()
        else:
            self._drop_requests()


def _end_with_host() -> None:
    _log.error("the engine host has gone; this HTTP worker ends")
    logging.shutdown()
    os._exit(1)


def run(channel_fd: int, board_fd: int, settings_fd: int, line: int, parent_pid: int) -> int:
    """Be a worker until the host says stop. Returns the exit status."""
    die_with_parent(parent_pid)
    settings: Settings = pickle.loads(os.pread(settings_fd, os.fstat(settings_fd).st_size, 0))  # noqa: S301 - the host's
    os.close(settings_fd)
    logs.configure(settings.log_format, settings.log_level, access_log=settings.access_log)
    link = HostLink(exact_images=settings.exact_resize)
    shared = SharedEngines(
        models=link.models,
        peers=AdmissionBoard(board_fd, settings.http_workers, line),
        processes=settings.http_workers,
        exposition=link.scrape,
        administer=link.administer,
    )
    try:
        app = create_app(settings, shared)
    except SettingsError as error:
        for wrong in error.lines:
            _log.error("%s", wrong)
        return WRONG_SETTING_STATUS
    DirectedServer(app, link, socket.socket(fileno=channel_fd), settings).run(sockets=[])
    return 0


if __name__ == "__main__":
    status = run(*map(int, sys.argv[1:]))
    logging.shutdown()
    os._exit(status)  # threads that libraries left must not keep the host waiting
