"""The layers around the routes, as plain ASGI: request ids, timings, metrics, the access log, keys, the last net."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.admin import ADMIN_PREFIX
from app.api.exchange import Exchange, exchange_of, sound_request_id
from app.api.keys import KeyRing
from app.api.problems import Forbidden, Unauthorized, problem_response
from app.errors import RequestError, Unavailable
from app.telemetry import logs
from app.telemetry.metrics import Metrics

_MAX_LOGGED_PATH = 200
_PROBED = ("/health/", "/metrics", "/v2/health/")
_OPEN_INFERENCE = "/v2"

_access = logging.getLogger(logs.ACCESS_LOGGER)
_errors = logging.getLogger("hiera.errors")


class RecordExchanges:
    """Gives each request its id, and each answer its X-Request-ID and Server-Timing; counts and logs it once.

    Args:
        app: the next layer.
        metrics: where classification requests are counted.
        tasks: "image" or "video" by the path of each classification route.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tasks: Mapping[str, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        request_id = sound_request_id(scope["headers"])
        exchange = Exchange(request_id, self._tasks.get(path), open_inference=path.startswith(_OPEN_INFERENCE))
        exchange.bind(scope)
        token = logs.request_id.set(exchange.request_id)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"server-timing", exchange.server_timing().encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._record(exchange, scope)
            logs.request_id.reset(token)

    def _record(self, exchange: Exchange, scope: Scope) -> None:
        seconds = exchange.elapsed_s
        if exchange.task is not None and exchange.status:
            self._metrics.request(exchange.task, exchange.model, exchange.status, seconds, exchange.key)
        # Probes and scrapes that went well are no news.
        level = logging.DEBUG if exchange.status == 200 and scope["path"].startswith(_PROBED) else logging.INFO
        if _access.isEnabledFor(level):
            _access.log(level, "request", extra={"fields": _access_fields(exchange, scope, seconds)})


class AnswerFailures:
    """Makes a 500 of an exception that no handler knew: its stack trace goes to the log and the connection lives on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if exchange.status:
                raise
            # The bound of a shutdown was reached: say so to the caller rather than just hang up. With that it is done.
            ended = Unavailable("the server shut down before the answer was ready; send the request again")
            await problem_response(ended, exchange)(scope, receive, send)
        except Exception as error:
            _errors.exception("request failed")
            if exchange.status:  # half an answer is out: only hanging up tells the caller
                raise
            await problem_response(error, exchange)(scope, receive, send)


class AllowOrigins(CORSMiddleware):
    """Starlette's CORS, but a preflight that is refused is a problem like every other refusal."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except _PreflightRefused as refusal:
            await problem_response(refusal, exchange_of(scope))(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Starlette's answer.

        Raises:
            _PreflightRefused: it would be a refusal.
        """
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            what = bytes(response.body).decode().removeprefix("Disallowed CORS ")
            raise _PreflightRefused(
                f"a page may not send this here ({what}); the server's operator names the origins that may call"
            )
        return response


class _PreflightRefused(Forbidden):
    code = "cors_refused"


class RequireKey:
    """Lets a request pass only with a key of the right ring: the API keys' while there are any, for admin calls the
    admin keys'. Neither ring opens what belongs to the other; a secret that is in both opens nothing.

    Args:
        app: the next layer.
        keys: the API keys; without any, all but the admin calls is open.
        admin_keys: without any, the admin calls are off.
        open_paths: what anybody may ask for; a path that ends in a slash stands for all below it.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, admin_keys: KeyRing, open_paths: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._admin_keys = admin_keys
        self._open = open_paths
        self._open_below = tuple(path for path in open_paths if path.endswith("/") and path != "/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await problem_response(refusal, exchange_of(scope))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> RequestError | None:
        """Why the request may not pass; None when it may."""
        path: str = scope["path"]
        # A browser asks with OPTIONS, and without a key, whether it may send one (CORS).
        if scope["method"] == "OPTIONS":
            return None
        if path.startswith(ADMIN_PREFIX):
            if not self._admin_keys.required:
                return Forbidden(
                    "admin calls are off; the server's operator turns them on by setting an admin key", code="admin_off"
                )
            return _judge(scope, self._admin_keys, self._keys, "an admin key")
        if not self._keys.required or path in self._open or path.startswith(self._open_below):
            return None
        return _judge(scope, self._keys, self._admin_keys, "an API key")


def _judge(scope: Scope, fitting: KeyRing, other: KeyRing, wanted: str) -> RequestError | None:
    exchange = exchange_of(scope)
    stranger = other.name_of(scope["headers"])
    name = fitting.name_of(scope["headers"], unless_of=other)
    exchange.key = name or stranger
    if name is not None:
        return None
    if stranger is not None:
        return Forbidden(f"the key that was sent is not for this; it takes {wanted}")
    return Unauthorized(f"send {wanted} that is valid, as X-API-Key: KEY or Authorization: Bearer KEY")


def _access_fields(exchange: Exchange, scope: Scope, seconds: float) -> dict[str, Any]:
    """The path without its query, and never a header: neither payloads nor keys reach the log."""
    client = scope.get("client")
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": scope["path"][:_MAX_LOGGED_PATH],
        "status": exchange.status,
        "duration_ms": round(1000 * seconds, 3),
        "client": client[0] if client else None,
    }
    if exchange.task is not None:
        fields |= {"model": exchange.model, "files": exchange.files, "body_bytes": exchange.body_bytes}
        fields |= {f"{stage}_ms": round(1000 * spent, 3) for stage, spent in exchange.stages.items()}
    if exchange.key is not None:
        fields["key"] = exchange.key
    if exchange.code is not None:
        fields["code"] = exchange.code
    return fields
