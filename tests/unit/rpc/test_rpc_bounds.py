"""What a real gRPC server bears of its callers, and how its calls end: with their callers, or with the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from inference_grpc import message, method
from rpc_double import Asked, Message, another_channel, on_a_loop, outcome, serving, until

from app.rpc.messages import MESSAGES, SERVICE
from app.rpc.server import MESSAGE_BYTES

EXHAUSTED, LATE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
ENDED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # as gRPC's library has it, when a server stops
LIVE, READY = message("ServerLive"), message("ModelReady", name="m")
LIVES = MESSAGES["ServerLiveResponse"]
MIB = 1 << 20


def infer(nbytes: int) -> Any:
    """A call whose message has about so many bytes."""
    return message("ModelInfer", model_name="m", inputs=[{"name": "rows"}], raw_input_contents=[bytes(nbytes)])


async def once_there_is_room(channel: grpc.aio.Channel, name: str, sent: Any) -> grpc.StatusCode:
    """The status of a call: a place is free soon after its call has ended."""
    while (status := (await outcome(method(channel, name)(sent)))[0]) is EXHAUSTED:
        await asyncio.sleep(0.01)
    return status


@on_a_loop
async def test_a_message_that_is_too_large_reaches_nobody() -> None:
    app = Asked()
    rest = infer(MESSAGE_BYTES).ByteSize() - MESSAGE_BYTES
    async with serving(app) as (server, channel, _):
        await method(channel, "ModelInfer")(infer(MESSAGE_BYTES - rest))
        assert server.received_bytes == MESSAGE_BYTES
        status, _ = await outcome(method(channel, "ModelInfer")(infer(MESSAGE_BYTES - rest + 1)))
        assert status is EXHAUSTED
        packed = method(channel, "ModelInfer")(infer(MESSAGE_BYTES), compression=grpc.Compression.Gzip)
        assert (await outcome(packed))[0] is grpc.StatusCode.UNIMPLEMENTED  # it is not even unpacked
        assert server.received_bytes == MESSAGE_BYTES
    assert len(app.scopes) == 1


@on_a_loop
async def test_metadata_that_are_too_large_reach_nobody() -> None:
    app = Asked(document={})
    async with serving(app, metadata_bytes=4096) as (_, channel, _):
        await method(channel, "ModelReady")(READY, metadata=[("x-api-key", "k" * 3000)])
        status, _ = await outcome(method(channel, "ModelReady")(READY, metadata=[("x-api-key", "k" * 5000)]))
        assert status is EXHAUSTED
    assert len(app.scopes) == 1


@on_a_loop
async def test_more_calls_than_are_borne_are_refused_at_once() -> None:
    app = Asked(document={}, held=True)
    async with serving(app, calls=3) as (_, channel, address), another_channel(address) as another:
        # A connection takes no more than it may have; others have to be told.
        held = [method(channel, "ServerLive")(LIVE) for _ in range(3)]
        await until(lambda: len(app.scopes) == 3)
        status, _ = await outcome(method(another, "ServerLive")(LIVE))
        assert status is EXHAUSTED
        app.go.set()
        assert [answer.live for answer in await asyncio.gather(*held)] == [True] * 3
        assert await once_there_is_room(another, "ServerLive", LIVE) is grpc.StatusCode.OK
    assert len(app.scopes) == 4


@on_a_loop
async def test_more_connections_than_are_borne_are_closed_until_others_are() -> None:
    app = Asked(document={})
    async with serving(app, connections=2) as (_, first, address):
        async with another_channel(address) as second:
            for channel in (first, second):
                await method(channel, "ServerLive")(LIVE)
            async with another_channel(address) as third:
                status, _ = await outcome(method(third, "ServerLive")(LIVE))
                assert status is grpc.StatusCode.UNAVAILABLE
            await method(second, "ServerLive")(LIVE)
        async with another_channel(address) as fourth:
            await method(fourth, "ServerLive")(LIVE, wait_for_ready=True)
    assert len(app.scopes) == 4


@on_a_loop
async def test_a_message_that_does_not_come_is_not_waited_for() -> None:
    app = Asked(document={})
    async with serving(app, calls=1, message_timeout_s=0.2) as (_, channel, address):
        silent = channel.stream_unary(f"/{SERVICE}/ModelReady")()
        assert (await outcome(silent))[0] is grpc.StatusCode.CANCELLED
        async with another_channel(address) as another:
            assert await once_there_is_room(another, "ServerLive", LIVE) is grpc.StatusCode.OK
    assert len(app.scopes) == 1


@on_a_loop
async def test_of_a_stranger_no_message_is_waited_for() -> None:
    app = Asked(401, {"detail": "send a key."})
    async with serving(app, message_timeout_s=3600, knows=lambda headers: (b"x-api-key", b"k") in headers) as given:
        _, channel, _ = given
        silent = channel.stream_unary(f"/{SERVICE}/ModelInfer")()
        assert await outcome(silent) == (grpc.StatusCode.UNAUTHENTICATED, "send a key.")
        known = channel.stream_unary(f"/{SERVICE}/ModelInfer")(metadata=[("x-api-key", "k")], timeout=0.3)
        assert (await outcome(known))[0] is LATE
    assert [scope["path"] for scope in app.scopes] == ["/v2/models/unread/infer"]


@on_a_loop
async def test_whoever_asks_whether_the_server_lives_need_not_say_more() -> None:
    async with serving(Asked(document={}), message_timeout_s=3600) as (_, channel, _):
        for _ in range(3):
            silent = channel.stream_unary(f"/{SERVICE}/ServerLive", response_deserializer=LIVES.FromString)()
            assert (await silent).live


@on_a_loop
async def test_the_time_for_a_message_is_not_that_for_its_answer() -> None:
    app = Asked(document={}, held=True)
    async with serving(app, message_timeout_s=0.1) as (_, channel, _):
        held = method(channel, "ModelReady")(READY)
        await until(lambda: len(app.scopes) == 1)
        await asyncio.sleep(0.5)
        app.go.set()
        assert (await held).ready


@on_a_loop
async def test_a_caller_that_leaves_before_its_message_came_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Asked(document={}), calls=1) as (_, channel, address), another_channel(address) as another:
        leaving = channel.stream_unary(f"/{SERVICE}/ModelInfer")()
        while (await outcome(method(another, "ServerLive")(LIVE)))[0] is not EXHAUSTED:
            await asyncio.sleep(0.01)
            if leaving.done():  # refused, since the other call was there just then
                leaving = channel.stream_unary(f"/{SERVICE}/ModelInfer")()
        leaving.cancel()
        assert await once_there_is_room(another, "ServerLive", LIVE) is grpc.StatusCode.OK
    assert [record.getMessage() for record in caplog.records if "gRPC call" in record.getMessage()] == []


@pytest.mark.parametrize("how", ["cancel", "deadline", "connection"])
@on_a_loop
async def test_a_caller_that_leaves_is_told_to_the_application(how: str) -> None:
    app = Asked(held=True)
    async with serving(app, calls=1) as (_, channel, address):
        async with another_channel(address) as leaving:
            call = method(leaving, "ModelInfer")(infer(5), timeout=1.0 if how == "deadline" else None)
            await until(lambda: len(app.scopes) == 1)
            assert app.left == 0
            if how == "cancel":
                call.cancel()
            if how != "connection":
                await until(lambda: app.left == 1)
        await until(lambda: app.left == 1)
        app.go.set()
        assert await once_there_is_room(channel, "ModelInfer", infer(5)) is grpc.StatusCode.OK
    assert (app.left, app.cancelled) == (1, 0)


@on_a_loop
async def test_a_stop_lets_calls_end_and_takes_no_more() -> None:
    app = Asked(document={}, held=True)
    async with serving(app) as (server, channel, address):
        held = method(channel, "ServerLive")(LIVE)
        await until(lambda: len(app.scopes) == 1)
        stopping = asyncio.create_task(server.stop(60))
        async with another_channel(address) as another:
            for each in (channel, another):
                status = LATE
                while status is LATE:  # it came before the stop has begun
                    status, _ = await outcome(method(each, "ServerLive")(LIVE, timeout=0.2))
                assert status in ENDED
        taken = len(app.scopes)
        assert not held.done()
        assert not stopping.done()
        app.go.set()
        assert (await held).live
        await stopping
    assert len(app.scopes) == taken


@on_a_loop
async def test_a_stop_ends_what_is_not_done_in_time() -> None:
    app = Asked(held=True)
    async with serving(app) as (server, channel, _):
        held = method(channel, "ModelInfer")(infer(5))
        await until(lambda: len(app.scopes) == 1)
        await server.stop(0.2)
        assert (await outcome(held))[0] in ENDED
        await until(lambda: app.left == 1)


@on_a_loop
async def test_calls_that_are_dropped_are_told_to_try_again() -> None:
    app = Asked(held=True)
    async with serving(app) as (server, channel, _):
        held = [method(channel, "ModelInfer")(infer(5)) for _ in range(2)]
        await until(lambda: len(app.scopes) == 2)
        server.drop()
        for call in held:
            assert await outcome(call) == (grpc.StatusCode.UNAVAILABLE, "send it again.")
    assert (app.left, app.cancelled) == (0, 2)


@on_a_loop
async def test_calls_that_are_dropped_end_even_if_the_application_does_not_answer() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    async with serving(app) as (server, channel, _):
        held = method(channel, "ModelInfer")(infer(5), timeout=5)
        await begun.wait()
        server.drop()
        assert (await outcome(held))[0] is grpc.StatusCode.INTERNAL


@contextlib.contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """What Python has allocated inside and kept, without the help of its garbage collector."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    kept = [tracemalloc.get_traced_memory()[0]]
    try:
        yield kept
        kept[0] = tracemalloc.get_traced_memory()[0] - kept[0]
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize("what", ["answered", "refused by the application", "refused", "garbage", "left"])
@on_a_loop
async def test_messages_are_not_kept(what: str) -> None:
    app = Asked(503, {"detail": "later."}) if what == "refused by the application" else Asked(held=what == "left")
    sent = infer(4 * MIB)
    if what == "refused":
        sent.model_name = "../x"
    data: bytes = sent.SerializeToString()
    if what == "garbage":
        data = b"\xff" + data
    async with serving(app) as (server, channel, _):
        infer_call = method(channel, "ModelInfer")

        async def call() -> None:
            ongoing = infer_call(data)
            if what == "left":
                seen = app.left
                await until(lambda: len(app.scopes) > seen)
                ongoing.cancel()
                await until(lambda: app.left > seen)
            await ongoing.code()

        await call()
        with kept_bytes() as kept:
            for _ in range(4):
                await call()
            await asyncio.sleep(0.05)
        assert server.received_bytes == 5 * len(data)
    assert kept[0] < 2 * MIB
