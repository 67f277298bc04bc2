"""What to do with a body that nobody wants: a request refused early has often only begun to send.

Closing a connection with unread bytes resets it, and the reset can overtake the answer on its way (RFC 9112, 9.6);
reading on for ever is what a flood wants. So everybody is answered at once. Where the body is small the connection is
kept, and the protocol drops what still comes of it; where it is large or too slow, or the request is the connection's
last, the answer says `Connection: close`, and reading goes on for a bounded time and amount, so that it can be seen.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class UnreadBounds:
    """How much of an unwanted body is read. Above `keep_alive_bytes` the connection is closed after the answer."""

    keep_alive_bytes: int = 1024 * 1024
    linger_bytes: int = 64 * 1024 * 1024
    linger_s: float = 2.0


class FinishUnreadBodies:
    """Pure ASGI middleware around everything that may answer before it has read the body."""

    def __init__(self, app: ASGIApp, bounds: UnreadBounds | None = None) -> None:
        self._app = app
        self._bounds = bounds or UnreadBounds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Unread(receive)
        bounds = self._bounds
        closing = lingering = False

        async def send_with_care(message: Message) -> None:
            nonlocal closing, lingering
            if message["type"] == "http.response.start" and body.has_more:
                headers = dict(scope["headers"])
                # Whoever waits for permission sends no body now; one that was too slow is waited for no longer.
                waits = not body.was_asked_for and _waits_for_permission(scope, headers)
                small = _length(headers) <= bounds.keep_alive_bytes
                if waits or not small or message["status"] == 408 or _is_last(scope):
                    closing, lingering = True, not waits
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            elif closing and lingering and not message.get("more_body", False):
                # The answer goes out whole; its formal end, which hangs up, waits until the sender had time to read it.
                await send({**message, "more_body": True})
                await body.discard(bounds.linger_bytes, bounds.linger_s)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, body.receive, send_with_care)


class _Unread:
    """Watches the ASGI channel for the end of the body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.has_more = True
        self.was_asked_for = False  # whereupon uvicorn lets a sender that waits go on

    async def receive(self) -> Message:
        self.was_asked_for = True
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.has_more = False
        return message

    async def discard(self, max_bytes: int, max_seconds: float) -> None:
        """Read and drop, until the end or a bound."""
        dropped = 0
        try:
            async with asyncio.timeout(max_seconds):
                while self.has_more and dropped < max_bytes:
                    dropped += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


def _length(headers: Mapping[bytes, bytes]) -> float:
    """Of the body, if the headers say it; 0 without a body."""
    length = headers.get(b"content-length", b"0")
    return int(length) if b"transfer-encoding" not in headers and length.isdigit() else math.inf


def _waits_for_permission(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    return scope["http_version"] == "1.1" and headers.get(b"expect", b"").lower() == b"100-continue"


def _is_last(scope: Scope) -> bool:
    """Whether the connection ends with this request, as uvicorn sees it."""
    options = b",".join(value for name, value in scope["headers"] if name == b"connection").lower().split(b",")
    return scope["http_version"] != "1.1" or b"close" in map(bytes.strip, options)
