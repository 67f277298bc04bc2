"""The engine host's side of one HTTP worker: maps the rows that it sends, has them classified, and answers.

What a worker had in the queue when it died is cancelled, and the memory it had mapped here goes with it.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import logging
import mmap
import os
import pickle
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine

import numpy as np

from app.engines.base import Rows
from app.errors import EngineError, HieraError, Overloaded
from app.serving import wire
from app.serving.changes import Order, Report, decode_order, encode_report
from app.serving.channel import Channel
from app.serving.model import LoadedModel
from app.serving.table import ModelTable
from app.serving.wire import NUMBER, Kind, Phase, State, SubmitHeader

logger = logging.getLogger(__name__)

Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]
Administer = Callable[[Order], Awaitable[Report]]


class MappedRows:
    """Rows in a worker's memory, mapped read-only; a `RowsLease`. `on_close` is called once.

    Args:
        descriptor: of the memory; closed here.
        rows: how many.
        shape: of one row.

    Raises:
        ValueError: the memory is too small, or could become so (reading it would then be a SIGBUS).
        OSError: it cannot be mapped.
    """

    fd = -1

    def __init__(self, descriptor: int, rows: int, shape: tuple[int, ...], on_close: Callable[[], None]) -> None:
        size = rows * int(np.prod(shape))
        try:
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if not sealed or not 0 < size <= os.fstat(descriptor).st_size:
                raise ValueError(f"{size} bytes of rows in memory that does not hold them safely")
            # Populated in one go: a fault for each page would cost more than the copy into the batch.
            mapped = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self._rows: Rows | None = np.frombuffer(mapped, np.uint8).reshape((rows, *shape))
        self._on_close = on_close

    @property
    def rows(self) -> Rows:
        """uint8 [n, *shape]."""
        if self._rows is None:
            raise ValueError("the rows were released")
        return self._rows

    def close(self) -> None:
        if self._rows is not None:
            self._rows = None
            self._on_close()


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
        unhealthy: why its media workers cannot decode; None if they can.
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
        self.unhealthy: str | None = None
        self.samples: bytes = b"[]"
        self.heard = time.monotonic()
        self._models = models
        self._scrape = scrape
        self._administer = administer
        self._on_end = on_end
        self._held: dict[int, LoadedModel] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unclaimed: dict[int, MappedRows] = {}  # of tasks that have not begun; cancelled now, they never will
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
        """Tell the worker how the models are, and have it report."""
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
        for waiting in (*self._tasks.values(), *self._errands, *self._reports.values()):
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
        if descriptor >= 0:
            os.close(descriptor)
            raise ValueError(f"a descriptor with a frame of kind {kind}")
        if kind == Kind.CANCEL:
            task = self._tasks.get(*NUMBER.unpack(payload))
            if task is not None:
                task.cancel()
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
            self._run(self._expose(payload))
        elif kind == Kind.ORDER:
            self._run(self._change(payload[: NUMBER.size], decode_order(payload[NUMBER.size :])))
        elif kind == Kind.SERVING:
            self.serving = True
        else:
            raise ValueError(f"a frame of kind {kind}")

    def _submit(self, header: SubmitHeader, descriptor: int) -> None:
        number = header.number

        def released() -> None:
            self._channel.send(Kind.RELEASE, NUMBER.pack(number))

        if descriptor < 0 or number in self._tasks or header.key not in self._held:
            if descriptor >= 0:
                os.close(descriptor)
            raise ValueError("a submission without its memory, of a number in use, or for a model that was not shown")
        model = self._held[header.key]
        try:
            lease = MappedRows(descriptor, header.rows, model.manifest.row_shape, released)
        except OSError as error:
            logger.error("a file's rows cannot be mapped: %s", error)
            refusal = Overloaded("the server has no room for another file now; try again", retry_after_s=1.0)
            self._channel.send(Kind.FAILURE, NUMBER.pack(number) + wire.encode_error(refusal))
            released()
            return
        self._unclaimed[number] = lease
        task = asyncio.create_task(self._infer(number, model, header.deadline))
        self._tasks[number] = task

        def done(task: asyncio.Task[None]) -> None:
            del self._tasks[number]
            unclaimed = self._unclaimed.pop(number, None)
            if unclaimed is not None:
                unclaimed.close()

        task.add_done_callback(done)

    async def _infer(self, number: int, model: LoadedModel, deadline: float) -> None:
        lease = self._unclaimed.pop(number)
        try:
            inference = await model.dispatcher.infer(lease, deadline)
        except HieraError as error:
            self._channel.send(Kind.FAILURE, NUMBER.pack(number) + wire.encode_error(error))
        except Exception:
            logger.exception("a submission failed")
            failure = EngineError("the engine host failed; its log says why")
            self._channel.send(Kind.FAILURE, NUMBER.pack(number) + wire.encode_error(failure))
        else:
            self._channel.send(Kind.ANSWER, wire.encode_answer(number, inference))

    def _run(self, errand: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _change(self, number: bytes, order: Order) -> None:
        try:
            report = await self._administer(order)
        except HieraError as error:
            self._channel.send(Kind.REFUSAL, number + wire.encode_error(error))
        except Exception:
            logger.exception("a change of the models failed")
            failure = EngineError("the engine host failed; its log says why")
            self._channel.send(Kind.REFUSAL, number + wire.encode_error(failure))
        else:
            self._channel.send(Kind.REPORT, number + encode_report(report))

    async def _expose(self, payload: bytes) -> None:
        text, content_type = await self._scrape(payload[NUMBER.size :].decode())
        self._channel.send(Kind.EXPOSITION, payload[: NUMBER.size] + content_type.encode() + b"\n" + text)
