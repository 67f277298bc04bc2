"""The one way from a file to a classification: admit, decode, submit, postprocess. It knows no transport.

ticket = service.admit(arrival)                          before the body is read: model, deadline, room
ticket.set_aside(), ticket.resume()                      when the upload takes long, and when it is complete
await service.classify(ticket, body)                     once for each file of the request, or what the model itself
                                                         gives: run_file(ticket, body), run_rows(ticket, rows)
ticket.release()                                         exactly once, whatever happened
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from app.errors import DeadlineExceeded, HieraError, InvalidParameter, Overloaded, Unavailable
from app.media.shared import DecodedRows, SharedBytes
from app.media.spec import DecodeJob, rows_of
from app.serving.admission import Admission
from app.serving.decode_load import DecodeLoad
from app.serving.demand import Arrival, Demand
from app.serving.dispatcher import RowsLease
from app.serving.model import LoadedModel
from app.serving.observer import ServingObserver, SilentObserver
from app.serving.postprocess import average_views, name_classes
from app.serving.results import Classification, ClassifyOptions, Latency, Outputs, Task
from app.serving.submission import Inference, Terms
from app.serving.ticket import Ticket


class ModelSource(Protocol):
    """Where the service finds models: the registry."""

    def get(self, task: Task, name: str | None) -> LoadedModel:
        """A model that is ready, retained for the caller, who must `release` it.

        Raises:
            UnknownModel: no such model, or none for the task.
            Unavailable: it is loading, has failed, or is being rebuilt.
        """
        ...


class Decoder(Protocol):
    """Where files become rows: `app.media`'s pool of worker processes."""

    async def decode(self, body: SharedBytes, job: DecodeJob, deadline: float, caller: str = "") -> DecodedRows: ...


@dataclass(frozen=True)
class ServiceDefaults:
    """Bounds of every request.

    Attributes:
        image_timeout_s, video_timeout_s: from the start of the upload to the answer; a caller's timeout_ms can only
            shorten it.
        max_clips: the most temporal views of one video.
        image_workers, video_workers: media workers, to predict how long decoding will wait.
    """

    image_timeout_s: float = 30.0
    video_timeout_s: float = 120.0
    max_clips: int = 16
    image_workers: int = 1
    video_workers: int = 1


