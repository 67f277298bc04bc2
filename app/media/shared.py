"""Memory that the server shares with a media worker: an upload on the way in, rows of pixels on the way out.

Both are anonymous files (`memfd_create(2)`), handed over by descriptor, so that a worker sees the request that it
decodes and nothing else. Seals keep both sides honest: an upload cannot be changed once a worker has it, and no worker
can shrink the rows under a server that has them mapped (that would be a SIGBUS in the server).
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import sys
from collections.abc import Callable
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from app.errors import Overloaded
from app.media.spec import DecodeInfo

SMALL_FILE_BYTES = 96 * 1024  # below what a packet may hold
KEPT_BUFFER_BYTES = 1 << 20  # larger row buffers (videos) are not kept: zeroing them is little beside decoding
KEPT_BUFFERS = 24  # per worker: rows wait for their batch in them; below its limit of descriptors
ONE_SHOT = 0xFFFF  # the slot number of a buffer that is not kept

_MEMFD_FLAGS = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
_READ_ONLY = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def no_room(error: OSError) -> Overloaded:
    """The caller's words for a machine that is out of descriptors or memory."""
    refusal = Overloaded("the server has no room for another file now; try again", retry_after_s=1.0)
    refusal.__cause__ = error
    return refusal


class SharedBytes:
    """One uploaded file: written as it arrives, sealed before a worker may read it. Close it once.

    A small file stays in this process and travels inside the job's message, which is several times cheaper than a
    descriptor; a larger one lies in shared memory.

    Raises:
        Overloaded: no descriptor or memory is left, in `write`.
    """

    __slots__ = ("_closed", "_fd", "_sealed", "_small", "size")

    def __init__(self) -> None:
        self._fd = -1
        self._small = bytearray()
        self._sealed = False
        self._closed = False
        self.size = 0

    @classmethod
    def of(cls, data: bytes | memoryview) -> SharedBytes:
        """A file that is already complete."""
        body = cls()
        body.write(data)
        return body

    @property
    def fd(self) -> int:
        """Descriptor of the shared memory; -1 for a small file, and once closed."""
        return self._fd

    @property
    def small(self) -> bytearray:
        """All bytes of a small file; nothing of a larger one."""
        return self._small

    def write(self, chunk: bytes | memoryview) -> None:
        """Append `chunk`. ValueError once sealed or closed."""
        if self._sealed or self._closed:
            raise ValueError("the upload is sealed or closed; nothing can be appended")
        if self._fd < 0 and self.size + len(chunk) <= SMALL_FILE_BYTES:
            self._small += chunk
        else:
            try:
                self._append(chunk)
            except OSError as error:
                raise no_room(error) from error
        self.size += len(chunk)

    def seal(self) -> None:
        """Make the bytes unchangeable, by anyone and for good. Sealing twice is allowed."""
        if self._closed:
            raise ValueError("the upload is closed")
        if self._fd >= 0 and not self._sealed:
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _READ_ONLY)
        self._sealed = True

    def close(self) -> None:
        """Give the memory back, as far as no worker is reading it still. Closing twice is allowed."""
        self._closed = True
        self._small = bytearray()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _append(self, chunk: bytes | memoryview) -> None:
        rest = memoryview(chunk)
        if self._fd < 0:
            self._fd = os.memfd_create("upload", _MEMFD_FLAGS)
            rest, self._small = memoryview(bytes(self._small) + rest), bytearray()
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def __enter__(self) -> SharedBytes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class DecodedRows:
    """What came of a file: its rows, and what it turned out to be. Close it once nothing reads `rows` any more.

    Attributes:
        info: size, format and, for videos, the views in the order of the rows.
        decode_s: seconds that the worker took.
        reused: whether the memory will hold other rows later.
    """

    __slots__ = ("_fd", "_release", "_rows", "decode_s", "info", "reused")

    def __init__(
        self,
        rows: NDArray[np.uint8],
        info: DecodeInfo,
        decode_s: float,
        fd: int = -1,
        release: Callable[[], None] | None = None,
        *,
        reused: bool = False,
    ) -> None:
        self._rows: NDArray[np.uint8] | None = rows
        self.info = info
        self.reused = reused
        self.decode_s = decode_s
        self._fd = fd
        self._release = release

    @property
    def rows(self) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3] or [n, T, H, W, 3], read-only: a view of shared memory. ValueError once closed."""
        if self._rows is None:
            raise ValueError("the rows were released")
        return self._rows

    @property
    def fd(self) -> int:
        """Descriptor of the shared memory (the rows start at 0), to pass on to another process; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed; arrays taken from `rows` earlier stay valid."""
        self._rows, self._fd = None, -1
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> DecodedRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class RowBuffer:
    """Shared memory of a fixed size that a worker writes rows into and the server reads.

    Raises:
        Overloaded: no descriptor or memory is left.
    """

    __slots__ = ("_bytes", "fd", "size", "slot")

    def __init__(self, size: int, slot: int) -> None:
        self.fd = -1
        self.size = size
        self.slot = slot
        try:
            self.fd = os.memfd_create("rows", _MEMFD_FLAGS)
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
            mapped = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except OSError as error:
            self.close()
            raise no_room(error) from error
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(mapped, dtype=np.uint8)

    def rows(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The memory as a read-only uint8 array of `shape`."""
        if self._bytes is None:
            raise ValueError("the buffer is closed")
        return self._bytes.reshape(shape)  # [size] -> [n, H, W, 3] or [n, T, H, W, 3]

    def is_read(self) -> bool:
        """Whether an array from `rows`, or a view of one, is still alive somewhere."""
        return sys.getrefcount(self._bytes) > 2  # ours and getrefcount's own; every view keeps its root array alive

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last array over it does."""
        fd, self.fd = self.fd, -1
        self._bytes = None
        if fd >= 0:
            os.close(fd)


class UploadedRows:
    """Rows that the caller has decoded: written as they arrive, and then what `DecodedRows` is to an engine.

    Args:
        shape: [n, *row_shape], n >= 1.

    Raises:
        Overloaded: no descriptor or memory is left, in `write` too.
    """

    reused = False

    __slots__ = ("_buffer", "_missing", "_shape")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._missing = math.prod(shape)
        self._buffer = RowBuffer(self._missing, ONE_SHOT)

    @property
    def missing(self) -> int:
        """Bytes that have yet to come."""
        return self._missing

    def write(self, chunk: bytes | memoryview) -> None:
        """Append `chunk`. ValueError if it is more than is missing, and once closed."""
        if len(chunk) > self._missing or self.fd < 0:
            raise ValueError("more bytes than there are rows for, or rows that are closed")
        rest = memoryview(chunk)
        while rest:
            try:
                written = os.pwrite(self.fd, rest, self._buffer.size - self._missing)
            except OSError as error:
                raise no_room(error) from error
            self._missing -= written
            rest = rest[written:]

    @property
    def rows(self) -> NDArray[np.uint8]:
        """uint8 of `shape`, read-only: a view of shared memory. ValueError while bytes are missing, and once closed."""
        if self._missing:
            raise ValueError(f"{self._missing} bytes of the rows are missing")
        return self._buffer.rows(self._shape)

    @property
    def fd(self) -> int:
        """Descriptor of the shared memory (the rows start at 0); -1 once closed."""
        return self._buffer.fd

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed; arrays taken from `rows` earlier stay valid."""
        self._buffer.close()

    def __del__(self) -> None:
        if hasattr(self, "_buffer"):  # else there was no room for it
            self.close()


