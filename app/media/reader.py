"""Bytes in memory as a file, for the libraries that want one."""

from __future__ import annotations

import io
import mmap
import os

# What an uploaded file may come as. Nothing here writes to it.
Data = bytes | bytearray | memoryview | mmap.mmap


class MemoryFile(io.RawIOBase):
    """A read-only, seekable file over `data`, which is neither copied nor changed."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self._view = memoryview(data).cast("B")
        self._size = self._view.nbytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._at
        elif whence == os.SEEK_END:
            offset += self._size
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        self._at = offset
        return offset

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        chunk = bytes(self._view[self._at : end])
        self._at += len(chunk)
        return chunk

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        chunk = self._view[self._at : min(self._at + len(buffer), self._size)]
        buffer[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)

    def close(self) -> None:
        """Let go of the data, so that its owner can unmap it."""
        if not self.closed:
            self._view.release()
        super().close()
