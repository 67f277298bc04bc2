"""Requests as they come, what they ask of admission, and what is in flight, here and in other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from app.serving.backlog import Lane
from app.serving.results import ClassifyOptions, Task


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request before its body is read.

    Attributes:
        task, options: what is wanted.
        started: `time.monotonic()` when it came; its deadline counts from there.
        files: how many it will bring, as far as is known; `Ticket.grow` takes more.
        body_bytes: the size of its body, likewise.
        caller: who sent it: callers take turns. "" where nobody is told apart.
    """

    task: Task
    options: ClassifyOptions
    started: float
    files: int = 1
    body_bytes: int = 0
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for.

    Attributes:
        lane: where its rows will queue.
        rows: that it will submit, as far as is known yet.
        nbytes: of its upload and of its rows, likewise.
        deadline: when its answer must be there, by the clock.
        decode_s: predicted seconds from now until its rows are decoded; None where it is not asked whether the deadline
            can be made.
        caller: who asks; "" where nobody is told apart.
    """

    lane: Lane
    rows: int
    nbytes: int
    deadline: float
    decode_s: float | None = 0.0
    caller: str = ""


@dataclass(frozen=True)
class InFlight:
    """What has been admitted and not released."""

    rows: int
    bytes: int


NOTHING = InFlight(0, 0)


class Peers(Protocol):
    """Other processes that admit work for the same engines. With this one they are `processes`."""

    @property
    def processes(self) -> int: ...

    def publish(self, mine: InFlight, backlog_s: Mapping[str, float]) -> None:
        """This process has `mine` in flight, which is so many seconds of work by device."""
        ...

    def in_flight(self) -> InFlight:
        """What the others have in flight."""
        ...

    def backlog_s(self, device: str) -> float:
        """Seconds of the others' work on `device`."""
        ...