class RowBuffers:
    """The row buffers of one worker, used again once their rows were released.

    A fresh page costs a fault and its zeroing, for a row as much as a tenth of decoding a small photo, so a few buffers
    stay mapped on both sides. They never move to another worker: each sees the pixels that it decoded itself.
    """

    def __init__(self) -> None:
        self._free: list[RowBuffer] = []
        self._slots = list(range(KEPT_BUFFERS))
        self._closed = False

    def take(self, size: int) -> tuple[RowBuffer, bool]:
        """A buffer of `size` bytes, and whether the worker has yet to be given its descriptor.

        Raises:
            Overloaded: no descriptor or memory is left.
        """
        for index in reversed(range(len(self._free))):
            if self._free[index].size == size:
                return self._free.pop(index), False
        if size > KEPT_BUFFER_BYTES:
            return RowBuffer(size, ONE_SHOT), True
        if not self._slots and self._free:
            self._drop(self._free.pop(0))
        if not self._slots:
            return RowBuffer(size, ONE_SHOT), True
        buffer = RowBuffer(size, self._slots[-1])
        self._slots.pop()
        return buffer, True

    def give_back(self, buffer: RowBuffer, *, mapped: bool = True) -> None:
        """Keep `buffer` for a later job, if the worker has it `mapped` and no array over it is alive."""
        if self._closed or not mapped or buffer.slot == ONE_SHOT or buffer.is_read():
            self._drop(buffer)
        else:
            self._free.append(buffer)

    def close(self) -> None:
        """Close the buffers that are free, and the others when they come back."""
        self._closed = True
        while self._free:
            self._drop(self._free.pop())

    def _drop(self, buffer: RowBuffer) -> None:
        if buffer.slot != ONE_SHOT:
            self._slots.append(buffer.slot)
        buffer.close()
