"""A body as it arrives: counted, paced and bounded."""

from __future__ import annotations

import asyncio
import time

import pytest
from asgi_double import Channel, Message

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


def test_what_a_message_leaves_out_is_as_asgi_has_it() -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    body = Body([], receive, PATIENT)
    asyncio.run(body.read(lambda chunk: None, max_bytes=9, deadline=time.monotonic() + 30))
    assert (body.complete, body.received) == (True, 0)


def test_a_length_that_is_too_large_is_refused_before_anything_is_read() -> None:
    channel = Channel([b"x" * 101], {"content-length": "101"})
    with pytest.raises(LimitExceeded, match="101 bytes"):
        read(channel)
    assert channel.taken == 0


def test_without_a_length_reading_ends_at_the_bound_and_nothing_beyond_it_is_kept() -> None:
    channel, kept = Channel([b"x" * 60] * 10), bytearray()
    body = Body([], channel.receive, PATIENT)
    with pytest.raises(LimitExceeded, match="100 bytes"):
        asyncio.run(body.read(kept.extend, max_bytes=100, deadline=time.monotonic() + 30))
    assert (channel.taken, len(kept)) == (2, 60)


@pytest.mark.parametrize("headers", [{"content-length": "100"}, {}])
def test_a_body_may_be_as_large_as_the_bound(headers: dict[str, str]) -> None:
    assert len(read(Channel([b"x" * 60, b"x" * 40], headers))) == 100


@pytest.mark.parametrize("begun", [[], [b"x"]])
def test_a_sender_that_stops_is_too_slow(begun: list[bytes]) -> None:
    with pytest.raises(UploadTooSlow):
        read(Channel(begun, end=False), UploadPace(0.05, 30, 1))


def test_a_sender_below_the_least_rate_is_too_slow_after_the_grace() -> None:
    class Dripping(Channel):
        async def receive(self) -> dict[str, object]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(UploadTooSlow):
        read(Dripping(), UploadPace(30, 0.1, 1_000_000), max_bytes=10_000)


@pytest.mark.parametrize(("sent", "grace_s"), [(0, 30), (1, 0.01)])
def test_a_sender_may_pause_within_the_grace_and_as_long_as_what_it_has_sent_allows(sent: int, grace_s: float) -> None:
    class Pausing(Channel):
        async def receive(self) -> Message:
            if self.taken == sent:
                await asyncio.sleep(0.1)
            return await super().receive()

    assert len(read(Pausing([b"x" * 99, b"x"]), UploadPace(30, grace_s, 1))) == 100


def test_each_chunk_has_the_idle_time_anew() -> None:
    now = [100.0]

    class Steady(Channel):
        async def receive(self) -> Message:
            now[0] += 20
            await asyncio.sleep(0.01)
            return await super().receive()

    body = Body([], Steady([b"x"] * 5).receive, UploadPace(30, 1000, 1), lambda: now[0])
    asyncio.run(body.read(lambda chunk: None, max_bytes=9, deadline=9999))
    assert body.received == 5


def test_the_deadline_ends_an_upload_as_a_deadline() -> None:
    with pytest.raises(DeadlineExceeded) as raised:
        read(Channel([b"x"], end=False), timeout_s=0.05)
    assert not isinstance(raised.value, UploadTooSlow)


def test_a_caller_that_leaves_ends_the_reading() -> None:
    channel = Channel([b"x"], end=False)
    channel.leave()
    with pytest.raises(RequestCancelled):
        read(channel)


@pytest.mark.parametrize("error", [LimitExceeded, TimeoutError])
def test_what_the_sink_raises_ends_the_reading(error: type[Exception]) -> None:
    channel = Channel([b"a", b"b"])
    body = Body([], channel.receive, PATIENT)

    def refuse(chunk: bytes) -> None:
        raise error("no room")

    with pytest.raises(error, match="no room"):
        asyncio.run(body.read(refuse, max_bytes=9, deadline=time.monotonic() + 9))
    assert channel.taken == 1


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"ten")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-type", b"image/png"), (b"content-type", b"image/gif")],
        [(b"content-type", b"image/png"), (b"content-type", b"image/png"), (b"content-type", b"image/gif")],
    ],
)
def test_headers_that_contradict_themselves_are_malformed(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(MalformedRequest):
        Body(headers, Channel().receive, PATIENT)


def test_a_header_that_is_sent_twice_alike_counts_once() -> None:
    headers = [(b"content-length", b"7"), (b"content-type", b"image/png")]
    body = Body(headers * 2, Channel().receive, PATIENT)
    assert (body.content_length, body.content_type) == (7, "image/png")


def test_a_header_may_hold_any_byte_and_codings_any_case() -> None:
    odd = [(b"content-type", b"image/\xe9"), (b"content-encoding", b"\xe9"), (b"transfer-encoding", b"\xe9")]
    body = Body(odd, Channel().receive, PATIENT)
    assert (body.content_type, body.encoding, body.transfer_encoding) == ("image/\xe9", "\xe9", "\xe9")
    body = Body([(b"content-encoding", b"Identity"), (b"transfer-encoding", b" CHUNKED")], Channel().receive, PATIENT)
    assert (body.encoding, body.transfer_encoding) == ("identity", "chunked")
