"""The server on a real socket in its own process, with real signals: what it still takes, drops and tells.

Run by test_draining_server.py: signals are for a process that holds no threads of other libraries.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from networks import has_ipv6
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.api.gate import Gate
from app.protocol import ConnectionLimits
from app.server import DrainingServer, listen

FOR_EVER_S = 600.0


class OpenGate(Gate):
    """Lets everybody in."""

    def __init__(self) -> None:
        """Nobody is asked."""

    def answer(self, *request: object) -> None:
        return None


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.001)


class House:
    """A server whose requests never end by themselves, and which writes down what it is told."""

    def __init__(self, grace_s: float = 0.0, timeout_s: float = FOR_EVER_S) -> None:
        self.told: list[str] = []
        self.callers: list[str] = []
        self.tidied = 0
        limits = ConnectionLimits(10, FOR_EVER_S, 4096, FOR_EVER_S)
        self.server = DrainingServer(
            self,
            limits,
            OpenGate(),
            grace_s=grace_s,
            timeout_s=timeout_s,
            on_drain=lambda: self.told.append("drain"),
            on_stop=lambda: self.told.append("stop"),
            on_drop=lambda: self.told.append("drop"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        self.callers.append(scope["client"][0])
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)  # whoever is dropped may put away what it used
            await PlainTextResponse("dropped", 503)(scope, receive, send)
            self.tidied += 1


@asynccontextmanager
async def serving(house: House, requests: int = 1, headers: bytes = b"") -> AsyncIterator[asyncio.Task[None]]:
    """The server at work, with so many requests in it."""
    with listen("127.0.0.1", 0) as listener:
        task = asyncio.ensure_future(house.server.serve(sockets=[listener]))
        await until(lambda: house.server.started)
        writers = [(await asyncio.open_connection(*listener.getsockname()))[1] for _ in range(requests)]
        for writer in writers:
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n" + headers + b"\r\n")
        await until(lambda: len(house.callers) == requests)
        try:
            async with asyncio.timeout(30):
                yield task
        finally:
            for writer in writers:
                writer.close()


def test_each_further_signal_is_less_patient_and_the_end_is_an_ordinary_one() -> None:
    async def scene() -> None:
        house = House(grace_s=FOR_EVER_S)
        async with serving(house, 2) as task:
            for step in ("drain", "stop", "drop"):
                os.kill(os.getpid(), signal.SIGTERM)
                await until(lambda step=step: house.told[-1:] == [step])  # type: ignore[misc]
            await task
        assert house.told == ["drain", "stop", "drop"]
        assert house.tidied == 2
        assert not any(
            asyncio.get_running_loop().remove_signal_handler(each) for each in (signal.SIGTERM, signal.SIGINT)
        )

    asyncio.run(scene())


def test_what_overruns_is_dropped_and_may_tidy_up(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        house = House(timeout_s=0.05)
        async with serving(house, 2) as task:
            os.kill(os.getpid(), signal.SIGINT)
            await task
        assert house.told == ["drain", "stop", "drop"]
        assert house.tidied == 2

    with caplog.at_level(logging.WARNING):
        asyncio.run(scene())
    assert [record.getMessage() for record in caplog.records] == ["2 requests did not finish within 0.05 s"]


def test_a_caller_is_who_is_at_the_other_end_whatever_a_header_says() -> None:
    async def scene() -> None:
        house = House(timeout_s=0.05)
        async with serving(house, 1, b"X-Forwarded-For: 192.0.2.7\r\n") as task:
            assert house.callers == ["127.0.0.1"]
            os.kill(os.getpid(), signal.SIGTERM)
            await task

    asyncio.run(scene())


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "reached_at"), [("::", ("127.0.0.1", "::1")), ("::1", ("::1",)), ("0.0.0.0", ("127.0.0.1",))]
)
def test_all_addresses_of_the_host_are_listened_on(host: str, reached_at: tuple[str, ...]) -> None:
    with listen(host, 0) as listener:
        for address in reached_at:
            socket.create_connection((address, listener.getsockname()[1]), timeout=10).close()
