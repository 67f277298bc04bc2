"""Every route: where it is, what answers it, and what the document says of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api import openapi
from app.api.admin import VERSION, AdminEndpoints
from app.api.classify import ClassifyBounds, classify_endpoint
from app.api.direct import DirectFastAPI, Endpoint
from app.api.exchange import exchange_of
from app.api.gate import Gate
from app.api.health import Condition, Exposition, HealthEndpoints, MetricsEndpoint
from app.api.inference_schemas import InferenceProblem, ModelMetadata, ServerMetadata
from app.api.keys import KeyRing
from app.api.models import ModelEndpoints, ModelList
from app.api.open_inference import OpenInferenceEndpoints
from app.api.pages import PageEndpoints
from app.api.problems import problem_response
from app.api.schemas import Health, ModelChange, ModelChanges, ModelDetail, Models, ModelStandings, Signpost
from app.serving.changes import Administer
from app.serving.results import Task
from app.serving.service import Service
from app.telemetry.metrics import Metrics

_log = logging.getLogger("hiera.errors")
_TASKS: tuple[Task, ...] = ("image", "video")
INFER_ROUTE = "/v2/models/{name}/infer"
CLASSIFY_PATHS: dict[str, Task] = {f"/classify/{task}": task for task in _TASKS}


def traced_route(path: str) -> str | None:
    """The route of a path that runs a model; None for any other."""
    if path in CLASSIFY_PATHS:
        return path
    return INFER_ROUTE if path.startswith("/v2/models/") and path.endswith("/infer") else None


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


def add_routes(app: DirectFastAPI, parts: Parts) -> None:
    """Add them all."""
    for task in _TASKS:
        bounds = parts.bounds[task]
        classify = classify_endpoint(task, parts.service, bounds, parts.metrics, parts.gate)
        app.add_direct_route(f"/classify/{task}", classify, answer_problem)
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

    answers = openapi.answers
    name = openapi.path_parameter("A name from /models.")
    package = openapi.path_parameter("A name from /admin/models.")
    models, health, pages = ModelEndpoints(parts.models), HealthEndpoints(parts.condition), PageEndpoints()
    get, add = partial(_add, app, "GET"), partial(_add, app)
    get("/models", models.list_models, "List the models", "models", answers(Models, 401, 403))
    show = answers(ModelDetail, 401, 403, 404)
    get("/models/{name}", models.show_model, "Show a model", "models", show, parameters=[name])
    get("/health/live", health.live, "Whether the process works", "health", answers(Health, 503))
    get("/health/ready", health.ready, "Whether requests are welcome", "health", answers(Health, 503))
    get("/", pages.root, "Where to look", "pages", answers(Signpost))
    admin, path = AdminEndpoints(parts.administer), "/admin/models/{name}"
    listed = answers(ModelStandings, 401, 403, 409, 422)
    loaded = answers(ModelChange, 401, 403, 404, 409, 422, 503)
    unloaded = answers(ModelChange, 401, 403, 404, 422, 503)
    reloaded = answers(ModelChanges, 401, 403, 409, 422, 503)
    get("/admin/models", admin.list_packages, "What is on disk, and what serves", "admin", listed)
    add("PUT", path, admin.load_model, "Load or swap a model", "admin", loaded, parameters=[package, VERSION])
    add("DELETE", path, admin.unload_model, "Unload a model", "admin", unloaded, parameters=[package])
    changed = "Load and unload what has changed on disk"
    add("POST", "/admin/reload", admin.reload_models, changed, "admin", reloaded)
    exposition = {
        200: {
            "description": "Prometheus text; OpenMetrics when the Accept header asks for it.",
            "content": {"text/plain": {}, "application/openmetrics-text": {}},
        },
        **(openapi.problem_answers(401, 403) if parts.metrics_need_key else {}),
    }
    scrape = MetricsEndpoint(parts.exposition).scrape
    get("/metrics", scrape, "Metrics for Prometheus", "health", exposition, operation_id="metrics")
    get("/docs", pages.docs, "", "pages", {}, shown=False)
    for page in ("docs.css", "docs.js", "try.js"):
        get(f"/docs/{page}", pages.file, "", "pages", {}, shown=False)
    _add_open_inference(app, OpenInferenceEndpoints(parts.models, health, parts.service, parts.bounds, parts.metrics))


def _add_open_inference(app: DirectFastAPI, endpoints: OpenInferenceEndpoints) -> None:
    tag = "open inference"
    answers = partial(openapi.answers, problem=InferenceProblem)

    def add(
        method: str, path: str, endpoint: Endpoint, summary: str, documented: openapi.Responses, **extra: Any
    ) -> None:
        operation_id = f"inference_{endpoint.__name__}"
        parameters = [openapi.path_parameter("A name from /models.")] if "{name}" in path else []
        extra = extra | {"parameters": [*parameters, *extra.get("parameters", ())]}
        _add(app, method, path, endpoint, summary, tag, documented, operation_id=operation_id, **extra)
        version = path.replace("{name}", "{name}/versions/{version}")  # which must be the one that serves
        if version != path:
            _add(app, method, version, endpoint, summary, tag, documented, operation_id=operation_id, shown=False)
        if method == "POST":
            app.add_direct_route(path, endpoint, answer_problem)
            app.add_direct_route(version, endpoint, answer_problem)

    add("GET", "/v2", endpoints.server_metadata, "Who this is", answers(ServerMetadata))
    add("GET", "/v2/health/live", endpoints.server_live, "Whether the process works", answers(Health, 503))
    add("GET", "/v2/health/ready", endpoints.server_ready, "Whether requests are welcome", answers(Health, 503))
    model = "/v2/models/{name}"
    metadata = answers(ModelMetadata, 401, 403, 404, 503)
    add("GET", model, endpoints.model_metadata, "What a model takes and gives", metadata)
    add("GET", f"{model}/ready", endpoints.model_ready, "Whether a model answers", answers(Health, 401, 403, 404, 503))
    run, body = openapi.inference_answers(), openapi.inference_body()
    header = [openapi.INFERENCE_HEADER]
    add("POST", INFER_ROUTE, endpoints.infer, "Run a model on rows or files", run, request_body=body, parameters=header)


def _add(
    app: DirectFastAPI,
    method: str,
    path: str,
    endpoint: Endpoint,
    summary: str,
    tag: str,
    responses: openapi.Responses,
    *,
    operation_id: str | None = None,
    parameters: Sequence[dict[str, Any]] = (),
    request_body: dict[str, Any] | None = None,
    shown: bool = True,
) -> None:
    """Add a route as the document shows it."""
    extra: dict[str, Any] = {"parameters": list(parameters)} if parameters else {}
    app.add_api_route(
        path,
        endpoint,
        methods=["GET", "HEAD"] if method == "GET" else [method],
        summary=summary,
        operation_id=operation_id or endpoint.__name__,
        tags=[tag],
        response_model=None,
        responses=responses,
        openapi_extra=(extra | ({"requestBody": request_body} if request_body else {})) or None,
        include_in_schema=shown,
    )


async def answer_problem(request: Request, error: Exception) -> Response:
    """The problem that a request ended in."""
    response = problem_response(error, exchange_of(request.scope))
    if response.status_code == 500:
        _log.error("request failed", exc_info=error)
    return response
