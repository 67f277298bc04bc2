"""Puts the routes and the layers around them together; everything that they use is handed in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Lifespan

from app.api import openapi
from app.api.admin import VERSION, AdminEndpoints
from app.api.classify import ClassifyBounds, classify_endpoint
from app.api.direct import DirectFastAPI, Endpoint
from app.api.exchange import exchange_of
from app.api.gate import Gate
from app.api.health import Condition, Exposition, HealthEndpoints, MetricsEndpoint
from app.api.keys import KeyRing
from app.api.middleware import AllowOrigins, AnswerFailures, RecordExchanges, RequireKey
from app.api.models import ModelEndpoints, ModelList
from app.api.pages import PageEndpoints
from app.api.problems import problem_response
from app.api.schemas import Health, ModelChange, ModelChanges, ModelDetail, Models, ModelStandings, Signpost
from app.api.unread import FinishUnreadBodies
from app.errors import HieraError
from app.serving.changes import Administer
from app.serving.results import Task
from app.serving.service import Service
from app.telemetry.metrics import Metrics

_log = logging.getLogger("hiera.errors")
_OPEN_PATHS = frozenset({"/", "/docs", "/docs/", "/openapi.json", "/health/"})
_TASKS: tuple[Task, ...] = ("image", "video")
CLASSIFY_PATHS: dict[str, Task] = {f"/classify/{task}": task for task in _TASKS}


@dataclass(frozen=True)
class Parts:
    """What the routes need of the rest of the server."""

    service: Service
    models: ModelList
    condition: Condition
    metrics: Metrics
    exposition: Exposition
    keys: KeyRing
    admin_keys: KeyRing
    administer: Administer
    bounds: dict[Task, ClassifyBounds]
    gate: Gate
    metrics_need_key: bool = False
    cors_origins: tuple[str, ...] = ()


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
    _add_routes(app, parts)
    openapi.install(app, secured=_secured_paths(parts))
    app.add_exception_handler(HieraError, _answer_problem)
    app.add_exception_handler(HTTPException, _answer_problem)
    open_paths = _OPEN_PATHS if parts.metrics_need_key else _OPEN_PATHS | {"/metrics"}
    # The last one added is the outermost.
    app.add_middleware(RequireKey, keys=parts.keys, admin_keys=parts.admin_keys, open_paths=open_paths)
    app.add_middleware(AnswerFailures)
    if parts.cors_origins:  # around the keys: a page may read why it was refused, and no preflight carries a key
        app.add_middleware(
            AllowOrigins,
            allow_origins=parts.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["retry-after", "server-timing", "x-request-id"],
        )
    app.add_middleware(FinishUnreadBodies)
    app.add_middleware(RecordExchanges, metrics=parts.metrics, tasks=CLASSIFY_PATHS)
    return app


def _secured_paths(parts: Parts) -> tuple[str, ...]:
    """What the paths begin with that ask for an API key."""
    if not parts.keys.required:
        return ()
    return ("/classify/", "/models", "/metrics") if parts.metrics_need_key else ("/classify/", "/models")


def _add_routes(app: DirectFastAPI, parts: Parts) -> None:
    for task in _TASKS:
        bounds = parts.bounds[task]
        classify = classify_endpoint(task, parts.service, bounds, parts.metrics, parts.gate)
        app.add_direct_route(f"/classify/{task}", classify, _answer_problem)
        app.add_api_route(
            f"/classify/{task}",
            classify,
            methods=["POST"],
            summary=f"Classify {'images' if task == 'image' else 'a video'}",
            operation_id=f"classify_{task}",
            tags=["classify"],
            response_model=None,
            responses=openapi.classify_answers(task),
            openapi_extra=openapi.classify_extra(task, bounds.query, bounds.upload.max_files),
        )

    def add(
        method: str,
        path: str,
        endpoint: Endpoint,
        summary: str,
        tag: str,
        success: type[BaseModel],
        *problems: int,
        parameters: Sequence[dict[str, Any]] = (),
    ) -> None:
        app.add_api_route(
            path,
            endpoint,
            methods=["GET", "HEAD"] if method == "GET" else [method],
            summary=summary,
            operation_id=endpoint.__name__,
            tags=[tag],
            response_model=None,
            responses=openapi.answers(success, *problems),
            openapi_extra={"parameters": list(parameters)} if parameters else None,
        )

    get = partial(add, "GET")
    name = openapi.path_parameter("A name from /models.")
    package = openapi.path_parameter("A name from /admin/models.")
    models, health, pages = ModelEndpoints(parts.models), HealthEndpoints(parts.condition), PageEndpoints()
    get("/models", models.list_models, "List the models", "models", Models, 401, 403)
    get("/models/{name}", models.show_model, "Show a model", "models", ModelDetail, 401, 403, 404, parameters=[name])
    get("/health/live", health.live, "Whether the process works", "health", Health, 503)
    get("/health/ready", health.ready, "Whether requests are welcome", "health", Health, 503)
    get("/", pages.root, "Where to look", "pages", Signpost)
    admin, path = AdminEndpoints(parts.administer), "/admin/models/{name}"
    listed, changed, reloaded = (ModelStandings, 401, 403, 409), (ModelChange, 401, 403, 404), (ModelChanges, 401, 403)
    get("/admin/models", admin.list_packages, "What is on disk, and what serves", "admin", *listed, 422)
    add(
        "PUT",
        path,
        admin.load_model,
        "Load or swap a model",
        "admin",
        *changed,
        409,
        422,
        503,
        parameters=[package, VERSION],
    )
    add("DELETE", path, admin.unload_model, "Unload a model", "admin", *changed, 422, 503, parameters=[package])
    add(
        "POST",
        "/admin/reload",
        admin.reload_models,
        "Load and unload what has changed on disk",
        "admin",
        *reloaded,
        409,
        422,
        503,
    )
    app.add_api_route(
        "/metrics",
        MetricsEndpoint(parts.exposition).scrape,
        methods=["GET", "HEAD"],
        summary="Metrics for Prometheus",
        operation_id="metrics",
        tags=["health"],
        response_model=None,
        responses={
            200: {
                "description": "Prometheus text; OpenMetrics when the Accept header asks for it.",
                "content": {"text/plain": {}, "application/openmetrics-text": {}},
            },
            **(openapi.problem_answers(401, 403) if parts.metrics_need_key else {}),
        },
    )
    for path, page in (("/docs", pages.docs), ("/docs/docs.js", pages.script), ("/docs/docs.css", pages.style)):
        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False, response_model=None)


async def _answer_problem(request: Request, error: Exception) -> Response:
    response = problem_response(error, exchange_of(request.scope))
    if response.status_code == 500:
        _log.error("request failed", exc_info=error)
    return response
