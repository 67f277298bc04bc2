"""The first stage of a request: its body comes in."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from app.api.body import Body
from app.api.exchange import Exchange
from app.errors import DeadlineExceeded, RequestCancelled
from app.serving.observer import ServingObserver
from app.serving.ticket import Ticket

_SLOW_UPLOAD_S = 0.5  # most bodies come with their head; what takes longer must not look like work to come


class UploadStage:
    """A context in which the body of an admitted request is read: times it, and sets the ticket aside if it is slow.

    Raises:
        Overloaded: at the end, if the ticket was set aside and its deadline cannot be made any more.
    """

    __slots__ = ("_body", "_exchange", "_observer", "_slow", "_ticket")

    def __init__(self, ticket: Ticket, body: Body, exchange: Exchange, observer: ServingObserver) -> None:
        self._ticket = ticket
        self._body = body
        self._exchange = exchange
        self._observer = observer

    def __enter__(self) -> None:
        self._slow = asyncio.get_running_loop().call_later(_SLOW_UPLOAD_S, self._ticket.set_aside)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._slow.cancel()
        exchange = self._exchange
        exchange.body_bytes = self._body.received
        exchange.stages["upload"] = seconds = time.monotonic() - exchange.started
        if error is None:
            self._ticket.resume()
            self._observer.stage_duration(exchange.model, "upload", seconds)
        elif isinstance(error, RequestCancelled | DeadlineExceeded | asyncio.CancelledError):
            self._observer.cancelled(exchange.model, "upload")
