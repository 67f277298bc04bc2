"""The two classification routes: from a request to the service and back. What can be done once is done at the start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from app.api.body import Body, UploadPace
from app.api.disconnect import CancelOnDisconnect
from app.api.exchange import Exchange, exchange_of
from app.api.gate import Gate
from app.api.problems import problem_of
from app.api.query import QueryLimits, QueryParser
from app.api.results import image_result, video_result
from app.api.schemas import ImageResult, ImageResults, Problem
from app.api.upload_stage import UploadStage
from app.api.uploads import UploadLimits, Uploads, envelope_of, receive_files
from app.errors import MalformedRequest, Overloaded
from app.media.shared import SharedBytes
from app.serving.demand import Arrival
from app.serving.observer import ServingObserver
from app.serving.results import Classification, Task
from app.serving.service import Service
from app.serving.ticket import Ticket

_log = logging.getLogger("hiera.errors")
_JSON = "application/json"

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ClassifyBounds:
    """What the requests of one task may bring and ask for."""

    query: QueryLimits
    upload: UploadLimits
    pace: UploadPace


def classify_endpoint(
    task: Task, service: Service, bounds: ClassifyBounds, observer: ServingObserver, gate: Gate
) -> Endpoint:
    """The endpoint of `POST /classify/{task}`. It takes the bare request and reads parameters and body itself."""
    parser = QueryParser(task, bounds.query)

    async def classify(request: Request) -> Response:
        scope, receive = request.scope, request.receive
        exchange = exchange_of(scope)
        options = parser.parse(scope["query_string"])
        body = Body(scope["headers"], receive, bounds.pace)
        envelope = envelope_of(body, task, bounds.upload)
        nbytes = body.content_length or 0
        try:
            ticket = service.admit(Arrival(task, options, exchange.started, body_bytes=nbytes, caller=exchange.caller))
        except Overloaded:
            gate.guard()
            raise
        with ticket:
            exchange.model = ticket.model.name
            uploads = Uploads(
                bounds.upload, lambda: ticket.grow(files=1), lambda count: reserve_chunk(ticket, body, count)
            )
            try:
                with UploadStage(ticket, body, exchange, observer):
                    await receive_files(body, envelope, uploads, ticket.deadline)
                async with CancelOnDisconnect(receive):
                    outcomes = await _classify_each(service, ticket, uploads.files)
            finally:
                exchange.files = len(uploads.files)
                uploads.close()
        return Response(_answer(outcomes, exchange), media_type=_JSON)

    return classify


def reserve_chunk(ticket: Ticket, body: Body, nbytes: int) -> None:
    """Reserve room for bytes as they come. What Content-Length announced is reserved already."""
    if body.content_length is None:
        ticket.grow(body_bytes=nbytes)


async def _classify_each(
    service: Service, ticket: Ticket, files: Sequence[SharedBytes]
) -> list[Classification | Exception]:
    """Each file's own outcome, in their order. The error of a file that came alone is raised."""
    if len(files) == 1:
        return [await _classify_one(service, ticket, files[0])]
    outcomes = await asyncio.gather(*(_classify_one(service, ticket, file) for file in files), return_exceptions=True)
    settled: list[Classification | Exception] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
            raise outcome
        settled.append(outcome)
    return settled


async def _classify_one(service: Service, ticket: Ticket, file: SharedBytes) -> Classification:
    if file.size == 0:
        raise MalformedRequest("the file is empty")
    return await service.classify(ticket, file)


def _answer(outcomes: Sequence[Classification | Exception], exchange: Exchange) -> str:
    """The JSON of the answer, and the stages of the request: of several files, the slowest of each stage."""
    for outcome in outcomes:
        if isinstance(outcome, Classification):
            exchange.note_stages(outcome.latency)
    if len(outcomes) == 1:
        return _result(outcomes[0], exchange).model_dump_json(exclude_none=True)
    results = tuple(_result(outcome, exchange) for outcome in outcomes)
    return ImageResults(request_id=exchange.request_id, results=results).model_dump_json(exclude_none=True)


def _result(outcome: Classification | Exception, exchange: Exchange) -> ImageResult | Problem:
    upload_s, total_s = exchange.stages["upload"], exchange.elapsed_s
    if isinstance(outcome, Classification):
        build = video_result if exchange.task == "video" else image_result
        return build(outcome, exchange.request_id, upload_s=upload_s, total_s=total_s)
    problem = problem_of(outcome, exchange.request_id)
    if problem.status == 500:
        _log.error("a file of the request failed", exc_info=outcome)
    return problem
