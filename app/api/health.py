"""`/health/live`, `/health/ready` and `/metrics`: what orchestrators and Prometheus ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from app.api.schemas import Health
from app.errors import Unavailable

Exposition = Callable[[str], Awaitable[tuple[bytes, str]]]
"""The metrics as text and its content type, for an Accept header."""


class Condition(Protocol):
    """Who knows how the server is."""

    def unready_reason(self) -> str | None:
        """Why requests should go elsewhere; None when they are welcome."""
        ...

    def hopeless_reason(self) -> str | None:
        """Why only a restart would help; None while there is no need."""
        ...


class HealthEndpoints:
    """Answers 200, or 503 with the reason."""

    def __init__(self, condition: Condition) -> None:
        self._condition = condition

    async def live(self, request: Request) -> Response:
        """No only when a restart is the cure."""
        reason = self._condition.hopeless_reason()
        if reason is not None:
            raise Unavailable(reason, code="not_live")
        return Response(Health(status="live").model_dump_json(), media_type="application/json")

    async def ready(self, request: Request) -> Response:
        """Yes once every package was judged and one is proven, until the server drains."""
        reason = self._condition.unready_reason()
        if reason is not None:
            raise Unavailable(reason, code="not_ready")
        return Response(Health(status="ready").model_dump_json(), media_type="application/json")


class MetricsEndpoint:
    """Prometheus' text format, or OpenMetrics when the Accept header asks for it."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    async def scrape(self, request: Request) -> Response:
        """Every series, now."""
        text, content_type = await self._exposition(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})
