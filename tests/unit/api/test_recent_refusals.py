"""Refusals that are given again without asking: to whom, for how long, and over which connections."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.api.refusals import RecentRefusals, request_key
from app.errors import Overloaded
from app.server import ConnectionLimits, limited_protocol

URL = b"/classify/image?top_k=5"
HEADERS = [(b"host", b"test"), (b"content-type", b"image/jpeg"), (b"content-length", b"3"), (b"x-api-key", b"secret")]
FULL = Overloaded("the queue is full", retry_after_s=2.5, stands_s=0.015)


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def remembering(time: Time, told: list[str] | None = None, error: Overloaded = FULL) -> RecentRefusals:
    refusals = RecentRefusals(lambda task, seconds: (told if told is not None else []).append(task), time)
    refusals.remember(URL, HEADERS, error, "image")
    return refusals


def test_the_same_request_is_refused_again_while_the_refusal_stands() -> None:
    time, told = Time(), list[str]()
    refusals = remembering(time, told)
    answer = refusals.answer(URL, [*HEADERS, (b"x-request-id", b"mine")], [(b"date", b"today")])
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 429 Too Many Requests"
    assert {"retry-after: 3", "x-request-id: mine", "date: today", f"content-length: {len(body)}"} <= set(lines)
    assert "content-type: application/problem+json" in lines
    problem = json.loads(body)
    assert (problem["status"], problem["code"], problem["request_id"]) == (429, "overloaded", "mine")
    assert told == ["image"]
    time.now += 0.016
    assert refusals.answer(URL, HEADERS) is None


def test_no_refusal_stands_for_long() -> None:
    time = Time()
    refusals = remembering(time, error=Overloaded("full", retry_after_s=9, stands_s=60))
    time.now += 0.021
    assert refusals.answer(URL, HEADERS) is None


def test_a_refusal_that_does_not_stand_is_not_kept() -> None:
    refusals = remembering(Time(), error=Overloaded("too many bytes", retry_after_s=9))
    assert refusals.answer(URL, HEADERS) is None


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (b"/classify/image?top_k=4", HEADERS),
        (URL, [header for header in HEADERS if header[0] != b"x-api-key"]),
        (URL, [*HEADERS[:3], (b"x-api-key", b"another")]),
        (URL, [*HEADERS, (b"authorization", b"Bearer x")]),
        (URL, [HEADERS[0], (b"content-type", b"text/plain"), *HEADERS[2:]]),
        (URL, [*HEADERS[:2], (b"content-length", b"99999999"), *HEADERS[3:]]),
        (URL, [*HEADERS[:2], *HEADERS[3:]]),
        (URL, [*HEADERS, (b"expect", b"100-continue")]),
        (URL, [*HEADERS, (b"transfer-encoding", b"chunked")]),
        (URL, [*HEADERS, (b"origin", b"https://page")]),
        (URL, [*HEADERS, (b"content-encoding", b"gzip")]),
    ],
)
def test_another_request_has_to_ask(url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    assert remembering(Time()).answer(url, headers) is None


def test_what_does_not_decide_may_differ() -> None:
    headers = [(b"host", b"other"), (b"user-agent", b"x"), (b"content-length", b"70"), HEADERS[1], HEADERS[3]]
    assert request_key(URL, headers) == request_key(URL, HEADERS)


def test_one_line_tells_of_all_that_were_refused_alike(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    refusals = remembering(time)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            refusals.answer(URL, HEADERS)
        time.now += 1
        refusals.answer(URL, HEADERS)
        refusals.answer(URL, HEADERS)
    assert [record.__dict__["fields"]["times"] for record in caplog.records] == [3]


def test_a_flood_of_different_addresses_is_not_kept_for_ever() -> None:
    refusals = RecentRefusals(clock=Time())
    for number in range(1000):
        refusals.remember(b"/classify/image?top_k=%d" % number, HEADERS, FULL, "image")
    assert len(refusals._kept) <= 256


Exchange = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def connection(
    refusals: RecentRefusals, asked: list[bytes], keep_alive_s: float = 60.0
) -> AsyncIterator[Exchange]:
    """A connection to the real protocol, in front of an application that says yes to everything."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked.append(body)
        if body == b"slow":
            await asyncio.sleep(0.5)
        await PlainTextResponse("yes")(scope, receive, send)

    limits = ConnectionLimits(10, 60.0, 4096, keep_alive_s)
    kind = limited_protocol(limits, refusals)
    config = uvicorn.Config(application, lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s)  # type: ignore[arg-type]
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    server = await loop.create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)  # type: ignore[call-arg]
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

    async def exchange(sent: bytes) -> bytes:
        writer.write(sent)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        return head.split(b"\r\n")[0] + b" " + await reader.readexactly(int(length.split(b":")[1]))

    exchange.reader, exchange.writer = reader, writer  # type: ignore[attr-defined]
    try:
        yield exchange
    finally:
        writer.close()
        server.close()


