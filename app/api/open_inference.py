"""The Open Inference Protocol over HTTP: what clients of Triton and KServe speak, over the same service.

GET  /v2, /v2/health/live, /v2/health/ready
GET  /v2/models/{name}[/versions/{version}][/ready]
POST /v2/models/{name}[/versions/{version}]/infer
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from app.api.body import Body, single_header
from app.api.classify import ClassifyBounds, reserve_chunk
from app.api.disconnect import CancelOnDisconnect
from app.api.exchange import exchange_of
from app.api.health import HealthEndpoints
from app.api.inference_schemas import ModelMetadata, ServerMetadata, TensorMetadata
from app.api.models import ModelList, find_model
from app.api.schemas import Health
from app.api.tensor_body import TensorBody, header_nbytes
from app.api.tensors import HEADER, ROWS, encode_answer, outputs_of, parse_request
from app.api.upload_stage import UploadStage
from app.api.uploads import OVERHEAD_BYTES, Uploads, check_encoding
from app.errors import InvalidParameter, LimitExceeded, MalformedRequest, Unavailable, UnknownModel
from app.media.shared import SharedBytes, UploadedRows
from app.serving.demand import Arrival
from app.serving.model import LoadedModel
from app.serving.observer import ServingObserver
from app.serving.results import ClassifyOptions, Outputs, Task
from app.serving.service import Service
from app.serving.status import ModelStatus
from app.serving.ticket import Ticket

_JSON = "application/json"
_SERVER = ServerMetadata(name="hiera-serve", version="1.0", extensions=("binary_tensor_data", "classification"))


class OpenInferenceEndpoints:
    """Reads the models on every call: states change while the server runs.

    Args:
        bounds: what requests of each task may bring; the limits of uploads hold for tensors too.
    """

    def __init__(
        self,
        models: ModelList,
        health: HealthEndpoints,
        service: Service,
        bounds: Mapping[Task, ClassifyBounds],
        observer: ServingObserver,
    ) -> None:
        self._models = models
        self._health = health
        self._service = service
        self._bounds = bounds
        self._observer = observer

    async def server_metadata(self, request: Request) -> Response:
        """Who this is, and which extensions of the protocol are spoken."""
        return Response(_SERVER.model_dump_json(), media_type=_JSON)

    async def server_live(self, request: Request) -> Response:
        """As `/health/live`."""
        return await self._health.live(request)

    async def server_ready(self, request: Request) -> Response:
        """As `/health/ready`."""
        return await self._health.ready(request)

    async def model_metadata(self, request: Request) -> Response:
        """Tensors of a model that is ready."""
        status = self._status(request)
        model = _loaded(status)
        metadata = ModelMetadata(
            name=model.name,
            versions=(str(model.version),),
            platform="onnxruntime_onnx",
            inputs=(TensorMetadata(name=ROWS, datatype="UINT8", shape=(-1, *model.row_shape)),),
            outputs=tuple(
                TensorMetadata(name=name, datatype="FP32", shape=(-1, width))
                for name, width in outputs_of(model).items()
            ),
        )
        return Response(metadata.model_dump_json(), media_type=_JSON)

    async def model_ready(self, request: Request) -> Response:
        """200 while the model answers, else 503."""
        _loaded(self._status(request))
        return Response(Health(status="ready").model_dump_json(), media_type=_JSON)

    async def infer(self, request: Request) -> Response:
        """Run rows, or files that are decoded first."""
        exchange, receive = exchange_of(request.scope), request.receive
        if request.scope["query_string"]:
            raise InvalidParameter("this address takes no query; a time limit is the request's parameter timeout")
        status = self._status(request)
        task: Task = status.manifest.task if status.manifest is not None else "image"
        exchange.task = task
        bounds = self._bounds[task]
        body = Body(request.scope["headers"], receive, bounds.pace)
        check_encoding(body)
        json_nbytes = header_nbytes(single_header(request.scope["headers"], HEADER.encode()), body.content_length)
        most = (json_nbytes or 0) + bounds.upload.max_request_bytes + OVERHEAD_BYTES
        body.check_length(most)
        options = ClassifyOptions(model=status.name)
        length = body.content_length or 0
        arrival = Arrival(task, options, exchange.started, body_bytes=length, caller=exchange.caller)
        with self._service.admit(arrival) as ticket:
            model = ticket.model
            exchange.model = model.name
            _check_version(request, model.name, model.version)  # it may have been swapped since
            uploads = Uploads(bounds.upload, on_bytes=lambda count: reserve_chunk(ticket, body, count))
            tensors = TensorBody(
                json_nbytes,
                lambda text: parse_request(text, model, binary_follows=json_nbytes is not None),
                model.row_shape,
                uploads,
                lambda count: self._reserve(ticket, count),
            )
            try:
                with UploadStage(ticket, body, exchange, self._observer):
                    await body.read(tensors.feed, max_bytes=most, deadline=ticket.deadline)
                    wanted = tensors.finish()
                    if wanted.timeout_s is not None:
                        ticket.hurry(exchange.started + wanted.timeout_s)
                exchange.files = wanted.count
                async with CancelOnDisconnect(receive):
                    answers = await run_model(
                        self._service, ticket, tensors.rows or uploads.files, with_features=wanted.with_features
                    )
            finally:
                tensors.close()
                uploads.close()
            for answer in answers:
                exchange.note_stages(answer.latency)
            began = time.monotonic()
            content, json_length = encode_answer(wanted, model, answers)
            exchange.stages["postprocess"] = seconds = time.monotonic() - began
            self._observer.stage_duration(model.name, "postprocess", seconds)
        if json_length == len(content):
            return Response(content, media_type=_JSON)
        headers = {HEADER: str(json_length)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    def _reserve(self, ticket: Ticket, rows: int) -> None:
        """Room for all rows of a request; one was reserved when it was admitted."""
        most = self._service.max_rows
        if rows > most:
            raise LimitExceeded(f"{rows:,} rows were announced; at most {most:,} can be sent in one request")
        ticket.grow(files=rows - 1)

    def _status(self, request: Request) -> ModelStatus:
        """The model of a path. Raises UnknownModel: there is none of that name and version."""
        status = find_model(self._models, request.path_params["name"])
        _check_version(request, status.name, status.version)
        return status


async def run_model(
    service: Service, ticket: Ticket, given: UploadedRows | Sequence[SharedBytes], *, with_features: bool
) -> list[Outputs]:
    """What the model gives for rows together, or for each file; raises what the first to fail raised."""
    if isinstance(given, UploadedRows):
        return [await service.run_rows(ticket, given, with_features=with_features)]
    if any(file.size == 0 for file in given):
        raise MalformedRequest("a file is empty")
    runs = (service.run_file(ticket, file, with_features=with_features) for file in given)
    answers: list[Outputs] = []
    for outcome in await asyncio.gather(*runs, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        answers.append(outcome)
    return answers


def _check_version(request: Request, name: str, serves: int) -> None:
    """Raise UnknownModel where the path names another version than the one that serves."""
    version = request.path_params.get("version")
    if version is not None and version != str(serves):
        raise UnknownModel(f"{name} serves version {serves}, and no other")


def _loaded(status: ModelStatus) -> LoadedModel:
    if status.model is None or status.state != "ready":
        raise Unavailable(f"{status.name} is not ready: {status.reason or status.state}", code="not_ready")
    return status.model
