"""Bodies that nobody wants."""

from __future__ import annotations

import asyncio

import pytest
from asgi_double import Channel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.unread import FinishUnreadBodies, UnreadBounds

BOUNDS = UnreadBounds(keep_alive_bytes=100, linger_bytes=1000, linger_s=0.2)


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(b"no", 413)(scope, receive, send)


async def accept(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        continue
    await Response(b"yes")(scope, receive, send)


def answer(app: object, channel: Channel) -> Channel:
    asyncio.run(FinishUnreadBodies(app, BOUNDS)(channel.scope, channel.receive, channel.send))  # type: ignore[arg-type]
    assert channel.sent[-1].get("more_body", False) is False
    return channel


def test_a_body_that_was_read_changes_nothing() -> None:
    channel = answer(accept, Channel([b"abc"], {"content-length": "3"}))
    assert b"connection" not in channel.headers
    assert channel.body == b"yes"


def test_a_small_refused_body_is_left_to_the_protocol_and_the_connection_stays() -> None:
    channel = answer(refuse, Channel([b"a" * 50, b"b" * 50], {"content-length": "100"}))
    assert channel.taken == 0
    assert b"connection" not in channel.headers


def test_a_large_refused_body_is_answered_first_and_read_on_within_bounds() -> None:
    channel = answer(refuse, Channel([b"x" * 400] * 10, {"content-length": "4000"}))
    assert channel.headers[b"connection"] == b"close"
    assert channel.body == b"no"
    assert channel.taken == 3  # 1,200 bytes: the first chunk past the bound ends it
    assert [message.get("more_body") for message in channel.sent[1:]] == [True, False]


def test_a_body_without_a_length_counts_as_large() -> None:
    channel = answer(refuse, Channel([b"x"], {"transfer-encoding": "chunked"}))
    assert channel.headers[b"connection"] == b"close"


def test_a_sender_that_was_too_slow_is_told_to_hang_up() -> None:
    async def too_slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await Response(b"no", 408)(scope, receive, send)

    channel = answer(too_slow, Channel([b"x"], {"content-length": "50"}, end=False))
    assert channel.headers[b"connection"] == b"close"
    assert channel.body == b"no"


def test_a_sender_that_waits_for_permission_is_answered_at_once() -> None:
    channel = answer(refuse, Channel([b"x"], {"content-length": "50", "expect": "100-continue"}))
    assert channel.taken == 0
    assert channel.headers[b"connection"] == b"close"


def test_a_sender_that_was_given_permission_is_one_like_others() -> None:
    async def refuse_midway(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await Response(b"no", 413)(scope, receive, send)

    headers = {"content-length": "4000", "expect": "100-continue"}
    assert answer(refuse_midway, Channel([b"x" * 400] * 10, headers)).taken == 4


@pytest.mark.parametrize("ended_by", ["close", "Keep-Alive, Close", None])
def test_of_the_last_request_of_a_connection_the_body_is_read_on(ended_by: str | None) -> None:
    channel = Channel([b"a" * 50, b"b" * 50], {"content-length": "100", "connection": ended_by or "keep-alive"})
    if ended_by is None:
        channel.scope["http_version"] = "1.0"
    answer(refuse, channel)
    assert channel.taken == 2
    assert channel.headers[b"connection"] == b"close"


def test_of_several_connection_headers_each_counts() -> None:
    channel = Channel([b"ab"], {"content-length": "2"})
    channel.scope["headers"] += [(b"connection", b"close"), (b"connection", b"x")]
    assert answer(refuse, channel).headers[b"connection"] == b"close"


def test_what_is_read_on_ends_with_the_body_and_the_answer_keeps_its_headers() -> None:
    channel = answer(refuse, Channel([b"x" * 400] * 2, {"content-length": "800"}))
    assert channel.taken == 2
    assert channel.headers[b"content-length"] == b"2"


def test_a_request_without_a_body_is_no_concern() -> None:
    channel = answer(refuse, Channel([b""], method="GET"))
    assert channel.taken == 0
    assert b"connection" not in channel.headers


def test_a_large_body_of_a_get_is_as_unwanted() -> None:
    channel = answer(refuse, Channel([b"x" * 400] * 10, {"content-length": "4000"}, method="GET"))
    assert channel.headers[b"connection"] == b"close"
