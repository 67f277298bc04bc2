"""One keep-alive HTTP/1.1 connection that sends prebuilt bytes and reads just enough of the answer.

A general client spends more on a request than this server does; here a request costs one `write` and, mostly, one or
two reads, so that the generator leaves the cores to what it measures.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import cast

from app.load.target import Target

LOST = 0  # "status" of a request whose connection was refused, broke, or answered with something that is not HTTP
TIMED_OUT = -1  # "status" of a request that had no answer in time

_STATUS = re.compile(rb"HTTP/\d\.\d (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_TIMING = re.compile(rb"\r\nserver-timing:[ \t]*([^\r\n]*)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after:[ \t]*(\d+)", re.IGNORECASE)
_REFUSALS = (429, 503)
_SWITCHING_PROTOCOLS = 101  # the one status below 200 that is the last word


@dataclass(frozen=True, slots=True)
class Answer:
    """`finished_s` is `time.perf_counter()` at the last byte; `timing` the Server-Timing header, empty without one;
    `retry_after_s` the Retry-After header of a refusal (429, 503)."""

    status: int
    body: bytes
    timing: bytes
    finished_s: float
    retry_after_s: int | None = None


class Connection(asyncio.Protocol):
    """Sends one request at a time; `exchange` returns when the answer is whole or the connection is gone."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._head: bytes | None = None
        self._status = LOST  # in the head
        self._body_at = 0
        self._length: int | None = None  # of the body; None while unknown or chunked
        self._waiter: asyncio.Future[Answer] | None = None
        self.sent_s = 0.0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_waiting(self) -> bool:
        return self._waiter is not None

    async def exchange(self, request: bytes) -> Answer:
        if self._transport is None or self._waiter is not None:
            raise RuntimeError("one request at a time, on an open connection")
        self._waiter = asyncio.get_running_loop().create_future()
        self.sent_s = time.perf_counter()
        self._transport.write(request)
        return await self._waiter

    def send(self, more: bytes) -> None:
        """Send more of the request whose answer is awaited; nothing once the connection is closed."""
        if self._transport is not None:
            self._transport.write(more)

    def abandon(self, status: int) -> None:
        """Give up the request in flight, if any, as `status`, and close."""
        self._settle(status, b"")
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._settle(LOST, b"")

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._head is None and not self._read_head():
            return
        if self._length is not None:
            if len(self._received) - self._body_at < self._length:
                return
        elif not self._received.endswith(b"0\r\n\r\n"):
            return  # the last chunk has not come
        head = self._head or b""
        self._settle(self._status, bytes(self._received[self._body_at :]))
        if _CLOSE.search(head) and self._transport is not None:
            self._transport.close()

    def _read_head(self) -> bool:
        """Whether the final answer's head is there; interim ones before it (100 Continue) are dropped."""
        while True:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = bytes(self._received[: end + 2])
            status = _STATUS.match(head)
            if status is None:
                self.abandon(LOST)
                return False
            self._status = int(status[1])
            if not 100 <= self._status < 200 or self._status == _SWITCHING_PROTOCOLS:
                break
            del self._received[: end + 4]
        self._head = head
        self._body_at = end + 4
        length = _LENGTH.search(self._head)
        if length is not None:
            self._length = int(length[1])
        elif not _CHUNKED.search(self._head):
            self._length = 0
        return True

    def _settle(self, status: int, body: bytes) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            head = self._head or b""
            timing = _TIMING.search(head)
            retry = _RETRY_AFTER.search(head) if status in _REFUSALS else None
            retry_after_s = int(retry[1]) if retry else None
            waiter.set_result(Answer(status, body, timing[1] if timing else b"", time.perf_counter(), retry_after_s))
        self._received.clear()
        self._head, self._length = None, None


async def connect(target: Target) -> Connection:
    """Open a connection.

    Raises:
        OSError: refused or unreachable.
    """
    _, connection = await asyncio.get_running_loop().create_connection(Connection, target.address, target.port)
    return connection
