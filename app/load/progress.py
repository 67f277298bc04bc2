"""A progress bar on standard error: one line redrawn on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TextIO


class ProgressBar:
    """`with ProgressBar("16 connections") as bar: …(progress=bar.show)`."""

    def __init__(self, label: str, *, width: int = 30, stream: TextIO | None = None) -> None:
        self._label = label
        self._width = width
        self._stream = stream or sys.stderr
        self._is_drawn = self._stream.isatty()

    def __enter__(self) -> ProgressBar:
        self.show(0.0, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def show(self, fraction: float, answers: int) -> None:
        """`fraction` of the time is over, and there were `answers`."""
        if self._is_drawn:
            full = round(fraction * self._width)
            bar = "█" * full + "░" * (self._width - full)
            self._stream.write(f"\r\x1b[K{self._label}  {bar} {fraction:4.0%}  {answers:,} answers")
            self._stream.flush()
