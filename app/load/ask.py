"""Asks a server one thing over HTTP."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Mapping

from app.errors import Unavailable


def ask(
    url: str,
    host: str,
    port: int | None,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    encrypted: bool = False,
    timeout_s: float = 10.0,
) -> tuple[int, bytes]:
    """The status and the body of a GET of `path` at `host`, which the caller knows as `url`. Raises Unavailable."""
    connect = http.client.HTTPSConnection if encrypted else http.client.HTTPConnection
    try:
        with contextlib.closing(connect(host, port, timeout=timeout_s)) as connection:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read()
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last: a name that no resolver takes
        raise Unavailable(f"{url} does not answer: {error}") from error
