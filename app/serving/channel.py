"""Frames and file descriptors over one Unix stream socket, between the engine host and an HTTP worker.

A frame is a small header (length, kind, whether a descriptor comes along) and its payload. Frames that are sent within
one turn of the event loop leave in one system call. The kernel delivers a descriptor no later than the first byte that
was sent with it (unix(7), SCM_RIGHTS), and in order, so frames and descriptors pair up by counting.
"""

from __future__ import annotations

import array
import asyncio
import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

OnFrame = Callable[[int, bytes, int], None]

MAX_FRAME_BYTES = 64 << 20
_HEADER = struct.Struct("<IBB")
_READ_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 18
_MAX_DESCRIPTORS = 64  # in one message; the kernel's own bound is 253
# As plain numbers: an `&` of flags from the enumeration costs as much as a system call.
_TRUNCATED, _CLOSE_ON_EXEC = int(socket.MSG_CTRUNC), int(socket.MSG_CMSG_CLOEXEC)
_ANCILLARY_BYTES = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)


class Channel:
    """One end of the socket, on the running event loop.

    Args:
        sock: connected; the channel owns it.
        on_frame: called with kind, payload and a descriptor that now belongs to it, or -1. What it raises ends the
            channel: a peer that is not understood is not listened to any further.
        on_end: called once when the peer hung up or the channel broke; not after `close`.
    """

    def __init__(self, sock: socket.socket, on_frame: OnFrame, on_end: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._flushing = False
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, kind: int, payload: bytes = b"", descriptor: int = -1) -> None:
        """Send a frame soon; nothing after the end. `descriptor` is closed once it has left."""
        if self._closed:
            if descriptor >= 0:
                os.close(descriptor)
            return
        has_descriptor = descriptor >= 0
        frame = _HEADER.pack(len(payload), kind, has_descriptor) + payload
        self._unsent.append((frame, [descriptor] if has_descriptor else []))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Hang up. What was not sent yet is dropped; closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for descriptor in (*self._descriptors, *(each for _, sent in self._unsent for each in sent)):
            os.close(descriptor)
        self._descriptors.clear()
        self._unsent.clear()

    def _end(self) -> None:
        if not self._closed:
            self.close()
            self._on_end()

    def _flush(self) -> None:
        while self._unsent and not self._closed:
            chunk = bytearray()
            descriptors: list[int] = []
            while self._unsent and len(chunk) < _CHUNK_BYTES and len(descriptors) < _MAX_DESCRIPTORS:
                frame, attached = self._unsent.popleft()
                chunk += frame
                descriptors += attached
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = self._sock.sendmsg([chunk], rights)
            except OSError as error:
                self._unsent.appendleft((bytes(chunk), descriptors))
                if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS):
                    self._loop.add_writer(self._sock.fileno(), self._flush)
                else:
                    self._end()
                return
            for descriptor in descriptors:
                os.close(descriptor)
            if sent < len(chunk):
                self._unsent.appendleft((bytes(chunk[sent:]), []))
        if not self._closed:
            self._loop.remove_writer(self._sock.fileno())
            self._flushing = False

    def _readable(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        for _, _, packed in ancillary:
            received = array.array("i")
            received.frombytes(packed[: len(packed) - len(packed) % received.itemsize])
            self._descriptors.extend(received)
        if not data or flags & _TRUNCATED:  # a lost descriptor would pair the following ones wrongly
            self._end()
            return
        self._received += data
        try:
            self._hand_over()
        except Exception:
            logger.exception("a frame was not understood; hanging up")
            self._end()

    def _hand_over(self) -> None:
        at = 0
        received = self._received
        while len(received) - at >= _HEADER.size and not self._closed:
            length, kind, has_descriptor = _HEADER.unpack_from(received, at)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = at + _HEADER.size + length
            if end > len(received):
                break
            payload = bytes(received[at + _HEADER.size : end])
            at = end
            self._on_frame(kind, payload, self._descriptors.popleft() if has_descriptor else -1)
        del received[:at]
