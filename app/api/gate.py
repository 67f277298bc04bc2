"""Refuses at the HTTP protocol itself what admission would refuse, while the server has more to do than it can.

In a flood most requests are refused, and what that costs is taken from those who are answered. Once a request was
refused for lack of room or time, the protocol asks admission itself for a while, before there is a task, a walk through
the layers or a line of log for each. It asks each time and remembers nothing: who would be let in is let in.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Protocol

from app.api.exchange import sound_request_id
from app.api.keys import KeyRing
from app.api.problems import MEDIA_TYPE, problem_headers, problem_of
from app.api.query import QueryParser
from app.errors import InvalidParameter, Overloaded
from app.serving.demand import Arrival
from app.serving.results import ClassifyOptions, Task
from app.telemetry.logs import ACCESS_LOGGER

_ON_GUARD_S = 1.0
_REPORT_EVERY_S = 1.0
_MOST_BODY_BYTES = 1024 * 1024  # a larger one is not worth reading to its end
_ID = "0" * 32
# Whoever sends one of these is answered with more than a refusal.
_SPECIAL = frozenset({b"expect", b"transfer-encoding", b"origin", b"traceparent", b"upgrade", b"content-encoding"})

_access = logging.getLogger(ACCESS_LOGGER)

Headers = Iterable[tuple[bytes, bytes]]


class Judge(Protocol):
    """Who knows whether there is room and time: the service."""

    def refusal(self, arrival: Arrival) -> Overloaded | None:
        """What a request would be refused with now; None for one that has to be looked at in full."""
        ...


class Gate:
    """Stands before the classification routes; it is open until `guard` is called. Used on one event loop.

    Args:
        judge: asked about each request.
        parsers: of the query strings of each task's route.
        paths: the task of each route.
        keys: the API keys. Who sends none that fits is let through, to be told so.
        on_refused: told the task, the seconds and the key's name of each refusal.
        clock: monotonic seconds, those of the deadlines.
    """

    def __init__(
        self,
        judge: Judge,
        parsers: Mapping[Task, QueryParser],
        paths: Mapping[str, Task],
        keys: KeyRing,
        on_refused: Callable[[str, float, str | None], object] = lambda task, seconds, key: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._judge = judge
        self._tasks = {path.encode(): task for path, task in paths.items()}
        self._keys = keys
        self._on_refused = on_refused
        self._clock = clock
        self._on_guard_until = 0.0
        self._refused: dict[bytes, int] = {}  # by path, since the last line of log
        # By caller, in this turn of the event loop; admission hears of them in the next one.
        self._let_in: dict[str, int] = {}

        @functools.lru_cache(maxsize=256)
        def options_of(task: Task, query: bytes) -> ClassifyOptions | None:
            try:
                return parsers[task].parse(query)
            except InvalidParameter:
                return None

        self._options_of = options_of

    def guard(self) -> None:
        """A request has just been refused for lack of room or time: look at those that follow, for a second."""
        self._on_guard_until = self._clock() + _ON_GUARD_S

    def answer(self, url: bytes, headers: Headers, extra: Headers = ()) -> bytes | None:
        """The whole answer to a POST request that is refused; None for one that is let through. `extra` headers, the
        date, go out with it."""
        started = self._clock()
        if started > self._on_guard_until:
            return None
        path, _, query = url.partition(b"?")
        task = self._tasks.get(path)
        if task is None:
            return None
        body_bytes = _plain_body_bytes(headers)
        options = None if body_bytes is None else self._options_of(task, query)
        if body_bytes is None or options is None:
            return None
        caller = self._keys.name_of(headers) if self._keys.required else ""
        if caller is None:
            return None
        files = 1 + self._let_in.get(caller, 0)
        error = self._judge.refusal(Arrival(task, options, started, files, body_bytes, caller))
        if error is None:
            self._count_in(caller)
            return None
        self.guard()
        answer = _answer(error, sound_request_id(headers), extra, lambda: self._clock() - started)
        self._on_refused(task, self._clock() - started, caller or None)
        self._count(path)
        return answer

    def _count_in(self, caller: str) -> None:
        if not self._let_in:
            asyncio.get_running_loop().call_soon(self._let_in.clear)
        self._let_in[caller] = self._let_in.get(caller, 0) + 1

    def _count(self, path: bytes) -> None:
        """One line of the access log for all within a second: a line each would cost more than the refusals."""
        if not self._refused:
            asyncio.get_running_loop().call_later(_REPORT_EVERY_S, self._report)
        self._refused[path] = self._refused.get(path, 0) + 1

    def _report(self) -> None:
        for path, times in self._refused.items():
            fields = {"method": "POST", "path": path.decode(), "status": 429, "code": Overloaded.code, "times": times}
            _access.info("refused at the gate", extra={"fields": fields})
        self._refused.clear()


def _plain_body_bytes(headers: Headers) -> int | None:
    """The announced length of a body that can be read away; None where more is to be said or done."""
    length = b""
    for name, value in headers:
        if name == b"content-length":
            length = value
        elif name in _SPECIAL:
            return None
    if not length.isdigit() or int(length) > _MOST_BODY_BYTES:
        return None
    return int(length)


def _answer(error: Overloaded, request_id: str, extra: Headers, elapsed_s: Callable[[], float]) -> bytes:
    status_line, head, before, after = _template(str(error), error.code, problem_headers(error)["retry-after"])
    own_id = request_id.encode()
    size = len(before) + len(own_id) + len(after)
    more = b"".join(b"%s: %s\r\n" % header for header in extra)
    timing = b"server-timing: total;dur=%.3f" % (1000 * elapsed_s())
    head = b"%scontent-length: %d\r\n%s%sx-request-id: %s\r\n%s" % (status_line, size, more, head, own_id, timing)
    return b"".join((head, b"\r\n\r\n", before, own_id, after))


@functools.lru_cache(maxsize=256)
def _template(message: str, code: str, retry_after: str) -> tuple[bytes, bytes, bytes, bytes]:
    """What refusals in the same words share: status line, headers, and the body before and after the request id."""
    problem = problem_of(Overloaded(message, retry_after_s=0.0, code=code), _ID)
    before, _, after = problem.model_dump_json().encode().partition(_ID.encode())
    headers = {"content-type": MEDIA_TYPE, "x-content-type-options": "nosniff", "retry-after": retry_after}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    status_line = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
    return status_line.encode(), head.encode(), before, after
