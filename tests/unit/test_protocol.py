"""The protocol over real sockets, read by read: what is refused, and how connections end after that."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app import protocol as protocol_module
from app.api.gate import Gate
from app.api.unread import UnreadBounds
from app.protocol import ConnectionLimits, limited_protocol

PATIENCE_S = 30.0
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"


class OpenGate(Gate):
    """Lets everybody in."""

    def __init__(self) -> None:
        """Nobody is asked."""

    def answer(self, *request: object) -> None:
        return None


class House:
    """A server in this process, which answers when `open` is set, and whose reads can be waited for."""

    def __init__(self, max_connections: int = 10, max_open: int = sys.maxsize, header_timeout_s: float = 60.0) -> None:
        self.open = asyncio.Event()
        self.state = ServerState()
        self._read = 0
        limits = ConnectionLimits(max_connections, header_timeout_s, 4096, 60.0, max_open)
        config = uvicorn.Config(self._answer, interface="asgi3", lifespan="off", log_config=None, timeout_keep_alive=60)
        config.load()

        class Watched(limited_protocol(limits, OpenGate())):  # type: ignore[misc]
            def data_received(protocol, data: bytes) -> None:
                super().data_received(data)
                self._read += len(data)

        self.protocol = lambda: Watched(config, self.state, {})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            continue
        await self.open.wait()
        await PlainTextResponse("yes")(scope, receive, send)

    async def send(self, connection: Connection, data: bytes) -> None:
        """Have it read all of `data` before anything else."""
        before = self._read
        connection[1].write(data)
        await until(lambda: self._read == before + len(data))


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connections(house: House, number: int) -> AsyncIterator[list[Connection]]:
    server = await asyncio.get_running_loop().create_server(house.protocol, "127.0.0.1", 0)
    made = [await asyncio.open_connection(*server.sockets[0].getsockname()) for _ in range(number)]
    try:
        yield made
    finally:
        for _, writer in made:
            writer.close()
        server.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def rest(connection: Connection) -> bytes:
    """All that comes until the server hangs up."""
    return await asyncio.wait_for(connection[0].read(), PATIENCE_S)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lingers does so until something else ends it."""
    monkeypatch.setattr(protocol_module, "_LINGER", UnreadBounds(linger_bytes=10_000, linger_s=600))


@pytest.mark.parametrize(
    "head",
    [
        GET.replace(b"/ ", b"/" + b"x" * 4100 + b" "),
        GET[:-2] + b"X: " + b"y" * 4100 + b"\r\n\r\n",
        GET[:-2] + b"a:b\r\n" * 700 + b"\r\n",
    ],
    ids=["its address", "one field", "many fields"],
)
def test_a_head_that_comes_at_once_is_bounded_with_all_that_is_in_it(head: bytes) -> None:
    async def scenario() -> None:
        house = House()
        house.open.set()
        async with connections(house, 1) as (connection,):
            await house.send(connection, head)
            assert (await rest(connection)).startswith(b"HTTP/1.1 431")

    asyncio.run(scenario())


def test_trailers_are_bounded_as_headers_are() -> None:
    async def scenario() -> None:
        house = House()
        async with connections(house, 1) as (connection,):
            await house.send(connection, CHUNKED + b"3\r\nabc\r\n0\r\n")
            for _ in range(3):
                await house.send(connection, b"X: " + b"y" * 2000 + b"\r\n")
            assert (await rest(connection)).startswith(b"HTTP/1.1 431")

    asyncio.run(scenario())


def test_trailers_are_no_part_of_the_head_that_follows() -> None:
    async def scenario() -> None:
        house = House()
        house.open.set()
        async with connections(house, 1) as (connection,):
            field = b"X: " + b"y" * 2500 + b"\r\n"
            await house.send(connection, CHUNKED + b"0\r\n" + field + b"\r\n")
            for piece in (GET[:-2], field, b"\r\n"):
                await house.send(connection, piece)
            for _ in range(2):
                head = await connection[0].readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                await connection[0].readexactly(len(b"yes"))

    asyncio.run(scenario())


def test_the_sizes_of_many_chunks_are_no_large_header() -> None:
    async def scenario() -> None:
        house = House()
        house.open.set()
        async with connections(house, 1) as (connection,):
            await house.send(connection, CHUNKED)
            for _ in range(3):
                await house.send(connection, b"1\r\nx\r\n" * 2000)
            await house.send(connection, b"0\r\n\r\n")
            assert (await connection[0].readline()).startswith(b"HTTP/1.1 200")

    asyncio.run(scenario())


def test_a_body_that_breaks_off_is_told_to_whoever_reads_it_at_once() -> None:
    async def scenario() -> None:
        house = House()
        async with connections(house, 1) as (connection,):
            await house.send(connection, CHUNKED + b"zz\r\n")
            assert (await rest(connection)).startswith(b"HTTP/1.1 400")
            await until(lambda: not house.state.connections)  # and does not linger

    asyncio.run(scenario())


