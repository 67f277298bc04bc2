"""The gRPC server: each call becomes an HTTP request to the application of this process, layers and all.

So keys, admission, limits, metrics, traces and the access log are those of HTTP. Only what lies before is gRPC's own:
connections and the reading of messages, which are bounded here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from app.rpc.messages import MESSAGES, SERVICE
from app.rpc.translation import METHODS, HttpAnswer, HttpCall, Method, Refused

MESSAGE_BYTES = 16 * 1024 * 1024  # a message is whole in memory before anybody is asked whether there is room
_FOREVER_S = 1e9
_LAST_WORDS_S = 1.0  # for the answers of calls that were dropped
_PASSED_ON = ("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate")
_GIVEN_BACK = ("x-request-id", "server-timing", "retry-after")

_errors = logging.getLogger("hiera.errors")

Headers = list[tuple[bytes, bytes]]
_Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]],
    Awaitable[None],
]


@dataclass(frozen=True)
class RpcLimits:
    """What one process bears.

    Attributes:
        calls: at a time; others are refused as RESOURCE_EXHAUSTED before their message is read.
        connections: at a time.
        metadata_bytes: of one call.
        message_timeout_s: until a call's message has come, or it is cancelled.
        share_port: whether other processes of this server listen on the same port.
    """

    calls: int
    connections: int
    metadata_bytes: int
    message_timeout_s: float
    share_port: bool = False


class RpcServer:
    """Listens as soon as it is made, and answers from `start` on.

    It is gRPC's server of threads: that of coroutines ends for good at the first path that is no UTF-8, which anybody
    may send. A thread reads a call's message, and waits while the event loop answers.

    Args:
        app: the ASGI application.
        address: "host:port".
        knows: whether a call with these headers comes from somebody who may call; asked in threads. Of others no
            message is waited for.

    Attributes:
        received_bytes: of all messages so far.

    Raises:
        OSError: the address cannot be had.
    """

    def __init__(
        self, app: Application, address: str, limits: RpcLimits, knows: Callable[[Headers], bool] = lambda headers: True
    ) -> None:
        self._app = app
        self._knows = knows
        self._timeout_s = limits.message_timeout_s
        self._running: set[asyncio.Task[None]] = set()
        self._reading: dict[grpc.ServicerContext, float] = {}  # until when
        self.received_bytes = 0
        handlers = {name: self._handler(method) for name, method in METHODS.items()}
        self._threads = ThreadPoolExecutor(limits.calls, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._threads,
            handlers=(grpc.method_handlers_generic_handler(SERVICE, handlers),),
            maximum_concurrent_rpcs=limits.calls,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: 16 KB may unpack to gigabytes
                ("grpc.max_metadata_size", limits.metadata_bytes),
                ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
                ("grpc.max_concurrent_streams", limits.calls),
                ("grpc.max_allowed_incoming_connections", limits.connections),
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.max_connection_idle_ms", 300_000),
                ("grpc.keepalive_time_ms", 60_000),  # a peer that is gone is noticed
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.so_reuseport", int(limits.share_port)),
            ],
        )
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}") from error

    async def start(self) -> None:
        """Answer, from the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._looking = asyncio.create_task(self._end_slow_calls())
        self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and end those that are not answered after `grace_s`."""
        await asyncio.to_thread(self._server.stop(grace_s).wait)
        self._looking.cancel()
        self._threads.shutdown(wait=False)

    def drop(self) -> None:
        """While it stops: end the calls that are not answered. Their callers are told to try again, if they listen."""
        for running in self._running:
            running.cancel()
        self._loop.call_later(_LAST_WORDS_S, self._server.stop, None)

    async def _end_slow_calls(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._timeout_s / 4))
            now = time.monotonic()
            for context, until in list(self._reading.items()):
                if until < now:
                    context.cancel()

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            given_back: Sequence[tuple[str, str]] = ()
            message = MESSAGES[method.response]()
            try:
                reply = self._ask(self._call(method, messages, context), context)
                given_back = _given_back(reply)
                message = method.answer(reply)
            except Refused as refusal:
                context.set_code(refusal.status)
                context.set_details(str(refusal))
            except Exception:
                if context.is_active():  # else nobody listens any more
                    _errors.exception("a gRPC call failed")
                context.set_code(grpc.StatusCode.INTERNAL)
                context.set_details("the server failed on this call; its log says why")
            context.set_trailing_metadata(given_back)
            return message

        # On the wire a call of one message is a stream of one; as a stream, its reading can be bounded in time.
        return grpc.stream_unary_rpc_method_handler(
            answer,
            request_deserializer=None,
            response_serializer=MESSAGES[method.response].SerializeToString,
        )

    def _call(self, method: Method, messages: Iterator[bytes], context: grpc.ServicerContext) -> HttpCall:
        """The HTTP request for the message of a call, which is not kept."""
        if not MESSAGES[method.request].DESCRIPTOR.fields:  # nothing is said in it
            return method.call(None, None)
        if not self._knows(_headers(context)):
            return HttpCall("POST", "/v2/models/unread/infer")  # for the application to refuse in its own words
        self._reading[context] = time.monotonic() + self._timeout_s
        try:
            sent = next(messages, None)
        finally:
            del self._reading[context]
        if sent is None:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        self.received_bytes += len(sent)
        try:
            message = MESSAGES[method.request].FromString(sent)
        except DecodeError:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no {method.request}") from None
        left_s = context.time_remaining()  # without a deadline none, or some centuries
        return method.call(message, left_s if left_s is not None and left_s < _FOREVER_S else None)

    def _ask(self, call: HttpCall, context: grpc.ServicerContext) -> HttpAnswer:
        """Have the application answer. If the caller leaves, it is told so, and settles what it has begun."""
        exchange = _Exchange(call)
        answered = asyncio.run_coroutine_threadsafe(self._run(_scope(call, context), exchange), self._loop)

        def leave() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the application
                self._loop.call_soon_threadsafe(exchange.left.set)

        if not context.add_callback(leave):
            leave()
        answered.result()
        return exchange.answer()

    async def _run(self, scope: _Message, exchange: _Exchange) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        await self._app(scope, exchange.receive, exchange.send)


class _Exchange:
    """The ASGI channel of one request whose body is there."""

    def __init__(self, call: HttpCall) -> None:
        self.left = asyncio.Event()
        self._body = call.body
        self._ended = False
        self._start: _Message = {}
        self._parts: list[bytes] = []

    async def receive(self) -> _Message:
        if not self._ended:
            chunk = self._body.pop(0) if self._body else b""
            self._ended = not self._body
            return {"type": "http.request", "body": chunk, "more_body": not self._ended}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: _Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        else:
            self._parts.append(message.get("body", b""))

    def answer(self) -> HttpAnswer:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._start["headers"]}
        return HttpAnswer(self._start["status"], headers, b"".join(self._parts))


def _headers(context: grpc.ServicerContext) -> Headers:
    """Of a call's metadata, those that are passed on."""
    return [
        (name.encode(), value.encode() if isinstance(value, str) else value)
        for name, value in context.invocation_metadata() or ()
        if name in _PASSED_ON
    ]


def _scope(call: HttpCall, context: grpc.ServicerContext) -> MutableMapping[str, Any]:
    headers = [(name.encode(), value.encode()) for name, value in call.headers.items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers + _headers(context),
        "client": _client(context.peer()),
        "server": None,
    }


def _client(peer: str) -> tuple[str, int] | None:
    """Who calls, from "ipv4:10.0.0.7:51234" or "ipv6:%5B::1%5D:51234"."""
    family, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    return (host.strip("[]"), int(port)) if family in ("ipv4", "ipv6") and port.isdecimal() else None


def _given_back(answer: HttpAnswer) -> Sequence[tuple[str, str]]:
    return tuple((name, answer.headers[name]) for name in _GIVEN_BACK if name in answer.headers)
