"""A `Device` whose memory is the host's and whose queues do everything at once: what stands above a GPU runs for real.

It keeps account of what was given out, and lets a test refuse memory or recording. Another one does nothing before it
must, as a GPU may: what was not waited for has not happened.
"""

from __future__ import annotations

import ctypes
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engines.device import HostBytes
from app.errors import EngineError, EngineOutOfMemory


class HostDevice:
    """Attributes: `held` has what was not given back; `log` the names of the calls that move or run something."""

    memory = "cpu"
    index = 0
    alone: AbstractContextManager[object] = threading.RLock()

    def __init__(
        self, *, architecture: str = "sm_0", room: int | None = None, records: bool = True, name: str = "cuda:0"
    ) -> None:
        self.name = name
        self.architecture = architecture
        self.description = "the host's memory"
        self.room = room
        self.records = records
        self.held: set[object] = set()
        self.log: list[str] = []
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._works: dict[int, Callable[[], None]] = {}
        self._number = 0

    def use(self) -> None:
        """There is one."""

    def allocate(self, nbytes: int) -> int:
        if self.room is not None and nbytes > self.room:
            raise EngineOutOfMemory(f"no room for {nbytes} bytes")
        block = np.full(nbytes, 0xA5, np.uint8)  # poisoned: what was never written shows
        address = int(block.ctypes.data)
        self._blocks[address] = block
        self.held.add(("memory", address))
        return address

    def free(self, address: int) -> None:
        self.held.remove(("memory", address))
        del self._blocks[address]

    def pinned(self, nbytes: int) -> HostBytes:
        return np.full(nbytes, 0x5A, np.uint8)

    def stream(self) -> int:
        return self._new("stream")

    def end_stream(self, stream: int) -> None:
        self.held.remove(("stream", stream))

    def upload(self, target: int, source: NDArray[Any], stream: int) -> None:
        self.log.append("upload")
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def download(self, target: NDArray[Any], source: int, stream: int) -> None:
        self.log.append("download")
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def move(self, target: int, source: int, nbytes: int, stream: int) -> None:
        ctypes.memmove(target, source, nbytes)

    def event(self) -> int:
        return self._new("event")

    def end_event(self, event: int) -> None:
        self.held.remove(("event", event))

    def mark(self, event: int, stream: int) -> None:
        assert ("event", event) in self.held

    def wait(self, stream: int, event: int) -> None:
        assert ("event", event) in self.held

    def synchronise(self, stream: int) -> None:
        assert ("stream", stream) in self.held

    def record(self, work: Callable[[], None], stream: int) -> int:
        if not self.records:
            raise EngineError("this work cannot be recorded")
        self.log.append("record")
        number = self._new("recorded")
        self._works[number] = work
        return number

    def replay(self, recorded: int, stream: int) -> None:
        self.log.append("replay")
        self._works[recorded]()

    def end_recorded(self, recorded: int) -> None:
        self.held.remove(("recorded", recorded))

    def _new(self, kind: str) -> int:
        self._number += 1
        self.held.add((kind, self._number))
        return self._number


class LateDevice(HostDevice):
    """Does a stream's work when that is synchronised, or when another stream waits for an event behind it."""

    def __init__(self) -> None:
        super().__init__(records=False)
        self._queues: defaultdict[int, deque[Callable[[], None]]] = defaultdict(deque)
        self._marked: dict[int, int] = {}  # streams, by the events that they have not come to

    def later(self, stream: int, work: Callable[[], None]) -> None:
        """Queue work that reads and writes the device's memory."""
        self._queues[stream].append(work)

    def upload(self, target: int, source: NDArray[Any], stream: int) -> None:
        self.later(stream, lambda: HostDevice.upload(self, target, source, stream))

    def download(self, target: NDArray[Any], source: int, stream: int) -> None:
        self.later(stream, lambda: HostDevice.download(self, target, source, stream))

    def move(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.later(stream, lambda: HostDevice.move(self, target, source, nbytes, stream))

    def mark(self, event: int, stream: int) -> None:
        super().mark(event, stream)
        self._marked[event] = stream
        self.later(stream, lambda: self._reach(event))

    def wait(self, stream: int, event: int) -> None:
        super().wait(stream, event)
        self.later(stream, lambda: self._run_to(event))

    def synchronise(self, stream: int) -> None:
        super().synchronise(stream)
        while self._queues[stream]:
            self._queues[stream].popleft()()

    def _reach(self, event: int) -> None:
        del self._marked[event]

    def _run_to(self, event: int) -> None:
        while event in self._marked:
            self._queues[self._marked[event]].popleft()()


class GuardedDevice(HostDevice):
    """Keeps account of what was done while its lock was not held, of what may not be done beside a recording."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = self
        self.depth = 0
        self.unguarded: list[str] = []

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1

    def note(self, what: str) -> None:
        if not self.depth:
            self.unguarded.append(what)

    def stream(self) -> int:
        self.note("stream")
        return super().stream()

    def end_stream(self, stream: int) -> None:
        self.note("end_stream")
        super().end_stream(stream)

    def record(self, work: Callable[[], None], stream: int) -> int:
        self.note("record")
        return super().record(work, stream)
