"""Answers to what never became a request: problem+json without the application around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.api.problems import MEDIA_TYPE, problem


@dataclass(frozen=True)
class Refusal:
    """What a connection is told before it is closed."""

    status: int
    code: str
    detail: str

    def answer(self, request_id: str, headers: Iterable[tuple[bytes, bytes]], cors_origins: Sequence[str]) -> bytes:
        """The whole answer in HTTP/1.1.

        Args:
            headers: as far as the request's were read, names in lower case.
            cors_origins: whose pages may read it; "*" is all.
        """
        body = problem(self.status, self.code, self.detail, request_id).model_dump_json()
        lines = [
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "x-content-type-options: nosniff",
            "connection: close",
            *(["retry-after: 1"] if self.status == 503 else []),
            *_readers(headers, cors_origins),
        ]
        return STATUS_LINE[self.status] + "\r\n".join([*lines, "", body]).encode()


NOT_HTTP = Refusal(400, "malformed_request", "this is not a valid HTTP/1.1 request.")
TOO_LATE = Refusal(408, "upload_too_slow", "the request's headers came too slowly.")
TOO_LONG = Refusal(431, "headers_too_large", "the request's headers are too large.")
TOO_MANY = Refusal(503, "too_many_connections", "all connections are taken; try again later.")


def _readers(headers: Iterable[tuple[bytes, bytes]], known: Sequence[str]) -> list[str]:
    """The headers by which a page of another origin may read a refusal (the Fetch standard's CORS protocol)."""
    sent = (value.decode("latin-1") for name, value in headers if name == b"origin")
    origin = "*" if "*" in known else next((each for each in sent if each in known), None)
    if origin is None:
        return []
    exposed = "access-control-expose-headers: retry-after, x-request-id"
    return [f"access-control-allow-origin: {origin}", exposed]
