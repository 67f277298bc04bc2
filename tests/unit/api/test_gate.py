"""Refusals in the HTTP protocol: to whom, when, in which words, and over which connections."""

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

from app.api import gate as gate_module
from app.api.gate import Gate
from app.api.keys import KeyRing
from app.api.query import QueryLimits, QueryParser
from app.errors import Overloaded
from app.protocol import ConnectionLimits, limited_protocol
from app.serving.demand import Arrival
from app.serving.results import ClassifyOptions, Task

URL = b"/classify/image?top_k=5"
HEADERS = [(b"host", b"test"), (b"content-type", b"image/jpeg"), (b"content-length", b"3"), (b"x-api-key", b"secret")]
FULL = Overloaded("the queue is full", retry_after_s=2.5)


class Full:
    """A judge who refuses everything while `error` is set, a clock, and who is told."""

    def __init__(self) -> None:
        self.error: Overloaded | None = FULL
        self.now = 100.0
        self.asked: list[Arrival] = []
        self.told: list[tuple[str, float, str | None]] = []

    def refusal(self, arrival: Arrival) -> Overloaded | None:
        self.asked.append(arrival)
        assert arrival.started == self.now
        self.now += 0.002
        return self.error


def guarding(judge: Full, *keys: str) -> Gate:
    limits = QueryLimits(max_timeout_ms=1000, max_clips=4)
    parsers: dict[Task, QueryParser] = {"image": QueryParser("image", limits), "video": QueryParser("video", limits)}
    paths: dict[str, Task] = {"/classify/image": "image", "/classify/video": "video"}
    gate = Gate(judge, parsers, paths, KeyRing(keys), lambda *told: judge.told.append(told), lambda: judge.now)
    gate.guard()
    return gate


def answer(gate: Gate, url: bytes = URL, headers: list[tuple[bytes, bytes]] = HEADERS) -> bytes | None:
    """What the gate says to a request."""

    async def scene() -> bytes | None:
        return gate.answer(url, headers, [(b"date", b"today")])

    return asyncio.run(scene())


def test_it_refuses_as_the_application_would() -> None:
    judge = Full()
    given = answer(guarding(judge), headers=[*HEADERS, (b"x-request-id", b"mine")])
    assert given is not None
    head, _, body = given.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 429 Too Many Requests"
    assert {"retry-after: 3", "x-request-id: mine", "date: today", f"content-length: {len(body)}"} <= set(lines)
    assert {"content-type: application/problem+json", "x-content-type-options: nosniff"} <= set(lines)
    problem = json.loads(body)
    assert (problem["status"], problem["code"], problem["request_id"]) == (429, "overloaded", "mine")
    assert problem["detail"] == "the queue is full."
    assert lines[-1] == "server-timing: total;dur=2.000"
    assert judge.asked == [Arrival("image", ClassifyOptions(top_k=5), 100.0, 1, 3)]
    assert [(task, round(seconds, 6), key) for task, seconds, key in judge.told] == [("image", 0.002, None)]


def test_it_asks_about_each_request_and_lets_in_whom_admission_would_let_in() -> None:
    judge = Full()
    gate = guarding(judge)
    assert answer(gate)
    judge.error = None
    assert answer(gate) is None
    judge.error = Overloaded("the queue cannot make the deadline", retry_after_s=7.2, code="too_late")
    given = answer(gate)
    assert given is not None
    assert b"retry-after: 8" in given
    assert b"cannot make the deadline" in given
    assert b'"code":"too_late"' in given


def test_who_was_let_in_a_moment_ago_counts_before_admission_has_heard_of_them() -> None:
    judge = Full()
    judge.error = None
    gate = guarding(judge)

    async def scene() -> None:
        for together in (1, 3, 1):
            for _ in range(together):
                assert gate.answer(URL, HEADERS) is None
            await asyncio.sleep(0)

    asyncio.run(scene())
    assert [arrival.files for arrival in judge.asked] == [1, 1, 2, 3, 1]


