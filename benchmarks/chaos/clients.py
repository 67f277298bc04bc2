"""How clients behave: most ask and wait; some leave, trickle or stall. Each request ends in one `Outcome`."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from app.load.connection import LOST, Answer, Connection, connect
from app.load.target import Target

_PIECES = 10
_LEAVES_AFTER_S = 0.1  # at most


class Behaviour(StrEnum):
    """What a client does with its request."""

    ASKS = "asks and waits"
    LEAVES_UPLOADING = "leaves in the middle of its upload"
    LEAVES_WAITING = "leaves while it waits"
    TRICKLES = "sends slowly"
    STALLS = "stops in the middle of its upload"


@dataclass(frozen=True)
class Role:
    """One kind of request.

    Attributes:
        name: for the report.
        file: which file it sends, by its number in the run.
        request: head and body, as bytes.
        timeout_s: the deadline that it names, from the first byte sent.
        share: of all requests.
        seconds: that a slow sender takes for its body.
    """

    name: str
    behaviour: Behaviour
    file: int
    request: bytes
    timeout_s: float
    share: float
    seconds: float = 0.0

    @property
    def half(self) -> int:
        """Where the half of the body ends."""
        body_at = self.request.index(b"\r\n\r\n") + 4
        return body_at + (len(self.request) - body_at) // 2


@dataclass(slots=True)
class Outcome:
    """Of one request; `answer` is None when its client left. Times are `time.perf_counter()`."""

    role: int
    due_s: float
    sent_s: float
    answer: Answer | None


class Clients:
    """Plays roles; well-behaved clients share connections that are kept alive."""

    def __init__(self, target: Target, seed: int) -> None:
        self.open: set[Connection] = set()
        self._target = target
        self._idle: deque[Connection] = deque()
        self._draw = random.Random(seed)
        self._play = {
            Behaviour.ASKS: self._ask,
            Behaviour.LEAVES_UPLOADING: self._leave_uploading,
            Behaviour.LEAVES_WAITING: self._leave_waiting,
            Behaviour.TRICKLES: self._trickle,
            Behaviour.STALLS: self._stall,
        }

    async def play(self, number: int, role: Role, due_s: float) -> Outcome:
        """Send one request the way `role` does."""
        sent_s = time.perf_counter()
        try:
            answer = await self._play[role.behaviour](role)
        except OSError:  # no connection to be had
            answer = Answer(LOST, b"", b"", time.perf_counter())
        return Outcome(number, due_s, sent_s, answer)

    def close(self) -> None:
        for connection in list(self.open):
            connection.abandon(LOST)

    async def _ask(self, role: Role) -> Answer:
        connection = await self._connection()
        answer = await connection.exchange(role.request)
        if connection.is_open:
            self._idle.append(connection)
        else:
            self.open.discard(connection)
        return answer

    async def _leave_uploading(self, role: Role) -> None:
        await self._leave(role.request[: role.half])

    async def _leave_waiting(self, role: Role) -> None:
        await self._leave(role.request)

    async def _leave(self, sent: bytes) -> None:
        connection = await self._fresh()
        waiting = asyncio.ensure_future(connection.exchange(sent))
        await asyncio.sleep(self._draw.uniform(0, _LEAVES_AFTER_S))
        connection.abandon(LOST)
        await waiting
        self.open.discard(connection)

    async def _trickle(self, role: Role) -> Answer:
        """The body in pieces, spread over `role.seconds`."""
        connection = await self._fresh()
        size = -(-len(role.request) // _PIECES)
        waiting = asyncio.ensure_future(connection.exchange(role.request[:size]))
        for start in range(size, len(role.request), size):
            await asyncio.wait((waiting,), timeout=role.seconds / _PIECES)
            if waiting.done():
                break
            connection.send(role.request[start : start + size])
        return await self._last_answer(connection, waiting)

    async def _stall(self, role: Role) -> Answer:
        """Half of the body and no more."""
        connection = await self._fresh()
        return await self._last_answer(
            connection, asyncio.ensure_future(connection.exchange(role.request[: role.half]))
        )

    async def _last_answer(self, connection: Connection, waiting: asyncio.Future[Answer]) -> Answer:
        answer = await waiting
        connection.abandon(LOST)
        self.open.discard(connection)
        return answer

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self.open.discard(connection)
        return await self._fresh()

    async def _fresh(self) -> Connection:
        connection = await connect(self._target)
        self.open.add(connection)
        return connection
