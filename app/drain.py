"""What signals do to a server: it drains, and loses nothing.

a signal ──> not ready, requests are still taken ──grace──> no new ones ──> accepted ones finish ──> end
             a second one skips the grace                      a second one ends them unfinished

The signals are SIGTERM, SIGINT and SIGHUP.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

_log = logging.getLogger("hiera.server")


class Drain:
    """The steps of a drain, each taken once.

    Args:
        grace_s: how long requests are still taken after the first signal.
        on_drain: called at the first signal: readiness must say no from now on.
        on_stop: called when no more requests are to be taken.
        on_drop: called when those that are not finished are to be dropped.
    """

    def __init__(
        self,
        grace_s: float,
        *,
        on_drain: Callable[[], object],
        on_stop: Callable[[], object],
        on_drop: Callable[[], object],
    ) -> None:
        self._grace_s = grace_s
        self._on_drain = on_drain
        self._on_stop = on_stop
        self._on_drop = on_drop
        self._grace: asyncio.TimerHandle | None = None
        self._stopped = False

    def listen(self) -> list[signal.Signals]:
        """Have the running loop hand its signals to `signalled`; which those are.

        That the terminal hangs up is none of them where whoever started us had it ignored (nohup).
        """
        ignores_hang_up = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [signal.SIGTERM, signal.SIGINT, *([] if ignores_hang_up else [signal.SIGHUP])]
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, self.signalled, number)
        return numbers

    def signalled(self, number: int) -> None:
        """Take the next step."""
        name = signal.Signals(number).name
        if number == signal.SIGHUP and self._grace is not None:  # kernel and shell both send it; nobody is impatient
            return
        if self._stopped:
            _log.warning("%s again: requests that are not finished are dropped", name)
            self._on_drop()
        elif self._grace is not None:
            _log.info("%s again: no further requests are taken", name)
            self.stop()
        else:
            _log.info("%s: draining; no longer ready, requests are taken for another %g s", name, self._grace_s)
            self._on_drain()
            self._grace = asyncio.get_running_loop().call_later(self._grace_s, self.stop)

    def stop(self) -> None:
        """Take no more requests, without waiting for a signal or for the end of the grace."""
        if self._grace is not None:
            self._grace.cancel()
        if not self._stopped:
            self._stopped = True
            self._on_stop()