class Service:
    """Classifies files. Its methods are called on one event loop.

    Args:
        registry: the models.
        pool: the media workers.
        admission: what bounds the work in flight.
        defaults: bounds of every request.
        observer: where stage durations, rejections and cancellations go.
    """

    def __init__(
        self,
        registry: ModelSource,
        pool: Decoder,
        admission: Admission,
        defaults: ServiceDefaults | None = None,
        observer: ServingObserver | None = None,
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._admission = admission
        self._defaults = defaults or ServiceDefaults()
        self._observer = observer or SilentObserver()
        self._decode_load = {
            "image": DecodeLoad(self._defaults.image_workers),
            "video": DecodeLoad(self._defaults.video_workers),
        }
        self._open_tickets = 0
        self._draining = False
        self._drained = asyncio.Event()

    @property
    def open_tickets(self) -> int:
        """Requests that were admitted and have not been answered."""
        return self._open_tickets

    @property
    def max_rows(self) -> int:
        """The most rows that one request may bring."""
        return self._admission.max_rows

    def admit(self, arrival: Arrival) -> Ticket:
        """Decide whether a request may come in.

        Raises:
            InvalidParameter: an option is out of range, or the model gives no features.
            UnknownModel: no such model for the task.
            Unavailable: the model is not ready, or the server is draining.
            DeadlineExceeded: the caller's time is over already.
            Overloaded: there is no room, or the deadline cannot be made.
        """
        task, options, caller = arrival.task, arrival.options, arrival.caller
        _check_options(task, options, self._defaults)
        deadline = self._deadline(arrival)
        model = self._registry.get(task, options.model)
        try:
            if self._draining:
                self._observer.rejected(model.name, "draining")
                raise Unavailable("the server is shutting down; send the request to another one", code="draining")
            if deadline <= time.monotonic():
                raise DeadlineExceeded("the deadline passed before the request was read")
            if options.features and not model.feature_dim:
                raise InvalidParameter(f"{model.name} gives no features; /v2/models/{model.name} says what it gives")
            job = model.job(options.clips, options.crops)
            reservation = self._admission.admit(self._demand(arrival, model, job, deadline))
        except BaseException:
            model.release()
            raise
        self._open_tickets += 1
        load = self._decode_load[task]
        return Ticket(
            model,
            options,
            job,
            deadline,
            reservation,
            lambda until: load.predict_s(1, until, caller),
            self._closed_ticket,
        )

    def refusal(self, arrival: Arrival) -> Overloaded | None:
        """What `admit` would raise for lack of room or time; None for a request that has to be looked at in full. It
        takes some microseconds, and nothing is reserved."""
        if self._draining:
            return None
        options = arrival.options
        try:
            _check_options(arrival.task, options, self._defaults)
            model = self._registry.get(arrival.task, options.model)
        except HieraError:
            return None
        try:
            job = model.job(options.clips, options.crops)
            return self._admission.refusal(self._demand(arrival, model, job, self._deadline(arrival)))
        finally:
            model.release()

    async def classify(self, ticket: Ticket, body: SharedBytes) -> Classification:
        """Classify one file of an admitted request. The caller keeps `body` and closes it afterwards.

        Raises:
            UnsupportedMedia, BrokenMedia, LimitExceeded: the file.
            DeadlineExceeded: the ticket's deadline passed.
            Overloaded, Unavailable: the engine's queue is full or closed after all.
            EngineError: the engine failed on this file's rows.
        """
        rows, decode_s = await self._decoded(ticket, body)
        info = rows.info
        several = len(rows.rows) > 1
        inference = await self._inferred(ticket, rows, with_features=ticket.options.features, averaged=several)
        began = time.monotonic()
        predictions, clips = name_classes(inference.probabilities, ticket.model.labels, ticket.options, info)
        features = None if inference.features is None else average_views(inference.features)
        latency = Latency(decode_s, inference.queue_s, inference.inference_s, time.monotonic() - began)
        self._observer.stage_duration(ticket.model.name, "postprocess", latency.postprocess_s)
        return Classification(ticket.model.identity, predictions, latency, inference.batch_rows, clips, features)

    async def run_file(self, ticket: Ticket, body: SharedBytes, *, with_features: bool = False) -> Outputs:
        """What the model gives for one file of an admitted request: [views of the file, …]. Errors as `classify`."""
        rows, decode_s = await self._decoded(ticket, body)
        return await self._run(ticket, rows, decode_s, with_features)

    async def run_rows(self, ticket: Ticket, rows: RowsLease, *, with_features: bool = False) -> Outputs:
        """What the model gives for rows that came decoded, uint8 [n, *row_shape], of the geometry that the manifest
        says. They are closed once no engine reads them. Errors as `classify`, but for those of the file.
        """
        return await self._run(ticket, rows, 0.0, with_features)

    def drain(self) -> None:
        """Refuse new requests from now on; what was admitted goes on."""
        self._draining = True
        if self._open_tickets == 0:
            self._drained.set()

    async def drained(self, timeout_s: float) -> bool:
        """After `drain`: wait until every admitted request is answered; False when `timeout_s` passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self, ticket: Ticket, rows: RowsLease, decode_s: float, with_features: bool) -> Outputs:
        inference = await self._inferred(ticket, rows, with_features=with_features)
        latency = Latency(decode_s, inference.queue_s, inference.inference_s, 0.0)
        model, probabilities = ticket.model.identity, inference.probabilities
        return Outputs(model, probabilities, inference.features, latency, inference.batch_rows)

    async def _decoded(self, ticket: Ticket, body: SharedBytes) -> tuple[DecodedRows, float]:
        """The rows of a file, and the seconds that they took."""
        began = time.monotonic()
        try:
            rows = await self._decode(ticket, body)
        except (asyncio.CancelledError, DeadlineExceeded):
            self._observer.cancelled(ticket.model.name, "decode")
            raise
        decode_s = time.monotonic() - began
        self._observer.stage_duration(ticket.model.name, "decode", decode_s)
        return rows, decode_s

    async def _inferred(
        self, ticket: Ticket, rows: RowsLease, *, with_features: bool = False, averaged: bool = False
    ) -> Inference:
        model = ticket.model
        try:
            inference = await model.dispatcher.infer(
                rows, Terms(ticket.deadline, ticket.caller, with_features, averaged)
            )
        except (asyncio.CancelledError, DeadlineExceeded):
            self._observer.cancelled(model.name, "queue")
            raise
        self._observer.stage_duration(model.name, "queue", inference.queue_s)
        self._observer.stage_duration(model.name, "inference", inference.inference_s)
        return inference

    async def _decode(self, ticket: Ticket, body: SharedBytes) -> DecodedRows:
        load = self._decode_load[ticket.model.manifest.task]
        deadline, caller = ticket.deadline, ticket.caller
        expected, began = load.enter(deadline, caller), time.monotonic()
        # Rows that come too late to be inferred are not worth decoding. But a prediction from a busy time that is over
        # takes at most half of what is left: without rows that are inferred it would stay as it is.
        inferred_s = ticket.model.lane.predict_s(rows_of(ticket.job))
        latest = deadline - min(inferred_s, (deadline - began) / 2)
        try:
            rows = await self._pool.decode(body, ticket.job, latest, caller)
        except DeadlineExceeded:
            load.observe_expiry(expected, time.monotonic() - began, caller)
            raise
        finally:
            load.leave(deadline, caller)
        load.observe(expected, time.monotonic() - began, rows.decode_s, caller)
        return rows

    def _deadline(self, arrival: Arrival) -> float:
        bound_s = self._defaults.image_timeout_s if arrival.task == "image" else self._defaults.video_timeout_s
        timeout_ms = arrival.options.timeout_ms
        return arrival.started + (bound_s if timeout_ms is None else min(bound_s, timeout_ms / 1000))

    def _demand(self, arrival: Arrival, model: LoadedModel, job: DecodeJob, deadline: float) -> Demand:
        rows = arrival.files * rows_of(job)
        nbytes = rows * model.row_nbytes + arrival.body_bytes
        decode_s = self._decode_load[arrival.task].predict_s(arrival.files, deadline, arrival.caller)
        return Demand(model.lane, rows, nbytes, deadline, decode_s, arrival.caller)

    def _closed_ticket(self) -> None:
        self._open_tickets -= 1
        if self._draining and self._open_tickets == 0:
            self._drained.set()


def _check_options(task: Task, options: ClassifyOptions, defaults: ServiceDefaults) -> None:
    if options.top_k < 1:
        raise InvalidParameter("top_k must be 1 or more")
    if options.timeout_ms is not None and options.timeout_ms < 1:
        raise InvalidParameter("timeout_ms must be 1 or more")
    if task == "image" and (options.clips, options.crops) != (1, 1):
        raise InvalidParameter("clips and crops are for videos")
    if not 1 <= options.clips <= defaults.max_clips:
        raise InvalidParameter(f"clips must be from 1 to {defaults.max_clips}")
    if options.crops not in (1, 3):
        raise InvalidParameter("crops must be 1 or 3")
