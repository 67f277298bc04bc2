"""Lends the engine that has all cores to itself to one batch, while no other of the same model runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.engines.base import Engine

logger = logging.getLogger(__name__)


class Company:
    """Engines of one model that share its cores: several streams, each with some of them, and one with all.

    A row that comes alone is answered soonest by all cores together; many are served best by streams that don't wait
    for each other. So a batch that has no company takes the whole, and every other one its own stream.

    Args:
        whole: the engine with all cores. Closed by `close`, when no batch runs any more.
    """

    def __init__(self, whole: Engine) -> None:
        self._whole: Engine | None = whole
        self._lock = threading.Lock()
        self._running = 0

    @contextmanager
    def engine_for(self, stream: Engine, *, waiting: int) -> Iterator[Engine]:
        """The engine to run a batch on: the whole if nothing else runs and nothing is `waiting`, else `stream`.

        Should the whole fail, it is not lent again. A run that never returns keeps its place, so that the whole, which
        may be what hangs, stays out of use too.
        """
        with self._lock:
            self._running += 1
            whole = self._whole if self._running == 1 and not waiting else None
        try:
            yield whole or stream
        except Exception as error:
            if whole is not None:
                logger.warning("the engine on all cores failed and is not used again (%s)", error)
                self._whole = None
                whole.close()
            raise
        finally:
            with self._lock:
                self._running -= 1

    def close(self) -> None:
        """Give the whole's memory back, if nothing is stuck in it."""
        with self._lock:
            whole, self._whole = self._whole, None
            if whole is not None and not self._running:
                whole.close()
