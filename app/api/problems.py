"""The one table from exceptions to HTTP, and its `application/problem+json` (RFC 9457).

    exception                          status   code
    MalformedRequest                      400   malformed_request
    Unauthorized                          401   unauthorized
    Forbidden                             403   forbidden, admin_off, cors_refused
    UnknownModel                          404   unknown_model
    UploadTooSlow                         408   upload_too_slow
    ChangeRefused                         409   change_refused
    LimitExceeded                         413   limit_exceeded
    UnsupportedMedia                      415   unsupported_media
    BrokenMedia, InvalidParameter         422   broken_media, invalid_parameter
    Overloaded                            429   overloaded          Retry-After
    RequestCancelled                      499   cancelled           in logs and metrics only: nobody is left to read it
    Unavailable                           503   unavailable         Retry-After
    DeadlineExceeded                      504   deadline_exceeded
    everything else                       500   internal_error
    the framework's own                 404, 405   not_found, method_not_allowed

An error raised with a `code` of its own keeps its status and shows that code.
"""

from __future__ import annotations

import math
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.api.exchange import Exchange
from app.api.inference_schemas import InferenceProblem
from app.api.schemas import Problem
from app.errors import (
    BrokenMedia,
    ChangeRefused,
    DeadlineExceeded,
    HieraError,
    InvalidParameter,
    LimitExceeded,
    MalformedRequest,
    Overloaded,
    RequestCancelled,
    RequestError,
    Unavailable,
    UnknownModel,
    UnsupportedMedia,
)

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; no standard has one
INTERNAL_DETAIL = "the server failed on this request; try again, and if it persists, tell its operator the request_id."
_UNAVAILABLE_RETRY_S = 5


class Unauthorized(RequestError):
    """API keys are set, and none that fits was sent."""

    code = "unauthorized"


class Forbidden(RequestError):
    """The caller is known and may not do this, or nobody may."""

    code = "forbidden"


class UploadTooSlow(DeadlineExceeded):
    """The body stopped coming, or came more slowly than the server waits for."""

    code = "upload_too_slow"


# The first match in this order counts, so subclasses stand before their bases.
_STATUS: tuple[tuple[type[HieraError], int], ...] = (
    (MalformedRequest, 400),
    (Unauthorized, 401),
    (Forbidden, 403),
    (UnknownModel, 404),
    (UploadTooSlow, 408),
    (ChangeRefused, 409),
    (LimitExceeded, 413),
    (UnsupportedMedia, 415),
    (BrokenMedia, 422),
    (InvalidParameter, 422),
    (RequestError, 400),
    (Overloaded, 429),
    (RequestCancelled, CLIENT_CLOSED_REQUEST),
    (Unavailable, 503),
    (DeadlineExceeded, 504),
)
_TITLES = {CLIENT_CLOSED_REQUEST: "Client Closed Request", 413: "Content Too Large", 422: "Unprocessable Content"}
_FRAMEWORK_CODES = {404: "not_found", 405: "method_not_allowed"}
_FRAMEWORK_DETAILS = {
    404: "there is nothing at this address; /docs lists what there is.",
    405: "this address does not take that method; the Allow header names those that it takes.",
}


def status_of(error: Exception) -> int:
    """The HTTP status that an exception is answered with."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def problem_of(error: Exception, request_id: str) -> Problem:
    """The body for an exception. Of errors that are ours to mend it says nothing of the inside."""
    status = status_of(error)
    if isinstance(error, HTTPException):
        code = _FRAMEWORK_CODES.get(status, "http_error")
        detail = _FRAMEWORK_DETAILS.get(status, _title(status) + ".")
    elif isinstance(error, HieraError) and status != 500:
        code, detail = error.code, _sentence(str(error))
    else:
        code, detail = HieraError.code, INTERNAL_DETAIL
    return problem(status, code, detail, request_id)


def problem(status: int, code: str, detail: str, request_id: str) -> Problem:
    """The body in its parts: what follows from the status and the code is filled in."""
    return Problem(
        type=f"/docs#{code}", title=_title(status), status=status, detail=detail, code=code, request_id=request_id
    )


def problem_headers(error: Exception) -> dict[str, str]:
    """The headers that go with an exception's answer: Retry-After, WWW-Authenticate, Allow."""
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    if isinstance(error, Overloaded):
        return {"retry-after": str(retry_after_s(error))}
    if isinstance(error, Unavailable):
        return {"retry-after": str(_UNAVAILABLE_RETRY_S)}
    if isinstance(error, Unauthorized):
        return {"www-authenticate": 'Bearer realm="hiera-serve"'}
    return {}


def retry_after_s(error: Overloaded) -> int:
    """Whole seconds, at least one, as the Retry-After header wants them (RFC 9110, 10.2.3)."""
    return max(1, math.ceil(error.retry_after_s)) if math.isfinite(error.retry_after_s) else 60


def problem_response(error: Exception, exchange: Exchange) -> Response:
    """The whole answer to a request that ended in `error`; the exchange is told its code."""
    body = problem_of(error, exchange.request_id)
    exchange.code = body.code
    if exchange.open_inference:
        body = InferenceProblem(**body.model_dump(), error=body.detail)
    return Response(
        body.model_dump_json(), status_code=body.status, headers=problem_headers(error), media_type=MEDIA_TYPE
    )


def _title(status: int) -> str:
    return _TITLES.get(status) or HTTPStatus(status).phrase


def _sentence(message: str) -> str:
    """With a full stop. The first letter stays: it may be that of a model's name."""
    return message if message.endswith((".", "?", "!")) else message + "."