def test_each_key_is_a_caller_of_its_own() -> None:
    judge = Full()
    gate = guarding(judge, "alice:secret", "bob:other")
    bobs = [*HEADERS[:3], (b"authorization", b"Bearer other")]

    async def scene() -> None:
        judge.error = None
        for headers in (HEADERS, HEADERS, bobs):
            assert gate.answer(URL, headers) is None
        judge.error = FULL
        assert gate.answer(URL, bobs)

    asyncio.run(scene())
    assert [arrival.caller for arrival in judge.asked] == ["alice", "alice", "bob", "bob"]
    assert [arrival.files for arrival in judge.asked] == [1, 2, 1, 2]
    assert [key for _, _, key in judge.told] == ["bob"]


def test_it_asks_nobody_unless_a_request_was_refused_within_the_last_second() -> None:
    judge = Full()
    gate = guarding(judge)
    judge.now += 0.9
    assert answer(gate)  # which counts as a refusal too
    judge.now += 0.9
    assert answer(gate)
    judge.now += 1.1
    assert answer(gate) is None
    assert len(judge.asked) == 2
    gate.guard()
    assert answer(gate)


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (b"/models", HEADERS),
        (b"/classify/image/", HEADERS),
        (b"/classify/image?topk=4", HEADERS),
        (b"/classify/image?top_k=5&top_k=5", HEADERS),
        (URL, [*HEADERS[:2], (b"content-length", b"99999999"), *HEADERS[3:]]),
        (URL, [*HEADERS[:2], *HEADERS[3:]]),
        (URL, [*HEADERS, (b"expect", b"100-continue")]),
        (URL, [*HEADERS, (b"transfer-encoding", b"chunked")]),
        (URL, [*HEADERS, (b"origin", b"https://page")]),
        (URL, [*HEADERS, (b"content-encoding", b"gzip")]),
        (URL, [*HEADERS, (b"traceparent", b"00-1-1-01")]),
        (URL, [*HEADERS, (b"upgrade", b"h2c")]),
    ],
)
def test_what_needs_more_than_a_refusal_is_let_through(url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    judge = Full()
    assert answer(guarding(judge), url, headers) is None
    assert not judge.asked


def test_a_body_is_read_away_up_to_a_mebibyte() -> None:
    gate = guarding(Full())
    for length, is_refused in ((1 << 20, True), ((1 << 20) + 1, False)):
        headers = [*HEADERS[:2], (b"content-length", b"%d" % length)]
        assert (answer(gate, headers=headers) is not None) == is_refused


def test_each_boundary_key_and_query_is_refused_alike() -> None:
    """What the callers of real libraries change from request to request decides nothing."""
    gate = guarding(Full(), "alice:secret", "bob:other")
    for boundary, key in ((b"1f", b"secret"), (b"2e", b"other")):
        headers = [*HEADERS[:1], (b"content-type", b"multipart/form-data; boundary=" + boundary), HEADERS[2]]
        assert answer(gate, b"/classify/video?clips=2", [*headers, (b"x-api-key", key)])


def test_who_has_no_key_is_not_told_how_busy_the_server_is() -> None:
    judge = Full()
    gate = guarding(judge, "alice:secret")
    assert answer(gate, headers=[*HEADERS[:3], (b"x-api-key", b"guess")]) is None
    assert answer(gate, headers=HEADERS[:3]) is None
    assert not judge.asked
    assert answer(gate, headers=[*HEADERS[:3], (b"authorization", b"Bearer secret")])


def test_one_line_tells_of_all_that_were_refused_within_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "_REPORT_EVERY_S", 0.02)

    async def scene() -> None:
        gate = guarding(Full())
        for _ in range(3):
            gate.answer(URL, HEADERS)
        gate.answer(b"/classify/video", HEADERS)
        await asyncio.sleep(0.05)
        gate.answer(URL, HEADERS)
        await asyncio.sleep(0.05)

    with caplog.at_level(logging.INFO):
        asyncio.run(scene())
    fields = [record.__dict__["fields"] for record in caplog.records]
    assert [(each["path"], each["times"]) for each in fields] == [
        ("/classify/image", 3),
        ("/classify/video", 1),
        ("/classify/image", 1),
    ]
    assert {(each["method"], each["status"], each["code"]) for each in fields} == {("POST", 429, "overloaded")}


