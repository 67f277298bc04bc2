"""The layers around the routes, as plain ASGI: request ids, timings, metrics, the access log, keys, the last net."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.exchange import Exchange, exchange_of, sound_request_id
from app.api.keys import KeyRing
from app.api.problems import Unauthorized, problem_response
from app.errors import Unavailable
from app.telemetry import logs
from app.telemetry.metrics import Metrics

ACCESS_LOGGER = "hiera.access"
_MAX_LOGGED_PATH = 200
_PROBED = ("/health/", "/metrics")

_access = logging.getLogger(ACCESS_LOGGER)
_errors = logging.getLogger("hiera.errors")


class RecordExchanges:
    """Gives each request its id, and each answer its X-Request-ID and Server-Timing; counts and logs it once.

    An exception that no handler knew becomes a 500 here, its stack trace goes to the log, and the connection lives on.

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
        exchange = Exchange(sound_request_id(scope["headers"]), self._tasks.get(scope["path"]))
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
        except asyncio.CancelledError:
            # The bound of a shutdown was reached: say so to the caller rather than just hang up.
            if not exchange.status:
                ended = Unavailable("the server shut down before the answer was ready; send the request again")
                await _answer(ended, exchange, scope, receive, send_with_headers)
            raise
        except Exception as error:
            _errors.exception("request failed")
            if exchange.status:  # half an answer is out: only hanging up tells the caller
                raise
            await _answer(error, exchange, scope, receive, send_with_headers)
        finally:
            self._record(exchange, scope)
            logs.request_id.reset(token)

    def _record(self, exchange: Exchange, scope: Scope) -> None:
        seconds = exchange.elapsed_s
        if exchange.task is not None and exchange.status:
            self._metrics.request(exchange.task, exchange.model, exchange.status, seconds)
        # Probes and scrapes that went well are no news.
        level = logging.DEBUG if exchange.status == 200 and scope["path"].startswith(_PROBED) else logging.INFO
        if _access.isEnabledFor(level):
            _access.log(level, "request", extra={"fields": _access_fields(exchange, scope, seconds)})


class RequireKey:
    """Lets a request pass to the closed paths only with one of the keys; does nothing while there are none.

    Args:
        app: the next layer.
        keys: the API keys.
        open_paths: what anybody may ask for; a path that ends in a slash stands for all below it.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._open = open_paths
        self._open_below = tuple(path for path in open_paths if path.endswith("/") and path != "/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys.required and not self._is_open(scope):
            exchange = exchange_of(scope)
            exchange.key = self._keys.name_of(scope["headers"])
            if exchange.key is None:
                refusal = Unauthorized("send a valid API key, as X-API-Key: KEY or Authorization: Bearer KEY")
                await _answer(refusal, exchange, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        # A browser asks with OPTIONS, and without a key, whether it may send one (CORS).
        return path in self._open or path.startswith(self._open_below) or scope["method"] == "OPTIONS"


async def _answer(error: Exception, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
    response = problem_response(error, exchange.request_id)
    exchange.code = getattr(error, "code", "internal_error")
    await response(scope, receive, send)


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