def test_connect_is_one_request_with_one_answer() -> None:
    async def scenario() -> None:
        house = House()
        house.open.set()
        async with connections(house, 1) as (connection,):
            await house.send(connection, GET.replace(b"GET /", b"CONNECT http://test/"))
            connection[1].write_eof()
            assert (await rest(connection)).count(b"HTTP/1.1 200") == 1

    asyncio.run(scenario())


def test_what_comes_behind_a_broken_request_does_not_overtake_the_answers_before_it() -> None:
    async def scenario() -> None:
        house = House()
        async with connections(house, 1) as (connection,):
            await house.send(connection, GET + GET + CHUNKED + b"zz\r\n")
            for _ in range(3):
                connection[1].write(b"zz\r\n")
                await asyncio.sleep(0.01)
            house.open.set()
            connection[1].write(b"zz\r\n")
            answers = await rest(connection)
            assert (answers.count(b"HTTP/1.1 "), answers.count(b"HTTP/1.1 200")) == (2, 2)

    asyncio.run(scenario())


def test_refused_connections_that_linger_are_few_and_take_nobodys_place() -> None:
    async def scenario() -> None:
        house = House(max_connections=1, max_open=5)
        async with connections(house, 4) as (served, *further):
            await house.send(served, CHUNKED)
            for connection in further:
                await house.send(connection, CHUNKED)
                assert (await rest(connection)).startswith(b"HTTP/1.1 503")
            await until(lambda: len(house.state.connections) == 3)  # two linger, and the third was closed at once
            served[1].close()
            await until(lambda: len(house.state.connections) == 2)
            house.open.set()
            async with connections(house, 1) as (late,):
                await house.send(late, GET)
                assert (await late[0].readline()).startswith(b"HTTP/1.1 200")

    asyncio.run(scenario())


def test_a_place_that_lingers_is_free_once_and_no_more() -> None:
    async def scenario() -> None:
        house = House(max_connections=1, max_open=5)
        async with connections(house, 3) as (served, refused, late):
            await house.send(served, CHUNKED)
            await house.send(refused, CHUNKED)
            assert (await rest(refused)).startswith(b"HTTP/1.1 503")
            refused[1].close()
            await until(lambda: len(house.state.connections) == 2)
            await house.send(late, CHUNKED)
            assert (await rest(late)).startswith(b"HTTP/1.1 503")

    asyncio.run(scenario())


def test_a_connection_that_came_when_all_were_taken_is_served_once_one_is_free() -> None:
    async def scenario() -> None:
        house = House(max_connections=1)
        house.open.set()
        async with connections(house, 2) as (first, second):
            await until(lambda: len(house.state.connections) == 2)
            first[1].close()
            await until(lambda: len(house.state.connections) == 1)
            await house.send(second, GET)
            assert (await second[0].readline()).startswith(b"HTTP/1.1 200")

    asyncio.run(scenario())


def test_connections_beyond_all_bounds_are_closed_without_a_word() -> None:
    async def scenario() -> None:
        house = House(max_connections=1, max_open=3)
        async with connections(house, 4) as (*_, beyond):
            assert await rest(beyond) == b""
            await until(lambda: len(house.state.connections) == 3)

    asyncio.run(scenario())


def test_a_head_that_is_there_in_time_may_be_answered_late() -> None:
    async def scenario() -> None:
        house = House(header_timeout_s=1.0)
        async with connections(house, 1) as (connection,):
            await house.send(connection, GET[:20])
            await house.send(connection, GET[20:])
            await asyncio.sleep(1.1)
            house.open.set()
            await house.send(connection, GET)
            for _ in range(2):
                assert (await connection[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await connection[0].readexactly(len(b"yes"))

    asyncio.run(scenario())


def test_who_has_begun_another_head_is_no_longer_idle() -> None:
    async def scenario() -> None:
        house = House()
        house.open.set()
        async with connections(house, 1) as (connection,):
            await house.send(connection, GET)
            protocol: Any = next(iter(house.state.connections))
            await until(lambda: protocol.timeout_keep_alive_task is not None)
            await house.send(connection, GET[:20])
            assert protocol.timeout_keep_alive_task is None

    asyncio.run(scenario())


def test_who_goes_on_sending_after_a_refusal_is_read_only_so_far() -> None:
    async def scenario() -> None:
        house = House(max_connections=0)
        async with connections(house, 1) as (connection,):
            await house.send(connection, CHUNKED)
            assert (await rest(connection)).startswith(b"HTTP/1.1 503")
            await house.send(connection, b"x" * 9000)
            assert len(house.state.connections) == 1
            await house.send(connection, b"x" * 2000)
            await until(lambda: not house.state.connections)

    asyncio.run(scenario())
