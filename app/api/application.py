"""Puts the routes and the layers around them together; everything that they use is handed in."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import Lifespan

from app.api import openapi
from app.api.direct import DirectFastAPI
from app.api.middleware import AllowOrigins, AnswerFailures, RecordExchanges, RequireKey
from app.api.routes import CLASSIFY_PATHS, Parts, add_routes, answer_problem
from app.api.tensors import HEADER
from app.api.unread import FinishUnreadBodies
from app.errors import HieraError

_OPEN_PATHS = frozenset({"/", "/docs", "/docs/", "/openapi.json", "/health/", "/v2", "/v2/health/"})


def build_application(parts: Parts, lifespan: Lifespan[FastAPI]) -> FastAPI:
    """The ASGI application with every route of the contract."""
    app = DirectFastAPI(
        title=openapi.TITLE,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    add_routes(app, parts)
    openapi.install(app, secured=_secured_paths(parts))
    app.add_exception_handler(HieraError, answer_problem)
    app.add_exception_handler(HTTPException, answer_problem)
    open_paths = _OPEN_PATHS if parts.metrics_need_key else _OPEN_PATHS | {"/metrics"}
    # The last one added is the outermost.
    app.add_middleware(RequireKey, keys=parts.keys, admin_keys=parts.admin_keys, open_paths=open_paths)
    app.add_middleware(AnswerFailures)
    if parts.cors_origins:  # around the keys: a page may read why it was refused, and no preflight carries a key
        app.add_middleware(
            AllowOrigins,
            allow_origins=parts.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", HEADER, "x-api-key", "x-request-id"],
            expose_headers=[HEADER, "retry-after", "server-timing", "x-request-id"],
        )
    app.add_middleware(FinishUnreadBodies)
    app.add_middleware(RecordExchanges, metrics=parts.metrics, tasks=CLASSIFY_PATHS)
    return app


def _secured_paths(parts: Parts) -> tuple[str, ...]:
    """What the paths begin with that ask for an API key."""
    if not parts.keys.required:
        return ()
    secured = ("/classify/", "/models", "/v2/models/")
    return (*secured, "/metrics") if parts.metrics_need_key else secured
