"""An HTTP worker's side: a registry without engines, and a dispatcher that sends rows to the engine host.

The service sees no difference: models are found by name, retained and released, and rows are given to a dispatcher.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from app.errors import HieraError, Unavailable, UnknownModel
from app.media.shared import no_room
from app.serving import wire
from app.serving.changes import Order, Report, decode_report, encode_order
from app.serving.changes import State as ModelState
from app.serving.channel import LOST, Channel
from app.serving.curve import CostModel
from app.serving.dispatcher import Dispatcher, RowsLease, tell
from app.serving.model import LoadedModel
from app.serving.results import Task
from app.serving.status import ModelStatus
from app.serving.submission import Outcome, Terms
from app.serving.wire import NUMBER, Kind, ModelRecord, Phase, State, SubmitHeader, Table

_LOADING = "the models are being loaded; try again soon"
_RETIREMENT_CHECK_S = 0.1


class RemoteModels:
    """The models of the engine host: what `ModelRegistry` is in a process that has engines.

    Args:
        make: a model from its record; its dispatcher leads to the host.
        on_unused: told the key of a model that was replaced or unloaded, once no request uses it.
    """

    def __init__(self, make: Callable[[ModelRecord], LoadedModel], on_unused: Callable[[int], None]) -> None:
        self._make = make
        self._on_unused = on_unused
        self._table: Table | None = None
        self._records: dict[str, ModelRecord] = {}
        self._statuses: dict[str, ModelStatus] = {}
        self._models: dict[int, LoadedModel] = {}
        self._retired: dict[int, LoadedModel] = {}
        self._state = State("the engines are being started", None, {})

    def load_all(self) -> None:
        """The host loads."""

    def close(self, timeout_s: float = 0.0) -> None:
        """The host closes."""

    def get(self, task: Task, name: str | None) -> LoadedModel:
        """See `ModelRegistry.get`."""
        if self._table is None:
            raise Unavailable(_LOADING)
        if name is None:
            default = self._table.defaults[task]
            if isinstance(default, bytes):
                raise wire.decode_error(default)
            name = default
        record = self._records.get(name)
        if record is None:
            raise UnknownModel(f"there is no model named {name}")
        if record.manifest is not None and record.manifest.task != task:
            raise UnknownModel(f"{name} is a model for the task {record.manifest.task}, not {task}")
        if record.refusal is not None:
            raise wire.decode_error(record.refusal)
        model = self._statuses[name].model
        if model is None:
            raise Unavailable(_LOADING)
        model.retain()
        return model

    def models(self) -> list[ModelStatus]:
        """See `ModelRegistry.models`; `queue_rows` is up to a second old."""
        live = self._state.live
        return [
            replace(status, queue_rows=live[name][1]) if name in live else status
            for name, status in self._statuses.items()
        ]

    def unready_reason(self) -> str | None:
        """Why requests should go elsewhere; None when the host and all of its HTTP workers are well."""
        return self._state.unready_reason

    def hopeless_reason(self) -> str | None:
        """See `ModelRegistry.hopeless_reason`."""
        return self._state.hopeless_reason

    def show(self, table: Table) -> None:
        """The models are these now."""
        models: dict[int, LoadedModel] = {}
        statuses: dict[str, ModelStatus] = {}
        for record in table.models:
            model = None
            if record.loaded is not None:
                key = record.loaded.key
                model = models[key] = self._models.get(key) or self._make(record)
            statuses[record.name] = ModelStatus(
                name=record.name,
                version=record.version,
                state=cast(ModelState, record.state),
                reason=record.reason,
                manifest=record.manifest,
                model=model,
                default=record.default,
                queue_rows=0,
            )
        self._retired |= {key: model for key, model in self._models.items() if key not in models}
        self._table, self._models, self._statuses = table, models, statuses
        self._records = {record.name: record for record in table.models}
        if self._retired:
            self._check_retired()

    def follow(self, state: State) -> None:
        """The models are like this now."""
        self._state = state
        for name, (correction, _) in state.live.items():
            status = self._statuses.get(name)
            if status is not None and status.model is not None:
                status.model.cost.follow(correction)

    def _check_retired(self) -> None:
        for key in [key for key, model in self._retired.items() if model.wait_idle(0.0)]:
            del self._retired[key]
            self._on_unused(key)
        if self._retired:
            asyncio.get_running_loop().call_later(_RETIREMENT_CHECK_S, self._check_retired)


@dataclass(frozen=True)
class LinkEvents:
    """What the rest of the worker is told, and asked for.

    Attributes:
        on_connection: an accepted socket to serve.
        on_phase: the next step of a drain.
        on_end: the host has gone.
        samples: the worker's metrics, as JSON.
        unhealthy: why the media workers cannot decode; None if they can.
    """

    on_connection: Callable[[socket.socket], None]
    on_phase: Callable[[Phase], None]
    on_end: Callable[[], None]
    samples: Callable[[], bytes]
    unhealthy: Callable[[], str | None]


class HostLink:
    """The worker's end of the channel to the engine host.

    Args:
        exact_images: what the models' specs ask of the media workers.

    Attributes:
        models: the host's.
    """

    def __init__(self, *, exact_images: bool) -> None:
        self._exact_images = exact_images
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Callable[[Outcome], None]] = {}  # as long as somebody does
        self._leases: dict[int, RowsLease] = {}  # as long as an engine may read the rows
        self._asked: dict[int, asyncio.Future[bytes]] = {}  # scrapes and orders
        self.models = RemoteModels(self._model, self._unused)

    def open(self, sock: socket.socket, events: LinkEvents) -> None:
        """Begin to talk, on the running event loop."""
        self._events = events
        self._channel = Channel(sock, self._frame, events.on_end)

    def serve(self) -> None:
        """Tell the host that connections may come."""
        self._channel.send(Kind.SERVING)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """The metrics of all processes together, and their content type.

        Raises:
            EngineError: the host failed to add them up.
        """
        content_type, _, text = (await self._ask(Kind.SCRAPE, accept.encode())).partition(b"\n")
        return text, content_type.decode()

    async def administer(self, order: Order) -> Report:
        """Have the host carry out a change of its models; all workers know of it when this returns.

        Raises:
            UnknownModel, ChangeRefused, Unavailable: see `app.serving.rollout`.
        """
        return decode_report(await self._ask(Kind.ORDER, encode_order(order)))

    def submit(self, key: int, lease: RowsLease, terms: Terms, settle: Callable[[Outcome], None]) -> Callable[[], None]:
        """`Dispatcher.submit` for the model `key`.

        Raises:
            Overloaded: no descriptor is left.
        """
        number = next(self._numbers)
        try:
            header = wire.encode_submit(SubmitHeader(number, key, len(lease.rows), lease.reused, terms))
            descriptor = os.dup(lease.fd)
        except BaseException as error:
            lease.close()
            if isinstance(error, OSError):
                raise no_room(error) from error
            raise
        self._leases[number] = lease
        self._waiting[number] = settle
        self._channel.send(Kind.SUBMIT, header, descriptor)

        def cancel() -> None:
            if self._waiting.pop(number, None) is not None:
                self._channel.send(Kind.CANCEL, NUMBER.pack(number))

        return cancel

    async def _ask(self, kind: Kind, payload: bytes) -> bytes:
        """The host's reply; raises what it refuses with."""
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._channel.send(kind, NUMBER.pack(number) + payload)
        try:
            return await answer
        finally:
            del self._asked[number]

    def _frame(self, kind: int, payload: bytes, descriptor: int) -> None:
        if kind == Kind.ANSWER:
            self._settled(*wire.decode_answer(payload))
        elif kind == Kind.REPLY:
            self._replied(NUMBER.unpack_from(payload)[0], payload[NUMBER.size :])
        elif kind == Kind.REFUSAL:
            self._replied(NUMBER.unpack_from(payload)[0], wire.decode_error(payload[NUMBER.size :]))
        elif kind == Kind.FAILURE:
            self._settled(NUMBER.unpack_from(payload)[0], wire.decode_error(payload[NUMBER.size :]))
        elif kind == Kind.RELEASE:
            self._leases.pop(*NUMBER.unpack(payload)).close()
        elif kind == Kind.CONNECTION:
            if descriptor != LOST:  # else the kernel has closed it already
                self._events.on_connection(socket.socket(fileno=descriptor))
        elif kind == Kind.STATE:
            self.models.follow(pickle.loads(payload))  # noqa: S301 - from the process that started this one
        elif kind == Kind.TABLE:
            self.models.show(pickle.loads(payload))  # noqa: S301
        elif kind == Kind.PROBE:
            unhealthy = json.dumps(self._events.unhealthy()).encode()
            self._channel.send(Kind.PULSE, payload + unhealthy + b"\n" + self._events.samples())
        elif kind == Kind.PHASE:
            self._events.on_phase(Phase(payload[0]))

    def _settled(self, number: int, outcome: Outcome) -> None:
        settle = self._waiting.pop(number, None)
        if settle is not None:
            settle(outcome)

    def _replied(self, number: int, reply: bytes | HieraError) -> None:
        waiting = self._asked.get(number)
        if waiting is not None:  # else it has left meanwhile
            tell(waiting, reply)

    def _model(self, record: ModelRecord) -> LoadedModel:
        if record.manifest is None or record.loaded is None:
            raise ValueError(f"{record.name} is not loaded")
        loaded = record.loaded
        return LoadedModel(
            record.manifest,
            loaded.labels,
            engine=loaded.engine,
            choice=loaded.choice,
            cost=CostModel(loaded.curve),
            dispatcher=_RemoteDispatcher(self, loaded.key),
            instances=loaded.instances,
            feature_dim=loaded.feature_dim,
            exact_images=self._exact_images,
        )

    def _unused(self, key: int) -> None:
        self._channel.send(Kind.DROPPED, NUMBER.pack(key))


class _RemoteDispatcher(Dispatcher):
    """A `Dispatcher` to one model of the host."""

    def __init__(self, link: HostLink, key: int) -> None:
        self._link = link
        self._key = key

    def submit(self, rows: RowsLease, terms: Terms, settle: Callable[[Outcome], None]) -> Callable[[], None]:
        """See `Dispatcher.submit`."""
        return self._link.submit(self._key, rows, terms, settle)
