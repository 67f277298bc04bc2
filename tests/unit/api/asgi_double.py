"""Both ends of an ASGI channel, by hand, for layers that are tested without a server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

Message = MutableMapping[str, Any]


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """A body in chunks that end at these places, wherever they come to lie."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


class Channel:
    """`receive` gives the chunks of a body and then waits for `leave`; `send` collects the answer.

    Args:
        chunks: the body; what `end` False leaves open stays incomplete.
        headers: lower-case names and values.
    """

    def __init__(
        self,
        chunks: Iterable[bytes] = (),
        headers: dict[str, str] | None = None,
        *,
        end: bool = True,
        method: str = "POST",
    ) -> None:
        body = list(chunks)
        self._messages: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": not end or index + 1 < len(body)}
            for index, chunk in enumerate(body)
        ]
        self.taken = 0
        self.sent: list[Message] = []
        self._left = asyncio.Event()
        self.scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": "/",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }

    async def receive(self) -> Message:
        if self.taken < len(self._messages):
            self.taken += 1
            return self._messages[self.taken - 1]
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        """The caller hangs up."""
        self._left.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])
