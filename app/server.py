"""The HTTP server on its socket: uvicorn, with a drain that loses nothing (`app.drain`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn

from app.api.gate import Gate
from app.drain import Drain
from app.protocol import ConnectionLimits, limited_protocol

_log = logging.getLogger("hiera.server")
_BACKLOG = 2048
_CLEAN_UP_S = 5.0  # beyond the bound of a shutdown, for closing what the requests used


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `::` takes IPv4 as well.

    Raises:
        OSError: the address is in use, not ours, or not to be had without more rights.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=host == "::")


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
        on_drop: called when those that came by another way than HTTP are to be dropped.
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
        on_drop: Callable[[], object],
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
        self._timeout_s = timeout_s
        self._on_drain = on_drain
        self._on_stop = on_stop
        self._on_drop = on_drop
        self._drain = Drain(grace_s, on_drain=on_drain, on_stop=self._stop, on_drop=self._drop_requests)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, ends with exit status 0 after a signal instead of raising it again."""
        numbers = self._drain.listen()
        try:
            yield
        finally:
            for number in numbers:
                asyncio.get_running_loop().remove_signal_handler(number)

    def _stop(self) -> None:
        self._on_stop()
        self.should_exit = True
        asyncio.get_running_loop().call_later(self._timeout_s, self._overran)

    def _overran(self) -> None:
        if self.server_state.tasks:
            _log.warning("%d requests did not finish within %g s", len(self.server_state.tasks), self._timeout_s)
            self._drop_requests()

    def _drop_requests(self) -> None:
        self._on_drop()
        for task in list(self.server_state.tasks):
            task.cancel()
