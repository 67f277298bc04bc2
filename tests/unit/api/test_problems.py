"""The one table from exceptions to HTTP."""

from __future__ import annotations

import json

import pytest
from starlette.exceptions import HTTPException

from app import errors
from app.api.exchange import Exchange
from app.api.problems import (
    INTERNAL_DETAIL,
    Forbidden,
    Unauthorized,
    UploadTooSlow,
    problem_of,
    problem_response,
    retry_after_s,
    status_of,
)

TABLE = [
    (errors.MalformedRequest("m"), 400, "malformed_request"),
    (Unauthorized("m"), 401, "unauthorized"),
    (Forbidden("m"), 403, "forbidden"),
    (Forbidden("m", code="admin_off"), 403, "admin_off"),
    (Forbidden("m", code="cors_refused"), 403, "cors_refused"),
    (errors.UnknownModel("m"), 404, "unknown_model"),
    (UploadTooSlow("m"), 408, "upload_too_slow"),
    (errors.ChangeRefused("m"), 409, "change_refused"),
    (errors.LimitExceeded("m"), 413, "limit_exceeded"),
    (errors.UnsupportedMedia("m"), 415, "unsupported_media"),
    (errors.BrokenMedia("m"), 422, "broken_media"),
    (errors.InvalidParameter("m"), 422, "invalid_parameter"),
    (errors.Overloaded("m", retry_after_s=3), 429, "overloaded"),
    (errors.RequestCancelled("m"), 499, "cancelled"),
    (errors.Unavailable("m"), 503, "unavailable"),
    (errors.Unavailable("m", code="draining"), 503, "draining"),
    (errors.DeadlineExceeded("m"), 504, "deadline_exceeded"),
    (errors.EngineError("m"), 500, "internal_error"),
    (errors.EngineOutOfMemory("m"), 500, "internal_error"),
    (errors.EngineLost("m"), 500, "internal_error"),
    (errors.PackageError("m"), 500, "internal_error"),
    (errors.EngineUnavailable("m"), 500, "internal_error"),
    (ValueError("m"), 500, "internal_error"),
    (HTTPException(404), 404, "not_found"),
    (HTTPException(405), 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("error", "status", "code"), TABLE, ids=[type(row[0]).__name__ for row in TABLE])
def test_each_exception_has_its_status_and_code(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error, "id-1")
    assert (status_of(error), problem.status, problem.code, problem.request_id) == (status, status, code, "id-1")
    assert problem.title


def test_every_domain_error_is_in_the_table() -> None:
    def tree(kind: type[errors.HieraError]) -> set[type[errors.HieraError]]:
        return {kind}.union(*(tree(each) for each in kind.__subclasses__()))

    tested = {type(error) for error, _, _ in TABLE}
    ours = {kind for kind in tree(errors.HieraError) if kind.__module__ in ("app.errors", "app.api.problems")}
    assert ours - tested <= {errors.HieraError, errors.RequestError}


def test_a_failure_of_ours_says_nothing_of_the_inside() -> None:
    for error in (errors.EngineError("CUDA at 0x7f in /opt/secret.py"), KeyError("password")):
        assert problem_of(error, "id").detail == INTERNAL_DETAIL


def test_a_domain_message_is_the_detail() -> None:
    assert problem_of(errors.BrokenMedia("the file is cut off"), "id").detail == "the file is cut off."
    assert problem_of(errors.InvalidParameter("did you mean x?"), "id").detail == "did you mean x?"


@pytest.mark.parametrize(
    ("wait_s", "seconds"), [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60), (float("inf"), 60)]
)
def test_the_time_to_wait_is_rounded_up_to_whole_seconds(wait_s: float, seconds: int) -> None:
    error = errors.Overloaded("full", retry_after_s=wait_s)
    assert retry_after_s(error) == seconds
    assert problem_response(error, Exchange("id", None)).headers["retry-after"] == str(seconds)


def test_the_answer_is_problem_json() -> None:
    response = problem_response(HTTPException(405, headers={"Allow": "GET"}), Exchange("id-9", None))
    assert response.media_type == "application/problem+json"
    assert response.headers["allow"] == "GET"
    assert list(json.loads(bytes(response.body))) == ["type", "title", "status", "detail", "code", "request_id"]
