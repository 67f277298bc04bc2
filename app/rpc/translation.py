"""From a call's message to the HTTP request that says the same, and from its answer back to a message."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from app.api.inference_schemas import MOST_AXES, MOST_OUTPUTS
from app.api.tensors import HEADER, bytes_tensor
from app.repository.manifest import NAME
from app.rpc.messages import MESSAGES

_MOST_PARAMETERS = 8
_MOST_LISTED = 1 << 20  # each is an object of Python's for a moment: 20 ms in all
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True)
class HttpCall:
    """An HTTP request, its body in pieces: joined, a large one would be in memory twice."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class HttpAnswer:
    """What came of it; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Refused(Exception):
    """A call ends with a status other than OK. The message is for the caller."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Method:
    """A method of the service: its messages, and how it is said in HTTP.

    Attributes:
        request, response: the messages' names.
        call: the HTTP request for a message and the seconds that its caller bears, None without a bound.
        answer: the message of an answer. Both raise Refused.
    """

    request: str
    response: str
    call: Callable[[Any, float | None], HttpCall]
    answer: Callable[[HttpAnswer], Any]


def _infer_call(message: Any, bears_s: float | None) -> HttpCall:
    _check_counts(message)
    parameters: dict[str, Any] = _plain(message.parameters) | {"binary_data_output": True}
    asked_us = parameters.get("timeout")
    # What is no time limit is left as it is, to be refused.
    if bears_s is not None and (asked_us is None or (type(asked_us) is int and asked_us > 0)):
        left_us = max(1, int(bears_s * 1e6))
        parameters["timeout"] = left_us if asked_us is None else min(left_us, asked_us)
    (tensor,) = message.inputs
    data = message.raw_input_contents[0] if message.raw_input_contents else _contents(tensor)
    given = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": _plain(tensor.parameters) | {"binary_data_size": len(data)},
    }
    document: dict[str, Any] = {"parameters": parameters, "inputs": [given]}
    if message.id:
        document["id"] = message.id
    if message.outputs:
        document["outputs"] = [
            {"name": each.name, "parameters": _plain(each.parameters) | {"binary_data": True}}
            for each in message.outputs
        ]
    text = json.dumps(document).encode()
    headers = {"content-length": str(len(text) + len(data)), HEADER: str(len(text))}
    return HttpCall("POST", f"{_model(message.model_name, message.model_version)}/infer", headers, [text, data])


def _check_counts(message: Any) -> None:
    """Raise Refused for a message of more parts than any sound one has: millions fit into it, and each would take
    time of the event loop."""
    tensors = (*message.inputs[:2], *message.outputs[:MOST_OUTPUTS])
    if len(message.inputs) != 1 or len(message.raw_input_contents) > 1:
        fault = "a request has one input, and its contents once"
    elif len(message.outputs) > MOST_OUTPUTS or len(message.inputs[0].shape) > MOST_AXES:
        fault = f"a request has at most {MOST_OUTPUTS} outputs, and an input at most {MOST_AXES} axes"
    elif max(len(each.parameters) for each in (message, *tensors)) > _MOST_PARAMETERS:
        fault = f"a request and its tensors have at most {_MOST_PARAMETERS} parameters each"
    else:
        return
    raise Refused(grpc.StatusCode.INVALID_ARGUMENT, fault)


def _contents(tensor: Any) -> bytes:
    """What a tensor's own fields hold, as raw contents have it."""
    listed = tensor.contents.bytes_contents if tensor.datatype == "BYTES" else tensor.contents.uint_contents
    if len(listed) > _MOST_LISTED:
        message = f"typed contents may have {_MOST_LISTED:,} elements; send more as raw_input_contents"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
    if tensor.datatype == "BYTES":
        return bytes_tensor(listed)
    try:
        return bytes(listed)
    except ValueError:
        message = f"the contents of {tensor.name[:40]!r} are not whole numbers from 0 to 255"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message) from None


def _infer_answer(answer: HttpAnswer) -> Any:
    _check(answer)
    length = int(answer.headers[HEADER])
    document = json.loads(answer.body[:length])
    message = MESSAGES["ModelInferResponse"](
        model_name=document["model_name"], model_version=document["model_version"], id=document.get("id", "")
    )
    for tensor in document["outputs"]:
        message.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        size = tensor["parameters"]["binary_data_size"]
        message.raw_output_contents.append(answer.body[length : length + size])
        length += size
    return message


def _metadata_answer(name: str) -> Callable[[HttpAnswer], Any]:
    def message_of(answer: HttpAnswer) -> Any:
        _check(answer)
        return MESSAGES[name](**json.loads(answer.body))

    return message_of


def _whether(name: str, field_name: str) -> Callable[[HttpAnswer], Any]:
    """A yes or no: 503 is no."""

    def message_of(answer: HttpAnswer) -> Any:
        if answer.status != 503:
            _check(answer)
        return MESSAGES[name](**{field_name: answer.status == 200})

    return message_of


def _get(path: str) -> Callable[[Any, float | None], HttpCall]:
    return lambda message, bears_s: HttpCall("GET", path)


def _get_model(ending: str) -> Callable[[Any, float | None], HttpCall]:
    return lambda message, bears_s: HttpCall("GET", _model(message.name, message.version) + ending)


def _model(name: str, version: str) -> str:
    """The path of a model. What is no model's name must not become part of a path."""
    if re.fullmatch(NAME, name) is None or not (version == "" or version.isdecimal()):
        raise Refused(grpc.StatusCode.NOT_FOUND, "there is no model of this name and version")
    return f"/v2/models/{name}" + (f"/versions/{version}" if version else "")


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a message as JSON has them; one without a value is null."""
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], choice) if choice else None for name, choice in chosen.items()}


def _check(answer: HttpAnswer) -> None:
    """Raise Refused for an answer that is a problem."""
    if answer.status != 200:
        detail = json.loads(answer.body)["detail"]
        raise Refused(_STATUS.get(answer.status, grpc.StatusCode.INTERNAL), detail)


METHODS = {
    "ServerLive": Method(
        "ServerLiveRequest", "ServerLiveResponse", _get("/v2/health/live"), _whether("ServerLiveResponse", "live")
    ),
    "ServerReady": Method(
        "ServerReadyRequest", "ServerReadyResponse", _get("/v2/health/ready"), _whether("ServerReadyResponse", "ready")
    ),
    "ModelReady": Method(
        "ModelReadyRequest", "ModelReadyResponse", _get_model("/ready"), _whether("ModelReadyResponse", "ready")
    ),
    "ServerMetadata": Method(
        "ServerMetadataRequest", "ServerMetadataResponse", _get("/v2"), _metadata_answer("ServerMetadataResponse")
    ),
    "ModelMetadata": Method(
        "ModelMetadataRequest", "ModelMetadataResponse", _get_model(""), _metadata_answer("ModelMetadataResponse")
    ),
    "ModelInfer": Method("ModelInferRequest", "ModelInferResponse", _infer_call, _infer_answer),
}
