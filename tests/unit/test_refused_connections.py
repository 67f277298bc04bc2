"""What a connection is told before it is closed, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from app import refusals
from app.refusals import Refusal

PAGE = "https://app.example"
READABLE = {"access-control-expose-headers": "retry-after, x-request-id"}


def told(
    refusal: Refusal, headers: Sequence[tuple[bytes, bytes]] = (), origins: Sequence[str] = ()
) -> tuple[str, dict[str, str], bytes]:
    """The status line, the headers and the body."""
    head, _, body = refusal.answer("r-1", headers, origins).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (refusals.NOT_HTTP, "HTTP/1.1 400 Bad Request", "malformed_request"),
        (refusals.TOO_LATE, "HTTP/1.1 408 Request Timeout", "upload_too_slow"),
        (refusals.TOO_LONG, "HTTP/1.1 431 Request Header Fields Too Large", "headers_too_large"),
        (refusals.TOO_MANY, "HTTP/1.1 503 Service Unavailable", "too_many_connections"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_refusal_is_a_whole_answer_with_a_problem(refusal: Refusal, status: str, code: str) -> None:
    status_line, headers, body = told(refusal)
    assert status_line == status
    expected = {
        "content-type": "application/problem+json",
        "content-length": str(len(body)),
        "x-request-id": "r-1",
        "x-content-type-options": "nosniff",
        "connection": "close",
    }
    assert headers == expected | ({"retry-after": "1"} if refusal is refusals.TOO_MANY else {})
    problem = json.loads(body)
    assert (problem["status"], problem["code"], problem["request_id"]) == (int(status.split()[1]), code, "r-1")


@pytest.mark.parametrize(
    ("sent", "origins", "allowed"),
    [
        (PAGE, (PAGE, "https://other.example"), PAGE),
        ("https://evil.example", (PAGE,), None),
        ("https://evil.example", ("*",), "*"),
        (None, ("*",), "*"),
        (None, (PAGE,), None),
        (PAGE, (), None),
        ("https://\xe9.example", (PAGE,), None),
    ],
)
def test_pages_of_the_named_origins_may_read_it(
    sent: str | None, origins: tuple[str, ...], allowed: str | None
) -> None:
    headers = [(b"referer", PAGE.encode()), *([] if sent is None else [(b"origin", sent.encode("latin-1"))])]
    _, answered, _ = told(refusals.TOO_MANY, headers, origins)
    cors = {name: value for name, value in answered.items() if name.startswith("access-control")}
    assert cors == ({} if allowed is None else {"access-control-allow-origin": allowed} | READABLE)
