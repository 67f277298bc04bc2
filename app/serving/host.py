"""The engine host's side of one HTTP worker: maps the rows that it sends, has them classified, and answers.

What a worker had in the queue when it died is cancelled, and the memory it had mapped here goes with it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import math
import os
import pickle
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial

from app.errors import EngineError, HieraError
from app.media.shared import no_room
from app.serving import wire
from app.serving.changes import Administer, Order, decode_order, encode_report
from app.serving.channel import LOST, NONE, Channel
from app.serving.mapped import KEPT_S, MappedMemory, MappedRows
from app.serving.model import LoadedModel
from app.serving.submission import Outcome
from app.serving.table import ModelTable
from app.serving.wire import NUMBER, Kind, Phase, State, SubmitHeader

logger = logging.getLogger(__name__)

Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]


class Session:
    """A worker's life as the host sees it, from its start to the end of its channel.

    Args:
        sock: the host's end of the socket pair.
        models: what the worker may ask for.
        scrape: the exposition for an Accept header.
        administer: carries out a change of the models, and shows all workers what has changed.
        on_end: called once when the worker has hung up.

    Attributes:
        serving: it takes connections.
        unhealthy: why its media workers cannot decode; None once it has said that they can.
        samples: its metrics, as it last reported them.
        heard: when it was last heard of, `time.monotonic()`.
    """

    def __init__(
        self,
        sock: socket.socket,
        models: ModelTable,
        scrape: Scrape,
        administer: Administer,
        on_end: Callable[[], None],
    ) -> None:
        self.serving = False
        self.unhealthy: str | None = "the media workers are being started"
        self.samples: bytes = b"[]"
        self.heard = time.monotonic()
        self._models = models
        self._scrape = scrape
        self._administer = administer
        self._on_end = on_end
        self._held: dict[int, LoadedModel] = {}
        self._memory = MappedMemory()
        self._cancels: dict[int, Callable[[], None]] = {}  # of what was submitted and is not settled
        self._errands: set[asyncio.Task[None]] = set()
        self._probes = itertools.count(1)
        self._reports: dict[int, asyncio.Future[None]] = {}
        self._channel = Channel(sock, self._frame, self._ended)
        self.show_models()

    def show_models(self) -> None:
        """Tell the worker of the table; what is in it stays loaded until the worker says that it has done with it."""
        if self._models.table is None:
            return
        for key, model in self._models.models.items():
            if key not in self._held:
                model.retain()
                self._held[key] = model
        self._channel.send(Kind.TABLE, pickle.dumps(self._models.table))

    def show_state(self, state: State) -> None:
        """Tell the worker how the models are, and have it report; called every second or so."""
        self._memory.forget(time.monotonic() - KEPT_S)
        self._channel.send(Kind.STATE, pickle.dumps(state))
        self._channel.send(Kind.PROBE, NUMBER.pack(next(self._probes)))

    def report(self) -> asyncio.Future[None]:
        """Have the worker report; done once `unhealthy` and `samples` are of now. Cancelled when the worker ends."""
        number = next(self._probes)
        report = self._reports[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Kind.PROBE, NUMBER.pack(number))
        return report

    def give(self, connection: socket.socket) -> None:
        """Hand over an accepted connection."""
        self._channel.send(Kind.CONNECTION, descriptor=connection.detach())

    def direct(self, phase: Phase) -> None:
        """Have the worker take the next step of a drain."""
        self._channel.send(Kind.PHASE, bytes((phase,)))

    def close(self) -> None:
        """Hang up, cancel all that the worker waits for, and release the models. Closing twice is allowed."""
        self._channel.close()
        self.serving = False
        while self._cancels:
            self._cancels.popitem()[1]()
        for waiting in (*self._errands, *self._reports.values()):
            waiting.cancel()
        while self._held:
            self._held.popitem()[1].release()

    def _ended(self) -> None:
        self.close()
        self._on_end()

    def _frame(self, kind: int, payload: bytes, descriptor: int) -> None:
        if kind == Kind.SUBMIT:
            self._submit(wire.decode_submit(payload), descriptor)
            return
        if descriptor != NONE:
            if descriptor >= 0:
                os.close(descriptor)
            raise ValueError(f"a descriptor with a frame of kind {kind}")
        if kind == Kind.CANCEL:
            cancel = self._cancels.pop(NUMBER.unpack(payload)[0], None)
            if cancel is not None:
                cancel()
        elif kind == Kind.PULSE:
            unhealthy, _, self.samples = payload[NUMBER.size :].partition(b"\n")
            self.unhealthy = json.loads(unhealthy)
            self.heard = time.monotonic()
            report = self._reports.pop(NUMBER.unpack_from(payload)[0], None)
            if report is not None and not report.done():
                report.set_result(None)
        elif kind == Kind.DROPPED:
            self._held.pop(*NUMBER.unpack(payload)).release()
        elif kind == Kind.SCRAPE:
            self._run(payload, partial(self._expose, payload[NUMBER.size :]), "a scrape failed")
        elif kind == Kind.ORDER:
            order = decode_order(payload[NUMBER.size :])  # here: who sends what is none is not listened to any further
            self._run(payload, partial(self._change, order), "a change of the models failed")
        elif kind == Kind.SERVING:
            self.serving = True
        else:
            raise ValueError(f"a frame of kind {kind}")

    def _submit(self, header: SubmitHeader, descriptor: int) -> None:
        number = header.number
        if descriptor == NONE or number in self._cancels or header.key not in self._held:
            if descriptor >= 0:
                os.close(descriptor)
            raise ValueError("a submission without its memory, of a number in use, or for a model that was not shown")
        model = self._held[header.key]
        if header.terms.with_features and not model.feature_dim:
            if descriptor >= 0:
                os.close(descriptor)
            raise ValueError("features of a model that has none")
        released = partial(self._channel.send, Kind.RELEASE, NUMBER.pack(number))
        try:
            if descriptor == LOST:  # this process was out of them
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            rows = self._memory.rows(descriptor, (header.rows, *model.row_shape), reused=header.reused)
        except OSError as error:
            logger.error("a file's rows cannot be mapped: %s", error)
            self._memory.forget(math.inf)  # what is kept holds a descriptor each, which the next file may need
            self._settle(number, no_room(error))
            released()
            return
        try:
            cancel = model.dispatcher.submit(MappedRows(rows, released), header.terms, partial(self._settle, number))
        except HieraError as error:
            self._settle(number, error)
        except Exception:
            logger.exception("a submission failed")
            self._settle(number, _failure())
        else:
            self._cancels[number] = cancel

    def _settle(self, number: int, outcome: Outcome) -> None:
        self._cancels.pop(number, None)
        if isinstance(outcome, HieraError):
            self._channel.send(Kind.FAILURE, NUMBER.pack(number) + wire.encode_error(outcome))
        else:
            self._channel.send(Kind.ANSWER, wire.encode_answer(number, outcome))

    def _run(self, asked: bytes, errand: Callable[[], Awaitable[bytes]], complaint: str) -> None:
        """Reply to the frame `asked` with what `errand` brings, or why it brings nothing."""
        task = asyncio.create_task(self._reply(asked[: NUMBER.size], errand, complaint))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _reply(self, number: bytes, errand: Callable[[], Awaitable[bytes]], complaint: str) -> None:
        try:
            reply = await errand()
        except HieraError as error:
            self._channel.send(Kind.REFUSAL, number + wire.encode_error(error))
        except Exception:
            logger.exception(complaint)
            self._channel.send(Kind.REFUSAL, number + wire.encode_error(_failure()))
        else:
            self._channel.send(Kind.REPLY, number + reply)

    async def _change(self, order: Order) -> bytes:
        return encode_report(await self._administer(order))

    async def _expose(self, accept: bytes) -> bytes:
        text, content_type = await self._scrape(accept.decode())
        return content_type.encode() + b"\n" + text


def _failure() -> EngineError:
    return EngineError("the engine host failed; its log says why")
