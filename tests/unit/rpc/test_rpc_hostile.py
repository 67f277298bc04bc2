"""Frames that no library sends, to a real gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import grpc
import pytest
from inference_grpc import call_frames, frames_to, message, method, read_stream
from rpc_double import Asked, on_a_loop, outcome, serving, until

from app.rpc.messages import SERVICE
from app.rpc.server import RpcServer

LIVE = message("ServerLive")
LIVE_PATH, READY_PATH = f"/{SERVICE}/ServerLive".encode(), f"/{SERVICE}/ModelReady".encode()


@contextlib.contextmanager
def sent(address: str, frames: bytes, **more: int) -> Iterator[socket.socket]:
    """A connection over which these frames went."""
    host, _, port = address.rpartition(":")
    with frames_to((host, int(port)), **more) as connection:
        connection.sendall(frames)
        yield connection


@on_a_loop
async def test_a_path_of_nonsense_ends_nothing() -> None:
    def send_nonsense() -> None:
        with sent(address, call_frames(1, b"/\xff")) as connection, contextlib.suppress(ConnectionError):
            read_stream(connection, 1)

    app = Asked(document={}, held=True)
    async with serving(app) as (_, channel, address):
        held = method(channel, "ServerLive")(LIVE)
        await until(lambda: len(app.scopes) == 1)
        await asyncio.to_thread(send_nonsense)
        app.go.set()
        assert (await held).live
        assert (await method(channel, "ServerLive")(LIVE, wait_for_ready=True, timeout=20)).live


@pytest.mark.parametrize("value", ["€".encode(), b"\xff\xfe", b"a\nb", b"a\r\nx-api-key: b", b"\0"])
@on_a_loop
async def test_metadata_of_nonsense_are_the_application_s_to_judge(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def send_key() -> bytes:
        with sent(address, call_frames(1, LIVE_PATH, b"", (b"x-api-key", value))) as connection:
            return read_stream(connection, 1)

    app = Asked(document={})
    async with serving(app) as (_, channel, address):
        answer = await asyncio.to_thread(send_key)
        assert b"Unexpected" not in answer
        assert (await method(channel, "ServerLive")(LIVE)).live
    keys = [header for scope in app.scopes for name, header in scope["headers"] if name == b"x-api-key"]
    assert set(keys) <= {value, value.decode("latin-1").encode()}
    assert len(app.scopes) == len(keys) + 1  # it is passed on, or refused with its call
    assert caplog.messages == []  # whoever may call may not fill the log


@on_a_loop
async def test_a_stop_that_is_dropped_does_not_wait_for_a_message() -> None:
    async with serving(Asked(document={}), calls=1, message_timeout_s=3600) as (server, channel, address):
        status = None
        while status is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # else the other call was the first
            with sent(address, call_frames(1, READY_PATH, None)):
                status, _ = await outcome(method(channel, "ServerLive")(LIVE))
                if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    await stop_and_drop(server)


@on_a_loop
async def test_a_stop_that_is_dropped_does_not_wait_for_an_answer_to_be_read() -> None:
    app = Asked(document={})
    async with serving(app) as (server, _, address):
        with sent(address, call_frames(1, LIVE_PATH), window=0):
            await until(lambda: len(app.scopes) == 1)
            await stop_and_drop(server)


async def stop_and_drop(server: RpcServer) -> None:
    stopping = asyncio.create_task(server.stop(3600))
    await asyncio.sleep(0.1)
    server.drop()
    async with asyncio.timeout(15):  # after 20 s gRPC gives up a peer that answers no ping
        await stopping
