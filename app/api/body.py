"""A request's body as it arrives: counted, paced, and bounded before and while it is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from app.api.problems import UploadTooSlow
from app.errors import DeadlineExceeded, LimitExceeded, MalformedRequest, RequestCancelled

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
RawHeaders = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class UploadPace:
    """How slowly a body may come: never silent for `idle_timeout_s`, after `grace_s` at a mean of `min_bytes_per_s`."""

    idle_timeout_s: float
    grace_s: float
    min_bytes_per_s: float


class Body:
    """The body of one request.

    Args:
        headers: the request's raw headers, names in lower case.
        receive: the ASGI channel.
        pace: how slow the sender may be.
        clock: monotonic seconds, those of the deadlines.
    """

    def __init__(
        self, headers: RawHeaders, receive: Receive, pace: UploadPace, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.content_length = _content_length(headers)
        self.content_type = single_header(headers, b"content-type").decode("latin-1")
        self.encoding = single_header(headers, b"content-encoding").decode("latin-1").strip().lower()
        self.transfer_encoding = single_header(headers, b"transfer-encoding").decode("latin-1").strip().lower()
        self.received = 0
        self.complete = False
        self._deadline_is_next = False
        self._receive = receive
        self._pace = pace
        self._clock = clock

    def check_length(self, max_bytes: int) -> None:
        """Raise LimitExceeded if Content-Length already says that the body is too large."""
        if self.content_length is not None and self.content_length > max_bytes:
            raise LimitExceeded(
                f"the body has {self.content_length:,} bytes; this server accepts at most {max_bytes:,} here"
            )

    async def read(self, sink: Callable[[bytes], object], *, max_bytes: int, deadline: float) -> None:
        """Hand every chunk to `sink` as it arrives, until the body is complete.

        Args:
            sink: takes a chunk; what it raises ends the reading.
            max_bytes: most bytes of the whole body.
            deadline: `time.monotonic()` seconds.

        Raises:
            LimitExceeded: more than `max_bytes`, said by Content-Length or sent.
            UploadTooSlow: the sender paused for too long or is too slow.
            DeadlineExceeded: not complete in time.
            RequestCancelled: the caller left.
        """
        self.check_length(max_bytes)
        started = self._clock()
        bound = asyncio.timeout(self._patience(started, deadline))
        try:
            async with bound:
                while not self.complete:
                    chunk = await self._next()
                    if self.received > max_bytes:
                        raise LimitExceeded(f"the body is larger than the {max_bytes:,} bytes that are accepted here")
                    if chunk:
                        sink(chunk)
                    if not self.complete:
                        bound.reschedule(asyncio.get_running_loop().time() + self._patience(started, deadline))
        except TimeoutError:
            if not bound.expired():
                raise
            if self._deadline_is_next:
                raise DeadlineExceeded("the time for this request ran out while its body was still coming") from None
            raise UploadTooSlow(
                "the body came too slowly; send it without pauses, or shrink the file before sending"
            ) from None

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise RequestCancelled("the caller left while its body was still coming")
        chunk: bytes = message.get("body", b"")
        self.received += len(chunk)
        self.complete = not message.get("more_body", False)
        return chunk

    def _patience(self, started: float, deadline: float) -> float:
        """Seconds from now that the next chunk may take."""
        now = self._clock()
        rate_bound = started + self._pace.grace_s + self.received / self._pace.min_bytes_per_s
        pace_bound = min(rate_bound, now + self._pace.idle_timeout_s)
        self._deadline_is_next = deadline <= pace_bound
        return max(0.0, min(deadline, pace_bound) - now)


def _content_length(headers: RawHeaders) -> int | None:
    text = single_header(headers, b"content-length")
    if not text:
        return None
    if not text.isdigit():
        raise MalformedRequest("the Content-Length header is not a number")
    return int(text)


def single_header(headers: RawHeaders, name: bytes) -> bytes:
    """The value of a header that may stand once; empty without it. Raises MalformedRequest: it stands there twice, and
    differs."""
    values = list(_values(headers, name))
    if len(values) > 1 and any(value != values[0] for value in values):
        raise MalformedRequest(f"the {name.decode()} header was sent more than once")
    return values[0] if values else b""


def _values(headers: RawHeaders, name: bytes) -> Iterator[bytes]:
    return (value for key, value in headers if key == name)
