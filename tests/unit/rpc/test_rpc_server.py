"""What passes through a real gRPC server on its way to the application, and back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

import grpc
import grpc.aio
import pytest
from inference_grpc import message, method
from networks import has_ipv6
from rpc_double import DRAWN, LIMITS, Asked, Message, on_a_loop, outcome, serving

from app.api.tensors import HEADER
from app.rpc.messages import SERVICE
from app.rpc.server import RpcLimits, RpcServer, _client

INVALID, INTERNAL = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL
SECRET = "/etc/of the inside"
INFER = message("ModelInfer", model_name="m", inputs=[{"name": "rows"}], raw_input_contents=[b"abc"])


@on_a_loop
async def test_a_call_is_a_request_and_its_answer_is_the_call_s() -> None:
    app = Asked()
    async with serving(app) as (server, channel, _):
        answer = await method(channel, "ModelInfer")(INFER)
        received = server.received_bytes
    (scope,) = app.scopes
    assert (scope["type"], scope["method"], scope["path"]) == ("http", "POST", "/v2/models/m/infer")
    assert (scope["raw_path"], scope["query_string"]) == (b"/v2/models/m/infer", b"")
    headers = dict(scope["headers"])
    assert int(headers[b"content-length"]) == int(headers[HEADER.encode()]) + 3 == app.nbytes[0]
    assert (answer.model_name, answer.model_version, list(answer.raw_output_contents)) == ("m", "3", [DRAWN])
    assert received == INFER.ByteSize()


@pytest.mark.parametrize("timeout", [None, 30.0])
@on_a_loop
async def test_a_call_has_a_time_limit_where_its_caller_gives_one_and_else_none(timeout: float | None) -> None:
    bodies: list[bytes] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        await Asked()(scope, receive, send)

    async with serving(app) as (_, channel, _):
        await method(channel, "ModelInfer")(INFER, timeout=timeout)
    limit = json.loads(bodies[0])["parameters"].get("timeout")
    assert (limit is None) if timeout is None else (0 < limit <= 31_000_000)  # gRPC rounds it up


@on_a_loop
async def test_a_request_s_body_comes_piece_by_piece_and_ends() -> None:
    pieces: list[Message] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        pieces.append(await receive())
        while pieces[-1]["more_body"]:
            pieces.append(await receive())
        await Asked()(scope, Again(pieces[-1]), send)

    async with serving(app) as (_, channel, _):
        await method(channel, "ModelInfer")(INFER)
        size = len(pieces[0]["body"])
        assert json.loads(pieces[0]["body"])["inputs"][0]["name"] == "rows"
        assert [piece["type"] for piece in pieces] == ["http.request"] * 2
        assert pieces[1]["body"] == b"abc"
        assert size > 3
        del pieces[:]
        await method(channel, "ServerLive")(message("ServerLive"))
    assert pieces == [{"type": "http.request", "body": b"", "more_body": False}]


class Again:
    """Receives the same message once more."""

    def __init__(self, message: Message) -> None:
        self._message = message

    async def __call__(self) -> Message:
        return self._message


@on_a_loop
async def test_a_method_that_is_not_there_is_unimplemented() -> None:
    app = Asked()
    async with serving(app) as (_, channel, _):
        for path in (f"/{SERVICE}/ModelStreamInfer", f"/{SERVICE}/", "/inference.Other/ServerLive", "/x"):
            status, _ = await outcome(channel.unary_unary(path)(b""))
            assert status is grpc.StatusCode.UNIMPLEMENTED
    assert app.scopes == []


@on_a_loop
async def test_garbage_is_refused_and_says_nothing_of_the_inside() -> None:
    app = Asked()
    async with serving(app) as (_, channel, _):
        for garbage in (b"\xff" * 100, b"\x0a\x05ab", b"\x0a\x01\xff"):  # no field, cut off, no UTF-8
            ended = await outcome(method(channel, "ModelInfer")(garbage))
            assert ended == (INVALID, "the message is no ModelInferRequest")
    assert app.scopes == []


@on_a_loop
async def test_a_call_without_a_message_is_refused() -> None:
    app = Asked()
    async with serving(app) as (_, channel, _):
        call = channel.stream_unary(f"/{SERVICE}/ModelReady")()
        await call.done_writing()
        assert await outcome(call) == (INVALID, "the call has no message")
    assert app.scopes == []


@on_a_loop
async def test_of_several_messages_the_first_is_the_call_s() -> None:
    app = Asked(document={})
    async with serving(app) as (_, channel, _):
        sent = [message("ModelReady", name="m").SerializeToString(), b"\xff", b"\xff"]
        call = channel.stream_unary(f"/{SERVICE}/ModelReady")(iter(sent))
        assert (await call) == b"\x08\x01"
    assert len(app.scopes) == 1


@on_a_loop
async def test_a_refusal_of_the_translation_is_the_caller_s() -> None:
    app = Asked()
    async with serving(app) as (_, channel, _):
        ended = await outcome(method(channel, "ModelReady")(message("ModelReady", name="../x")))
        assert ended == (grpc.StatusCode.NOT_FOUND, "there is no model of this name and version")
    assert app.scopes == []


@on_a_loop
async def test_a_problem_keeps_its_words_and_what_goes_with_it() -> None:
    headers = ((b"x-request-id", b"42"), (b"retry-after", b"7"), (b"content-type", b"application/problem+json"))
    app = Asked(429, {"detail": "for “ä” there is no room."}, headers)
    async with serving(app) as (_, channel, _):
        call = method(channel, "ModelInfer")(INFER)
        assert await outcome(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "for “ä” there is no room.")
        assert dict(await call.trailing_metadata()) == {"x-request-id": "42", "retry-after": "7"}


@on_a_loop
async def test_keys_ids_and_traces_are_passed_on_and_nothing_else() -> None:
    passed = {
        "x-api-key": "secret",
        "authorization": "Bearer secret",
        "x-request-id": "42",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
    }
    kept = {"cookie": "c", "x-forwarded-for": "1.2.3.4", "content-length": "99", "content-encoding": "gzip",
            HEADER: "1", "x-api-key-bin": b"\xff"}  # fmt: skip
    app = Asked(document={})
    async with serving(app) as (_, channel, _):
        call = method(channel, "ServerLive")
        await call(message("ServerLive"), metadata=[*passed.items(), *kept.items(), ("x-api-key", "another")])
    headers = [(name.decode(), value.decode()) for name, value in app.scopes[0]["headers"]]
    assert sorted(headers) == sorted([*passed.items(), ("x-api-key", "another")])


@on_a_loop
async def test_the_id_and_the_timing_are_given_back_and_nothing_else() -> None:
    given = ((b"x-request-id", b"42"), (b"server-timing", b"total;dur=1.5"))
    more = ((b"www-authenticate", b"Bearer"), (b"content-type", b"application/json"), (b"set-cookie", b"c"))
    async with serving(Asked(document={}, headers=given + more)) as (_, channel, _):
        call = method(channel, "ServerLive")(message("ServerLive"))
        assert (await call).live
        assert list(await call.trailing_metadata()) == [(name.decode(), value.decode()) for name, value in given]


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("127.0.0.1", "127.0.0.1"),
        pytest.param("[::1]", "::1", marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")),
    ],
)
@on_a_loop
async def test_the_application_knows_who_calls(host: str, client: str) -> None:
    app = Asked(document={})
    async with serving(app, host) as (_, channel, _):
        await method(channel, "ServerLive")(message("ServerLive"))
    address, port = app.scopes[0]["client"]
    assert address == client
    assert 0 < port < 65536


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.7:51234", ("10.0.0.7", 51234)),
        ("ipv6:%5B2001:db8::1%5D:51234", ("2001:db8::1", 51234)),
        ("ipv6:[::ffff:10.0.0.7]:1", ("::ffff:10.0.0.7", 1)),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", ("fe80::1%eth0", 1)),
        ("unix:/run/socket:1", None),
        ("ipv4:10.0.0.7", None),
        ("unknown", None),
        ("", None),
    ],
)
def test_an_address_is_read_in_each_of_its_forms(peer: str, client: tuple[str, int] | None) -> None:
    assert _client(peer) == client


async def raises(scope: Message, receive: Any, send: Any) -> None:
    raise RuntimeError(SECRET)


async def raises_in_the_middle(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError(SECRET)


async def says_nothing(scope: Message, receive: Any, send: Any) -> None:
    return None


async def says_something_else(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"server", SECRET.encode())]})
    await send({"type": "http.response.body", "body": SECRET.encode()})


async def fails_in_other_words(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": SECRET.encode()})


@pytest.mark.parametrize("app", [raises, raises_in_the_middle, says_nothing, says_something_else, fails_in_other_words])
@on_a_loop
async def test_a_failure_of_the_application_is_internal_and_says_nothing_of_it(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(app) as (_, channel, _):
        with caplog.at_level(logging.CRITICAL):
            call = method(channel, "ModelInfer")(INFER)
            status, details = await outcome(call)
        assert status is INTERNAL
        for inside in (SECRET, "Error", "<class", "headers", "detail", "Expecting"):
            assert inside not in details
        assert dict(await call.trailing_metadata()) == {}
        status, _ = await outcome(method(channel, "ModelReady")(message("ModelReady")))
        assert status is grpc.StatusCode.NOT_FOUND  # it lives on


@pytest.mark.parametrize("share_port", [False, True])
@on_a_loop
async def test_a_port_is_shared_with_processes_of_this_server_alone(share_port: bool) -> None:
    limits = RpcLimits(**LIMITS, share_port=share_port)
    async with serving(Asked(document={}), share_port=share_port) as (_, _, address):
        with contextlib.nullcontext() if share_port else pytest.raises(OSError, match="gRPC cannot listen on 127"):
            RpcServer(Asked(), address, limits)


@on_a_loop
async def test_nothing_goes_on_after_the_stop() -> None:
    before = asyncio.all_tasks()
    async with serving(Asked(document={})) as (_, channel, _):
        await method(channel, "ServerLive")(message("ServerLive"))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
