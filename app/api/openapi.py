"""The OpenAPI 3.1 document: what the routes take and answer, complete enough to generate clients and tests from."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from app.api import inference_schemas as inference
from app.api import schemas
from app.api.problems import MEDIA_TYPE
from app.api.query import QueryLimits, parameters
from app.serving.results import Task

Responses = dict[int | str, dict[str, Any]]
TITLE = "hiera-serve"
API_VERSION = "1.0"  # of this interface, not of the software
_DESCRIPTION = (
    "Classifies images and videos with Hiera models. Errors are `application/problem+json` (RFC 9457); each carries a "
    "stable `code` and the `request_id` that the log knows."
)
_REFERENCE = "#/components/schemas/{model}"
_ON_THE_WIRE: tuple[type[BaseModel], ...] = (
    schemas.Problem,
    schemas.ImageResult,
    schemas.ImageResults,
    schemas.VideoResult,
    schemas.Models,
    schemas.ModelDetail,
    schemas.ModelChange,
    schemas.ModelChanges,
    schemas.ModelStandings,
    schemas.Health,
    schemas.Signpost,
    schemas.Images,
    inference.ServerMetadata,
    inference.ModelMetadata,
    inference.InferenceCall,
    inference.InferenceAnswer,
    inference.InferenceProblem,
)
_PROBLEMS = {
    400: "The request is malformed, or holds no file.",
    401: "API keys are set, and none that fits was sent.",
    403: "The key is not for this; or no admin key is set, so that admin calls are off.",
    404: "There is no such model.",
    408: "The upload came too slowly.",
    409: "The package is refused, the detail says why; what served before serves on.",
    413: "Too many bytes, pixels, frames, seconds or files.",
    415: "Not an image or a video that this server reads, or a body of another content type.",
    422: "The file is damaged, or a parameter is unknown or out of range.",
    429: "The queue is full or cannot make the deadline; nothing was decoded.",
    500: "The server failed; the log has the stack trace under the request id.",
    503: "Not ready, or shutting down.",
    504: "The deadline passed.",
}
CLASSIFY_PROBLEMS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
_SCHEMES = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}
_ADMIN_SCHEMES = {
    f"admin_{name}": {**scheme, "description": "An admin key; API keys do not open these calls."}
    for name, scheme in _SCHEMES.items()
}
_ID_HEADER = {"description": "The caller's if it sent a sound one, else a new one.", "schema": {"type": "string"}}
_TIMING_HEADER = {"description": "Milliseconds by stage.", "schema": {"type": "string"}}
_RETRY_HEADER = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}


def answers(
    success: type[BaseModel] | tuple[type[BaseModel], ...],
    *problems: int,
    problem: type[schemas.Problem] = schemas.Problem,
) -> Responses:
    """The `responses` of a route: what it says on success, and the problems that it may answer with."""
    models = success if isinstance(success, tuple) else (success,)
    references = [_reference(model) for model in models]
    schema = references[0] if len(references) == 1 else {"oneOf": references}
    documented: Responses = {
        200: {
            "description": (models[0].__doc__ or "").partition("\n")[0],
            "headers": {"X-Request-ID": _ID_HEADER, "Server-Timing": _TIMING_HEADER},
            "content": {"application/json": {"schema": schema}},
        }
    }
    return documented | problem_answers(*problems, problem=problem)


def problem_answers(*problems: int, problem: type[schemas.Problem] = schemas.Problem) -> Responses:
    """Those `responses` that are problems."""
    documented: Responses = {}
    for status in problems:
        headers = {"X-Request-ID": _ID_HEADER} | ({"Retry-After": _RETRY_HEADER} if status in (429, 503) else {})
        documented[status] = {
            "description": _PROBLEMS[status],
            "headers": headers,
            "content": {MEDIA_TYPE: {"schema": _reference(problem)}},
        }
    return documented


def path_parameter(description: str) -> dict[str, Any]:
    """The parameter object of `{name}` in a path."""
    schema = {"type": "string"}
    return {"name": "name", "in": "path", "required": True, "description": description, "schema": schema}


def classify_answers(task: Task) -> Responses:
    """The `responses` of a classification route."""
    success = (schemas.ImageResult, schemas.ImageResults) if task == "image" else schemas.VideoResult
    return answers(success, *CLASSIFY_PROBLEMS)


def classify_extra(task: Task, limits: QueryLimits, max_files: int) -> dict[str, Any]:
    """Parameters and request body of a classification route, which FastAPI cannot see."""
    binary = {"type": "string", "format": "binary"}
    file: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
    part = {"type": "array", "items": file, "minItems": 1, "maxItems": max_files} if task == "image" else file
    form = {"type": "object", "properties": {"file": part}, "required": ["file"], "additionalProperties": False}
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": form},
        "application/octet-stream": {"schema": binary},
        f"{task}/*": {"schema": binary},
    }
    if task == "image":
        content["application/json"] = {"schema": _reference(schemas.Images)}
    return {"parameters": parameters(task, limits), "requestBody": {"required": True, "content": content}}


INFERENCE_HEADER = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "description": "Bytes of the JSON at the beginning of the body, where tensors follow it as bytes.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 65536},
}


def inference_answers() -> Responses:
    """The `responses` of running a model."""
    documented = answers(inference.InferenceAnswer, *CLASSIFY_PROBLEMS, problem=inference.InferenceProblem)
    well = documented[200]
    header = {"description": "Bytes of the JSON, where outputs follow it as bytes.", "schema": {"type": "integer"}}
    well["headers"] = well["headers"] | {INFERENCE_HEADER["name"]: header}
    well["content"] = well["content"] | {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return documented


def inference_body() -> dict[str, Any]:
    """The request body of the Open Inference Protocol."""
    binary = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {
        "application/json": {"schema": _reference(inference.InferenceCall)},
        "application/octet-stream": {"schema": binary},
    }
    return {"required": True, "content": content}


def install(app: FastAPI, *, secured: tuple[str, ...]) -> None:
    """Have `app` answer with the full document, made once at the first call. `secured`: what the paths begin with that
    ask for an API key."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, secured)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign] # FastAPI's documented way of extending the document


def _document(app: FastAPI, secured: tuple[str, ...]) -> dict[str, Any]:
    routes = [_without_head(route) for route in app.routes]
    document = get_openapi(title=TITLE, version=API_VERSION, description=_DESCRIPTION, routes=routes)
    components = document.setdefault("components", {})
    _, definitions = models_json_schema([(model, "serialization") for model in _ON_THE_WIRE], ref_template=_REFERENCE)
    components["schemas"] = definitions["$defs"]
    components["securitySchemes"] = {**(_SCHEMES if secured else {}), **_ADMIN_SCHEMES}
    for path, operations in document["paths"].items():
        names = _ADMIN_SCHEMES if path.startswith("/admin/") else _SCHEMES if path.startswith(secured) else {}
        for operation in operations.values() if names else ():
            operation["security"] = [{name: []} for name in names]
    return document


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _without_head(route: BaseRoute) -> BaseRoute:
    """HEAD goes without saying wherever there is GET; as operations of their own they would only repeat it."""
    if isinstance(route, APIRoute):
        route = copy.copy(route)
        route.methods = (route.methods or set()) - {"HEAD"}
    return route
