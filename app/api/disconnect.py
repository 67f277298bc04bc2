"""Ends the work of a request as soon as its caller hangs up."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from app.api.body import Receive
from app.errors import RequestCancelled


class CancelOnDisconnect:
    """Cancels what runs inside the context when the caller leaves, and raises RequestCancelled instead.

    Enter it once the body is complete: from then on the ASGI channel has nothing to say but `http.disconnect`.
    """

    __slots__ = ("_left", "_receive", "_task", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("an ASGI application runs in a task")
        self._task: asyncio.Task[Any] = task
        self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        task = self._task
        del self._watcher, self._task  # both lead back here; cut, they need no garbage collector
        if self._left and task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise RequestCancelled("the caller left before the answer was ready") from None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()
