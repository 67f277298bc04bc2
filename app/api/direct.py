"""FastAPI, with a shorter way to the routes that must be quick: to classify, and above all to refuse.

Between the middleware and an endpoint the framework has layers of its own (two routers, exit stacks, exception
tables), which together cost more than all of ours. A refusal under overload is nothing but layers, and what refusals
cost is taken from those who are answered.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import HieraError

Endpoint = Callable[[Request], Awaitable[Response]]
ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


class DirectFastAPI(FastAPI):
    """As FastAPI; POST requests to the paths given to `add_direct_route` go through the middleware and nothing else.

    The routes are added in the usual way too, for the OpenAPI document and for other methods.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._endpoints: list[tuple[re.Pattern[str], ASGIApp]] = []
        self._ways: list[tuple[re.Pattern[str], ASGIApp]] | None = None

    def add_direct_route(self, path: str, endpoint: Endpoint, on_error: ErrorHandler) -> None:
        """Lead POST requests for `path` to `endpoint`; `on_error` answers a `HieraError`. "{name}" in it stands for a
        part without a slash, and becomes a path parameter."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope, receive)
            try:
                response = await endpoint(request)
            except HieraError as error:
                response = await on_error(request, error)
            await response(scope, receive, send)

        pattern = "".join(
            f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else re.escape(part)
            for part in re.split(r"(\{\w+\})", path)
        )
        self._endpoints.append((re.compile(pattern), answer))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            if self._ways is None:  # middleware may be added until the first request, as Starlette has it
                self._ways = [(pattern, self._wrapped(endpoint)) for pattern, endpoint in self._endpoints]
            for pattern, way in self._ways:
                if match := pattern.fullmatch(scope["path"]):
                    scope["path_params"] = match.groupdict()
                    await way(scope, receive, send)
                    return
        await super().__call__(scope, receive, send)

    def _wrapped(self, endpoint: ASGIApp) -> ASGIApp:
        for middleware in reversed(self.user_middleware):
            endpoint = middleware.cls(endpoint, *middleware.args, **middleware.kwargs)
        return endpoint
