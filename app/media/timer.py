"""A moment to come back to what is waited for: one at a time, the latest that was set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Timer:
    """Calls back once, unless it is set anew or cancelled before. For the running event loop."""

    __slots__ = ("_handle",)

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def set(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back after `delay_s` seconds, at once where they are negative, instead of what was planned before."""
        self.cancel()
        self._handle = asyncio.get_running_loop().call_later(max(0.0, delay_s), callback, *arguments)

    def cancel(self) -> None:
        """Do not call back."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
