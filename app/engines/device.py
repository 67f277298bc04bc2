"""What an engine needs of a device: memory, pinned memory, streams, events and recorded work.

Addresses and handles are plain integers, as CUDA, ONNX Runtime and TensorRT take them. `app.engines.cuda` is the real
one; the tests' stand-in has the host's own memory, so that everything above this line runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

HostBytes = NDArray[np.uint8]


class Device(Protocol):
    """One device. Every method may be called from any thread, after `use` has been called on that thread.

    Methods raise EngineOutOfMemory where the device has no room, and EngineError for anything else.

    Attributes:
        alone: a lock of all who use the device, which a thread may take again; held while work is recorded, and while
            a library starts or ends here. CUDA lets nobody wait for the whole device while a stream of it is recorded,
            and libraries do when they start.
        name: "cuda:0".
        memory: how ONNX Runtime calls its memory, "cuda"; `index` is its number there.
        architecture: what plans are built for, "sm_90".
        description: the model and the memory, for people.
    """

    alone: AbstractContextManager[object]
    name: str
    memory: str
    index: int
    architecture: str
    description: str

    def use(self) -> None:
        """Make this the calling thread's device."""
        ...

    def allocate(self, nbytes: int) -> int:
        """The address of device memory."""
        ...

    def free(self, address: int) -> None: ...

    def pinned(self, nbytes: int) -> HostBytes:
        """Host memory that the device reads without a detour; it goes with the last view of it."""
        ...

    def stream(self) -> int:
        """A queue of work of its own."""
        ...

    def end_stream(self, stream: int) -> None: ...

    def upload(self, target: int, source: NDArray[Any], stream: int) -> None:
        """Queue a copy of C-contiguous host memory to the device; the source must stay as it is until it is done."""
        ...

    def download(self, target: NDArray[Any], source: int, stream: int) -> None:
        """Queue a copy from the device into C-contiguous host memory."""
        ...

    def move(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy within the device."""
        ...

    def event(self) -> int:
        """A mark that can be set in one stream and waited for in another."""
        ...

    def end_event(self, event: int) -> None: ...

    def mark(self, event: int, stream: int) -> None:
        """Set the event when all that is queued so far is done."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Hold the work that is queued from here on until the event is set."""
        ...

    def synchronise(self, stream: int) -> None:
        """Block until all that is queued is done."""
        ...

    def record(self, work: Callable[[], None], stream: int) -> int:
        """Record what `work` queues, without doing it, as one piece (a CUDA graph)."""
        ...

    def replay(self, recorded: int, stream: int) -> None: ...

    def end_recorded(self, recorded: int) -> None: ...