Exchange = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def connection(gate: Gate, asked: list[bytes], keep_alive_s: float = 60.0) -> AsyncIterator[Exchange]:
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
    kind = limited_protocol(limits, gate)
    config = uvicorn.Config(application, lifespan="off", log_config=None, timeout_keep_alive=keep_alive_s)  # type: ignore[arg-type]
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    state.default_headers = [(b"date", b"today")]
    server = await loop.create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)  # type: ignore[call-arg]
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

    async def exchange(sent: bytes) -> bytes:
        writer.write(sent)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b"\r\ndate: today\r\n" in head
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
        judge, asked = Full(), list[bytes]()
        async with connection(guarding(judge), asked) as exchange:
            for _ in range(2):
                assert (await exchange(post(b"abc"))).startswith(b"HTTP/1.1 429")
            assert (await exchange(post(b"ab", size=6))).startswith(b"HTTP/1.1 429")  # before the body is there
            judge.error = None
            answer = await exchange(b"cdef" + post(b"xyz"))
            assert answer == b"HTTP/1.1 200 OK yes"
            assert asked == [b"xyz"]

    asyncio.run(scenario())


def test_requests_sent_one_after_the_other_without_waiting_are_answered_in_order() -> None:
    async def scenario() -> None:
        asked: list[bytes] = []
        async with connection(guarding(Full()), asked) as exchange:
            other = post(b"first").replace(b"content-length", b"origin: here\r\ncontent-length")
            answer = await exchange(other + post(b"second") + other)
            assert answer == b"HTTP/1.1 200 OK yes"
            # Behind a request that is being answered nothing is refused ahead of its turn.
            assert [(await exchange(b""))[9:12] for _ in range(2)] == [b"200", b"200"]
            assert asked == [b"first", b"second", b"first"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"abc", method=b"PUT"),
        post(b"abc").replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"host: test", b"connection: keep-alive"),
        post(b"abc").replace(b"host: test", b"host: test\r\nconnection: close"),
    ],
    ids=["PUT", "HTTP/1.0", "the last one"],
)
def test_only_posts_that_keep_their_connection_are_refused(request_bytes: bytes) -> None:
    async def scenario() -> None:
        async with connection(guarding(Full()), []) as exchange:
            assert (await exchange(request_bytes)).startswith(b"HTTP/1.1 200")

    asyncio.run(scenario())


@pytest.mark.parametrize("size", [6, 1])
def test_a_refused_sender_that_stops_in_its_body_or_behind_it_is_hung_up_on(size: int) -> None:
    async def scenario() -> None:
        async with connection(guarding(Full()), [], keep_alive_s=0.1) as exchange:
            assert (await exchange(post(b"a", size))).startswith(b"HTTP/1.1 429")
            rest = await asyncio.wait_for(exchange.reader.read(), 10)  # type: ignore[attr-defined]
            assert rest == b""

    asyncio.run(scenario())


def test_a_request_behind_one_that_was_answered_and_one_that_was_refused_may_take_its_time() -> None:
    async def scenario() -> None:
        judge = Full()
        async with connection(guarding(judge), [], keep_alive_s=0.4) as exchange:
            for error, status in ((None, b"200"), (FULL, b"429"), (None, b"200")):
                judge.error = error
                answer = await exchange(post(b"slow"))
                assert answer[9:12] == status

    asyncio.run(scenario())


def test_a_request_that_comes_with_the_end_of_a_dropped_body_may_take_its_time() -> None:
    async def scenario() -> None:
        judge = Full()
        async with connection(guarding(judge), [], keep_alive_s=0.2) as exchange:
            assert (await exchange(post(b"ab", size=6))).startswith(b"HTTP/1.1 429")
            judge.error = None
            assert await exchange(b"cdef" + post(b"slow")) == b"HTTP/1.1 200 OK yes"

    asyncio.run(scenario())
