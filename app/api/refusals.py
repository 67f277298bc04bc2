"""Refusals under overload that are given again without asking: to the same request, for a few milliseconds.

In a flood most requests are refused, and what that costs is taken from those who are answered. A refusal stands while
the queue is nearly as long as it was (`Overloaded.stands_s`), so the HTTP protocol gives it again on its own, without
a task, a walk through the layers or a line of log for each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus

from app.api.exchange import sound_request_id
from app.api.middleware import ACCESS_LOGGER
from app.api.problems import MEDIA_TYPE, problem_headers, problem_of
from app.errors import Overloaded

_MOST_STANDS_S = 0.02
_MOST_KEPT = 256
_MOST_BODY_BYTES = 1024 * 1024  # a larger one is not worth reading to its end
_ID = "0" * 32
# Whoever sends one of these is answered with more than a refusal.
_SPECIAL = frozenset({b"expect", b"transfer-encoding", b"origin", b"traceparent", b"upgrade", b"content-encoding"})
# What decides about a refusal, besides the address.
_DECISIVE = frozenset({b"authorization", b"x-api-key", b"content-type"})

_access = logging.getLogger(ACCESS_LOGGER)

Headers = Iterable[tuple[bytes, bytes]]
Key = tuple[bytes, ...]


@dataclass(slots=True)
class _Refusal:
    """`before`, the length of the body, `head`, the request id, a blank line, and `body` around the same id."""

    until: float
    before: bytes
    head: bytes
    body: tuple[bytes, bytes]
    task: str
    path: str
    given: int = 0


def request_key(url: bytes, headers: Headers) -> Key | None:
    """What two requests have in common that are refused alike; None for one that needs more than that."""
    decisive: list[bytes] = [url]
    length = b""
    for name, value in headers:
        if name in _DECISIVE:
            decisive += (name, value)
        elif name == b"content-length":
            length = value
        elif name in _SPECIAL:
            return None
    if not length.isdigit() or int(length) > _MOST_BODY_BYTES:
        return None
    return tuple(decisive)


class RecentRefusals:
    """What was refused lately. Used on one event loop.

    Args:
        on_refused: told the task and the seconds of each refusal that is given again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        on_refused: Callable[[str, float], object] = lambda task, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_refused = on_refused
        self._clock = clock
        self._kept: dict[Key, _Refusal] = {}

    def remember(self, url: bytes, headers: Headers, error: Overloaded, task: str) -> None:
        """`error` has just been the answer to this request, a POST."""
        key = request_key(url, headers) if error.stands_s > 0 else None
        if key is None:
            return
        if len(self._kept) >= _MOST_KEPT:
            self.forget()
        problem = problem_of(error, _ID)
        before, _, after = problem.model_dump_json().encode().partition(_ID.encode())
        lines = [
            "",
            f"content-type: {MEDIA_TYPE}",
            "x-content-type-options: nosniff",
            *(f"{name}: {value}" for name, value in problem_headers(error).items()),
            "x-request-id: ",
        ]
        self._report(self._kept.get(key))
        self._kept[key] = _Refusal(
            until=self._clock() + min(error.stands_s, _MOST_STANDS_S),
            before=f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\ncontent-length: ".encode(),
            head="\r\n".join(lines).encode(),
            body=(before, after),
            task=task,
            path=url.partition(b"?")[0].decode("latin-1"),
        )

    def answer(self, url: bytes, headers: Headers, extra: Headers = ()) -> bytes | None:
        """The whole answer to a POST request like one that was refused just now; None for one that has to ask. `extra`
        headers, the date, go out with it."""
        if not self._kept:
            return None
        key = request_key(url, headers)
        refusal = None if key is None else self._kept.get(key)
        if key is None or refusal is None:
            return None
        began = self._clock()
        if refusal.until < began:
            self._report(self._kept.pop(key))
            return None
        refusal.given += 1
        request_id = sound_request_id(headers).encode()
        before, after = refusal.body
        size = len(before) + len(request_id) + len(after)
        seconds = self._clock() - began
        self._on_refused(refusal.task, seconds)
        timing = b"\r\nserver-timing: total;dur=%.3f\r\n\r\n" % (1000 * seconds)
        more = b"".join(b"\r\n%s: %s" % header for header in extra)
        parts = (refusal.before, b"%d" % size, more, refusal.head, request_id, timing, before, request_id, after)
        return b"".join(parts)

    def forget(self) -> None:
        """Drop all, after reporting them."""
        for refusal in self._kept.values():
            self._report(refusal)
        self._kept.clear()

    def _report(self, refusal: _Refusal | None) -> None:
        """One line of the access log for all that were given: a line each would cost as much as the refusals."""
        if refusal is not None and refusal.given:
            fields = {"method": "POST", "path": refusal.path, "status": 429, "code": Overloaded.code}
            _access.info("refused alike", extra={"fields": {**fields, "times": refusal.given}})
