"""A real gRPC server in front of a small ASGI application, and a channel to it, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import grpc
import grpc.aio

from app.api.tensors import HEADER
from app.load.server import free_port
from app.rpc.server import Application, Headers, RpcLimits, RpcServer

Message = MutableMapping[str, Any]
LIMITS: dict[str, Any] = {"calls": 4, "connections": 8, "metadata_bytes": 4096, "message_timeout_s": 30.0}
DRAWN = b"\x00\x00\x80\x3f"  # float32, 1


class Asked:
    """An application that answers every request alike, and notes what it was asked.

    Args:
        status, document, headers: the answer; without `document` that of a model that ran.
        held: whether it answers only when `go` is set, or when its caller leaves.

    Attributes:
        scopes: of the requests.
        nbytes: of their bodies.
        left: how many callers it was told to have left.
        cancelled: how many requests were cancelled; those it answers with 503, as `AnswerFailures` does.
    """

    def __init__(
        self,
        status: int = 200,
        document: object = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        *,
        held: bool = False,
    ) -> None:
        self._answer = (status, *(_ran() if document is None else (json.dumps(document).encode(), ())))
        self._headers = headers
        self._held = held
        self.go = asyncio.Event()
        self.scopes: list[Message] = []
        self.nbytes: list[int] = []
        self.left = self.cancelled = 0

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.scopes.append(scope)
        self.nbytes.append(0)
        more = True
        while more:
            message = await receive()
            self.nbytes[-1] += len(message["body"])
            more = message["more_body"]
        del message
        status, content, own_headers = self._answer
        if self._held:
            try:
                await self._hold(receive)
            except asyncio.CancelledError:
                self.cancelled += 1
                status, content, own_headers = 503, b'{"detail": "send it again."}', ()
        await send({"type": "http.response.start", "status": status, "headers": [*own_headers, *self._headers]})
        await send({"type": "http.response.body", "body": content[:5], "more_body": True})
        await send({"type": "http.response.body", "body": content[5:]})

    async def _hold(self, receive: Callable[[], Awaitable[Message]]) -> None:
        ends = [asyncio.ensure_future(receive()), asyncio.ensure_future(self.go.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if ends[0].done():
                assert ends[0].result() == {"type": "http.disconnect"}
                self.left += 1
        finally:
            for end in ends:
                end.cancel()


def _ran() -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    tensor = {"name": "o", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": len(DRAWN)}}
    text = json.dumps({"model_name": "m", "model_version": "3", "outputs": [tensor]}).encode()
    return text + DRAWN, ((HEADER.encode(), str(len(text)).encode()),)


@contextlib.asynccontextmanager
async def serving(
    app: Application,
    host: str = "127.0.0.1",
    knows: Callable[[Headers], bool] = lambda headers: True,
    **limits: Any,
) -> AsyncIterator[tuple[RpcServer, grpc.aio.Channel, str]]:
    """A server that answers, a channel to it, and its address."""
    address = f"{host}:{free_port()}"
    server = RpcServer(app, address, RpcLimits(**(LIMITS | limits)), knows)
    await server.start()
    try:
        async with another_channel(address) as channel:
            yield server, channel, address
    finally:
        await server.stop(0)


def another_channel(address: str) -> grpc.aio.Channel:
    """A channel with a connection of its own, that tries once."""
    return grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])


async def outcome(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status and the details that a call ends with."""
    return await call.code(), await call.details()


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Have a coroutine be a test that may take a minute."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(*given, **named)

        asyncio.run(bounded())

    return run
