"""Frames and file descriptors over one Unix stream socket, between the engine host and an HTTP worker.

A frame is a small header (length, kind, number of descriptors) and its payload. Frames that are sent within one turn of
the event loop leave in one system call, a message. The kernel delivers a message's descriptors no later than its first
byte (unix(7), SCM_RIGHTS), in order, and never those of two messages at once, so frames and descriptors pair up by
counting. A receiver that has no room for all of them gets the first ones (MSG_CTRUNC). That costs it what came with the
others, a file or a connection, and not the channel: each frame with a descriptor says how many of its message's are
left, its own included, so the following message is paired rightly.
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

NONE = -1  # a frame without a descriptor
LOST = -2  # the frame's descriptor found no room in this process
MAX_FRAME_BYTES = 64 << 20
_HEADER = struct.Struct("<IBB")
_READ_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 18
_LEFT_AT = 5  # in a header
_MAX_DESCRIPTORS = 64  # in one message; the kernel's own bound is 253
_MAX_UNCLAIMED = 1024  # messages whose descriptors no frame has asked for yet
_COMPLAIN_EVERY_S = 1.0
# As plain numbers: an `&` of flags from the enumeration costs as much as a system call.
_TRUNCATED, _CLOSE_ON_EXEC = int(socket.MSG_CTRUNC), int(socket.MSG_CMSG_CLOEXEC)
_ANCILLARY_BYTES = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)


class Channel:
    """One end of the socket, on the running event loop.

    Args:
        sock: connected; the channel owns it.
        on_frame: called with kind, payload and a descriptor that now belongs to it, or NONE, or LOST. What it raises
            ends the channel: a peer that is not understood is not listened to any further.
        on_end: called once when the peer hung up or the channel broke; not after `close`.
    """

    def __init__(self, sock: socket.socket, on_frame: OnFrame, on_end: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._descriptors: deque[deque[int]] = deque()  # what has arrived of each message's
        self._complained = -_COMPLAIN_EVERY_S
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._flushing = False
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, kind: int, payload: bytes = b"", descriptor: int = NONE) -> None:
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
        for attached in (*self._descriptors, *(attached for _, attached in self._unsent)):
            for descriptor in attached:
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
            taken: list[tuple[bytes, list[int]]] = []
            at: list[int] = []  # where the frames with descriptors are
            while self._unsent and len(chunk) < _CHUNK_BYTES and len(descriptors) < _MAX_DESCRIPTORS:
                taken.append(self._unsent.popleft())
                frame, attached = taken[-1]
                if attached:
                    at.append(len(chunk))
                    descriptors += attached
                chunk += frame
            for index, start in enumerate(at):
                chunk[start + _LEFT_AT] = len(at) - index
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = self._sock.sendmsg([chunk], rights)
            except OSError as error:
                self._unsent.extendleft(reversed(taken))
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
        if ancillary or flags & _TRUNCATED:
            received = array.array("i")
            for _, _, packed in ancillary:
                received.frombytes(packed[: len(packed) - len(packed) % received.itemsize])
            self._descriptors.append(deque(received))
        if flags & _TRUNCATED:
            self._complain()
        if not data or len(self._descriptors) > _MAX_UNCLAIMED:
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
            length, kind, left = _HEADER.unpack_from(received, at)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = at + _HEADER.size + length
            if end > len(received):
                break
            payload = bytes(received[at + _HEADER.size : end])
            at = end
            self._on_frame(kind, payload, self._claim(left) if left else NONE)
        del received[:at]

    def _claim(self, left: int) -> int:
        """The next descriptor of its message, of which so many are left; LOST if it found no room here."""
        arrived = self._descriptors[0]
        if len(arrived) > left:
            raise ValueError("a message with more descriptors than frames for them")
        descriptor = arrived.popleft() if arrived else LOST
        if left == 1:
            self._descriptors.popleft()
        return descriptor

    def _complain(self) -> None:
        now = self._loop.time()
        if now - self._complained >= _COMPLAIN_EVERY_S:
            self._complained = now
            logger.error("this process is out of descriptors: connections or files that were sent to it are lost")