def post(body: bytes, size: int | None = None, method: bytes = b"POST") -> bytes:
    lines = [
        b"%s %s HTTP/1.1" % (method, URL),
        *(b"%s: %s" % header for header in HEADERS if header[0] != b"content-length"),
    ]
    return b"\r\n".join([*lines, b"content-length: %d" % (size or len(body)), b"", body])


def test_the_protocol_refuses_drops_the_body_and_keeps_the_connection() -> None:
    async def scenario() -> None:
        time, asked = Time(), list[bytes]()
        refusals = remembering(time)
        async with connection(refusals, asked) as exchange:
            for _ in range(2):
                assert (await exchange(post(b"abc"))).startswith(b"HTTP/1.1 429")
            assert (await exchange(post(b"ab", size=6))).startswith(b"HTTP/1.1 429")  # before the body is there
            time.now += 1
            answer = await exchange(b"cdef" + post(b"xyz"))
            assert answer == b"HTTP/1.1 200 OK yes"
            assert asked == [b"xyz"]

    asyncio.run(scenario())


def test_requests_sent_one_after_the_other_without_waiting_are_answered_in_order() -> None:
    async def scenario() -> None:
        asked: list[bytes] = []
        async with connection(remembering(Time()), asked) as exchange:
            other = post(b"first").replace(b"top_k=5", b"top_k=1")
            answer = await exchange(other + post(b"second") + other)
            assert answer == b"HTTP/1.1 200 OK yes"
            # Behind a request that is being answered nothing is refused ahead of its turn.
            assert [(await exchange(b""))[9:12] for _ in range(2)] == [b"200", b"200"]
            assert asked == [b"first", b"second", b"first"]

    asyncio.run(scenario())


def test_only_posts_are_refused() -> None:
    async def scenario() -> None:
        async with connection(remembering(Time()), []) as exchange:
            assert (await exchange(post(b"abc", method=b"PUT"))).startswith(b"HTTP/1.1 200")

    asyncio.run(scenario())


def test_a_refused_sender_that_stops_in_its_body_is_hung_up_on() -> None:
    async def scenario() -> None:
        async with connection(remembering(Time()), [], keep_alive_s=0.1) as exchange:
            assert (await exchange(post(b"a", size=6))).startswith(b"HTTP/1.1 429")
            rest = await asyncio.wait_for(exchange.reader.read(), 10)  # type: ignore[attr-defined]
            assert rest == b""

    asyncio.run(scenario())


def test_a_request_that_comes_with_the_end_of_a_dropped_body_may_take_its_time() -> None:
    async def scenario() -> None:
        time = Time()
        async with connection(remembering(time), [], keep_alive_s=0.2) as exchange:
            assert (await exchange(post(b"ab", size=6))).startswith(b"HTTP/1.1 429")
            time.now += 1
            assert await exchange(b"cdef" + post(b"slow")) == b"HTTP/1.1 200 OK yes"

    asyncio.run(scenario())
