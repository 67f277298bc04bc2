"""HTTP/1.1 on a connection: uvicorn's protocol with bounds on connections and headers, and without what a stranger
could turn against the requests of others (upgrades that hide a body, answers out of order, bodies that never end).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import dataclass
from typing import ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app import refusals
from app.api.gate import Gate
from app.api.unread import UnreadBounds
from app.refusals import Refusal
from app.telemetry.logs import ACCESS_LOGGER

_access = logging.getLogger(ACCESS_LOGGER)
_LINGER = UnreadBounds()


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take before a request is understood, and the origins whose pages may read a refusal.

    Beyond `max_connections` only health is answered, and 503 to the rest; connections beyond `max_open` are closed.
    Half of what is between is for connections that were refused and have yet to take that in.
    """

    max_connections: int
    header_timeout_s: float
    max_header_bytes: int
    keep_alive_s: float
    max_open: int = sys.maxsize
    cors_origins: tuple[str, ...] = ()


def limited_protocol(limits: ConnectionLimits, gate: Gate) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 protocol within `limits`, and with problem+json where uvicorn itself refuses a request. What
    `gate` refuses is answered here; its body is read and dropped."""

    class Protocol(_LimitedProtocol):
        _limits = limits
        _gate = gate
        _lingering: ClassVar[set[asyncio.Protocol]] = set()

    return Protocol


class _LimitedProtocol(HttpToolsProtocol):
    # What the connections of one server share.
    _limits: ClassVar[ConnectionLimits]
    _gate: ClassVar[Gate]
    _lingering: ClassVar[set[asyncio.Protocol]]  # refused, and still to take that in

    _surplus = False  # it came when all were taken, and none has become free; the others are served on
    _reading_head = True
    _head_bytes = 0  # and of what else is no body: the sizes of chunks, trailers
    _spoke = False
    _timer: asyncio.TimerHandle | None = None  # until a head must be there; once refused, until the end
    _refusal = refusals.NOT_HTTP
    _dropping = False  # the body of a request that is answered already
    _refused = False  # nothing more is read, and it ends behind the answers that are due
    _dropped_bytes = 0  # since then

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._surplus = self._are_all_taken()
        if len(self.connections) > self._limits.max_open:
            transport.close()
            return
        self._timer = self.loop.call_later(self._limits.header_timeout_s, self._refuse, refusals.TOO_LATE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._lingering.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._drop(data)
            return
        self._spoke = True
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal)
            return
        except httptools.HttpParserUpgrade as upgrade:
            if self._offers_upgrade():
                self._begin_again_without_upgrade(data[upgrade.args[0] :])
        if self._dropping or self._is_answered():
            self._await_more()
        if self._head_bytes > self._limits.max_header_bytes:
            self._refuse(refusals.TOO_LONG)
        elif not self._reading_head:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._limits.header_timeout_s, self._refuse, refusals.TOO_LATE)

    def on_message_begin(self) -> None:
        self._reading_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading_head:  # a trailer is no header (RFC 9110, 6.5.1): it comes past what proxies check and set
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._offers_upgrade():
            return
        if self.parser.get_http_version() != "1.1":
            self.expect_100_continue = False  # RFC 9110, 10.1.1
        self._surplus = self._surplus and self._are_all_taken()
        # Not by the bytes that were read: reads bring more than a head, and begin within the request before.
        if self._head_size() > self._limits.max_header_bytes:
            self._refusal = refusals.TOO_LONG
        elif self._surplus and not self.url.startswith(b"/health/"):
            self._refusal = refusals.TOO_MANY
        if self._refusal is not refusals.NOT_HTTP or not self._names_one_host():
            raise ConnectionRefusedError(self._refusal.code)  # out of the parser, into `data_received`
        self._reading_head = False
        self._head_bytes = 0
        if self._can_refuse():
            answer = self._gate.answer(self.url, self.headers, self.server_state.default_headers)
            if answer is not None:
                self.transport.write(answer)
                self._dropping = True
                return
        self._unset_keepalive_if_required()  # it may have come with the end of a body that was dropped
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        if not self._dropping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._offers_upgrade():
            return
        if self._dropping:
            self._dropping = False
            self._await_more()
        else:
            super().on_message_complete()

    def _begin_again_without_upgrade(self, rest: bytes) -> None:
        """An upgrade is ignored (RFC 9110, 7.8). The parser has taken the body for another protocol, and reads no
        more behind the last request of a connection, so another one gets the head without what made it think so."""
        head = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        try:
            self.parser.feed_data(b"%b%b\r\n%b" % (line, head, rest))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(self._refusal)

    def _offers_upgrade(self) -> bool:
        """For the parser CONNECT is an upgrade too; that has no body, and is answered as what is not allowed."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _names_one_host(self) -> bool:
        hosts = sum(name == b"host" for name, _ in self.headers)
        return hosts == 1 or (hosts == 0 and self.parser.get_http_version() == "1.0")  # RFC 9112, 3.2

    def _owes_an_answer(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_answered(self) -> bool:
        """The request that is being read has its answer, and what comes is the rest of its body."""
        return not self._reading_head and self.cycle is not None and not self._owes_an_answer()

    def _can_refuse(self) -> bool:
        """Nothing else is going on here, and the connection lives on after the answer."""
        return (
            not self._owes_an_answer()
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        )

    def _await_more(self) -> None:
        self._unset_keepalive_if_required()
        if not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _are_all_taken(self) -> bool:
        return len(self.connections) - len(self._lingering) > self._limits.max_connections

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, refusal: Refusal) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        self._refused = True
        if self._close_behind_answers():
            return
        if not self._spoke:
            self.transport.close()
            return
        request_id = os.urandom(16).hex()
        self.transport.write(refusal.answer(request_id, self.headers or (), self._limits.cors_origins))
        client = self.client[0] if self.client else None
        fields = {"status": refusal.status, "code": refusal.code, "client": client, "request_id": request_id}
        _access.info("refused before it was a request", extra={"fields": fields})
        if self._owes_an_answer():  # the body of that request broke off, and whoever reads it must hear so now
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Hang up, on this side alone at first: bytes that were never read would reset the connection, and the
        reset can overtake the answer (RFC 9112, 9.6)."""
        if self.transport.is_closing():
            return
        if len(self._lingering) >= (self._limits.max_open - self._limits.max_connections) // 2:
            self.transport.close()
            return
        self._lingering.add(self)
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER.linger_s, self.transport.close)

    def _drop(self, data: bytes) -> None:
        self._dropped_bytes += len(data)
        if self in self._lingering and self._dropped_bytes > _LINGER.linger_bytes:
            self.transport.close()

    def _close_behind_answers(self) -> bool:
        """A refusal must not overtake the answers to the requests before it (RFC 9112, 9.3.2): the connection is
        closed behind those. False where there are none."""
        if not self._owes_an_answer():
            return False
        if self.cycle.more_body:  # it is the one whose body broke off
            if not self.pipeline:
                return False
            self.pipeline.popleft()
        return True

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if self._refused and is_last:
            self._linger()
