"""A body as it arrives: counted, paced and bounded."""

from __future__ import annotations

import asyncio
import time

import pytest
from asgi_double import Channel

from app.api.body import Body, UploadPace
from app.api.problems import UploadTooSlow
from app.errors import DeadlineExceeded, LimitExceeded, MalformedRequest, RequestCancelled

PATIENT = UploadPace(idle_timeout_s=30, grace_s=30, min_bytes_per_s=1)


def read(channel: Channel, pace: UploadPace = PATIENT, *, max_bytes: int = 100, timeout_s: float = 30) -> bytes:
    taken = bytearray()
    body = Body(channel.scope["headers"], channel.receive, pace)
    asyncio.run(body.read(taken.extend, max_bytes=max_bytes, deadline=time.monotonic() + timeout_s))
    assert body.complete
    assert body.received == len(taken)
    return bytes(taken)


def test_every_chunk_reaches_the_sink_in_order() -> None:
    assert read(Channel([b"abc", b"", b"de"])) == b"abcde"


def test_a_length_that_is_too_large_is_refused_before_anything_is_read() -> None:
    channel = Channel([b"x" * 101], {"content-length": "101"})
    with pytest.raises(LimitExceeded, match="101 bytes"):
        read(channel)
    assert channel.taken == 0


def test_without_a_length_reading_ends_at_the_bound() -> None:
    channel = Channel([b"x" * 60] * 10)
    with pytest.raises(LimitExceeded, match="100 bytes"):
        read(channel)
    assert channel.taken == 2


def test_a_sender_that_stops_is_too_slow() -> None:
    with pytest.raises(UploadTooSlow):
        read(Channel([b"x"], end=False), UploadPace(0.05, 30, 1))


def test_a_sender_below_the_least_rate_is_too_slow_after_the_grace() -> None:
    class Dripping(Channel):
        async def receive(self) -> dict[str, object]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(UploadTooSlow):
        read(Dripping(), UploadPace(30, 0.1, 1_000_000), max_bytes=10_000)


def test_the_deadline_ends_an_upload_as_a_deadline() -> None:
    with pytest.raises(DeadlineExceeded) as raised:
        read(Channel([b"x"], end=False), timeout_s=0.05)
    assert not isinstance(raised.value, UploadTooSlow)


def test_a_caller_that_leaves_ends_the_reading() -> None:
    channel = Channel([b"x"], end=False)
    channel.leave()
    with pytest.raises(RequestCancelled):
        read(channel)


def test_what_the_sink_raises_ends_the_reading() -> None:
    channel = Channel([b"a", b"b"])
    body = Body([], channel.receive, PATIENT)

    def refuse(chunk: bytes) -> None:
        raise LimitExceeded("no room")

    with pytest.raises(LimitExceeded, match="no room"):
        asyncio.run(body.read(refuse, max_bytes=9, deadline=time.monotonic() + 9))
    assert channel.taken == 1


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"ten")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-type", b"image/png"), (b"content-type", b"image/gif")],
    ],
)
def test_headers_that_contradict_themselves_are_malformed(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(MalformedRequest):
        Body(headers, Channel().receive, PATIENT)
