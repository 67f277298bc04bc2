"""The HTTP server on its socket: uvicorn, with a drain that loses nothing.

a signal ──> not ready, requests are still taken ──grace──> no new ones ──> accepted ones finish ──> end
             a second one skips the grace                      a second one ends them unfinished

The signals are SIGTERM, SIGINT and SIGHUP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from app.api.gate import Gate
from app.protocol import ConnectionLimits, limited_protocol

_log = logging.getLogger("hiera.server")
_BACKLOG = 2048
_CLEAN_UP_S = 5.0  # beyond the bound of a shutdown, for closing what the requests used


def allow_open_files() -> None:
    """Lift the soft limit of open files to the hard one: uploads and rows in shared memory take a descriptor each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `::` takes IPv4 as well.

    Raises:
        OSError: the address is in use, not ours, or not to be had without more rights.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=host == "::")


def ending_signals() -> list[signal.Signals]:
    """Those that begin a drain. That the terminal hangs up does not where whoever started us had it ignored (nohup)."""
    ignores_hang_up = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignores_hang_up else [signal.SIGHUP])]


class DrainingServer(uvicorn.Server):
    """Serves until a signal, then drains.

    Args:
        app: the ASGI application.
        limits: of connections.
        gate: what refuses requests in an overload.
        grace_s: how long requests are still taken after the first signal.
        timeout_s: how long accepted requests may then take.
        on_drain: called at the first signal: readiness must say no from now on.
        on_stop: called when no more requests are to be taken.
    """

    def __init__(
        self,
        app: object,
        limits: ConnectionLimits,
        gate: Gate,
        *,
        grace_s: float,
        timeout_s: float,
        on_drain: Callable[[], object],
        on_stop: Callable[[], object],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                loop="uvloop",
                http=limited_protocol(limits, gate),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]
                timeout_graceful_shutdown=timeout_s + _CLEAN_UP_S,  # type: ignore[arg-type]
            )
        )
        self._grace_s = grace_s
        self._timeout_s = timeout_s
        self._on_drain = on_drain
        self._on_stop = on_stop
        self._grace: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, ends with exit status 0 after a signal instead of raising it again."""
        loop = asyncio.get_running_loop()
        numbers = ending_signals()
        for number in numbers:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP and self._grace is not None:  # kernel and shell both send it; nobody is impatient
            return
        if self.should_exit:
            _log.warning("%s again: requests that are not finished are dropped", name)
            self._drop_requests()
        elif self._grace is not None:
            _log.info("%s again: no further requests are taken", name)
            self._grace.cancel()
            self._stop()
        else:
            _log.info("%s: draining; no longer ready, requests are taken for another %g s", name, self._grace_s)
            self._on_drain()
            self._grace = asyncio.get_running_loop().call_later(self._grace_s, self._stop)

    def _stop(self) -> None:
        self._on_stop()
        self.should_exit = True
        asyncio.get_running_loop().call_later(self._timeout_s, self._overran)

    def _overran(self) -> None:
        if self.server_state.tasks:
            _log.warning("%d requests did not finish within %g s", len(self.server_state.tasks), self._timeout_s)
            self._drop_requests()

    def _drop_requests(self) -> None:
        for task in list(self.server_state.tasks):
            task.cancel()
