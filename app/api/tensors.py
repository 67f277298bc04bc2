"""The Open Inference Protocol's request and answer: JSON that names tensors, and their bytes behind it.

Inference-Header-Content-Length: 210
{"inputs": [{"name": "rows", "shape": [2, 224, 224, 3], "datatype": "UINT8",
             "parameters": {"binary_data_size": 301056}}], "outputs": [{"name": "features"}]}<301,056 bytes>
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from app.api.inference_schemas import BinaryData, InferenceAnswer, InferenceCall, InputTensor, OutputTensor
from app.engines.base import FEATURES, PROBABILITIES
from app.errors import InvalidParameter, LimitExceeded, MalformedRequest
from app.repository.manifest import faults_of
from app.serving.model import LoadedModel
from app.serving.postprocess import top_k
from app.serving.results import Outputs

ROWS, FILES = "rows", "files"
HEADER = "inference-header-content-length"  # the length of the JSON where bytes stand behind it
MAX_HEADER_BYTES = 64 * 1024
MAX_JSON_BYTES = 1024 * 1024  # numbers as text: reading them holds up every other request, 10 ms for so many
# Writing an answer holds up every other request as well: 20 ms for so much.
MAX_WRITTEN, MAX_NAMED = 200_000, 20_000
# Some thirty names and texts make a request; to say of each of 100,000 that it is unknown would take 0.15 s.
_MOST_QUOTES = 400
ELEMENT_HEAD = struct.Struct("<I")  # an element of a BYTES tensor: its length, then its bytes


@dataclass(frozen=True)
class Wish:
    """An output that the caller wants: as binary data or in JSON, and of how many classes if those are to be named."""

    name: str
    binary: bool
    classes: int | None = None


@dataclass(frozen=True)
class InferenceRequest:
    """What a caller wants of a model.

    Attributes:
        id: to be repeated in the answer.
        kind: "rows", uint8 of the model's geometry, or "files" that have yet to be decoded.
        count: how many of them.
        nbytes: of the binary data that follows; 0 where `rows` are here already.
        rows: uint8 [count, *row_shape] that came in JSON.
        timeout_s: what the caller bears, from the arrival of the request on; None leaves it to the server.
        wishes: the outputs, in the order of the answer.
    """

    id: str | None
    kind: Literal["rows", "files"]
    count: int
    nbytes: int
    rows: NDArray[np.uint8] | None
    timeout_s: float | None
    wishes: tuple[Wish, ...]

    @property
    def with_features(self) -> bool:
        return any(wish.name == FEATURES for wish in self.wishes)


def outputs_of(model: LoadedModel) -> dict[str, int]:
    """What a model gives for a row, by name: how many float32."""
    outputs = {PROBABILITIES: model.manifest.num_classes}
    return outputs | {FEATURES: model.feature_dim} if model.feature_dim else outputs


def parse_request(text: bytes, model: LoadedModel, *, binary_follows: bool) -> InferenceRequest:
    """Read the JSON of a request.

    Args:
        binary_follows: whether tensors may come as bytes behind it.

    Raises:
        MalformedRequest: it is not of the protocol's form.
        InvalidParameter: it asks for what the model does not take or give.
        LimitExceeded: the answer would take too long to write.
    """
    if text.count(b'"') > _MOST_QUOTES:
        raise MalformedRequest("the request's JSON has more names and texts than the Open Inference Protocol knows")
    try:
        call = InferenceCall.model_validate_json(text)
    except ValidationError as error:
        faults = faults_of(error, "the JSON")
        raise MalformedRequest(f"the request is not as the Open Inference Protocol has it: {faults}") from None
    if call.inputs[0].parameters.binary_data_size is not None and not binary_follows:
        raise MalformedRequest(
            "binary_data_size was given without the header Inference-Header-Content-Length, the length of the JSON"
        )
    return _request_of(call, model)


def _request_of(call: InferenceCall, model: LoadedModel) -> InferenceRequest:
    tensor = call.inputs[0]
    if (tensor.name, tensor.datatype) == (FILES, "BYTES"):
        kind, count = FILES, _count_files(tensor)
    elif (tensor.name, tensor.datatype) == (ROWS, "UINT8"):
        kind, count = ROWS, _count_rows(tensor, model)
    else:
        raise InvalidParameter(
            f"the input is {tensor.name[:40]!r} of {tensor.datatype[:20]}; {model.name} takes {ROWS!r} of UINT8, "
            f"[n, {_listed(model.row_shape)}], or {FILES!r} of BYTES, [n]"
        )
    nbytes, rows = tensor.parameters.binary_data_size, None
    if (nbytes is None) == (tensor.data is None):
        raise MalformedRequest("an input has either data, or binary_data_size and its bytes behind the JSON")
    if tensor.data is not None:
        rows = _rows_in_json(tensor.data, kind, (count, *model.row_shape))
    elif kind == ROWS and nbytes != count * model.row_nbytes:
        raise MalformedRequest(f"binary_data_size is {nbytes}, but the shape has {count * model.row_nbytes} bytes")
    timeout_us = call.parameters.timeout
    return InferenceRequest(
        id=call.id,
        kind="files" if kind == FILES else "rows",
        count=count,
        nbytes=nbytes or 0,
        rows=rows,
        timeout_s=None if timeout_us is None else timeout_us / 1e6,
        wishes=_wishes(call, model, count),
    )


def _count_rows(tensor: InputTensor, model: LoadedModel) -> int:
    count, *shape = tensor.shape or [0]
    if not count or tuple(shape) != model.row_shape:
        raise InvalidParameter(
            f"the shape of {ROWS} is [{_listed(tensor.shape)}]; {model.name} takes [n, {_listed(model.row_shape)}]"
        )
    return count


def _count_files(tensor: InputTensor) -> int:
    # [n, 1] is how Triton shapes a batch of single elements.
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]) or not tensor.shape[0]:
        raise InvalidParameter(f"the shape of {FILES} is [{_listed(tensor.shape)}]; it must be [n] or [n, 1]")
    return tensor.shape[0]


def _rows_in_json(data: list[Any], kind: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if kind == FILES:
        raise InvalidParameter(
            f"{FILES} come as binary data (binary_data_size, and Inference-Header-Content-Length); "
            "as base64 in JSON, send images to /classify/image"
        )
    size = math.prod(shape)
    flat: list[Any] | None = data
    while flat and isinstance(flat[0], list):
        lengths = {len(part) if isinstance(part, list) else None for part in flat}
        flat = list(itertools.chain.from_iterable(flat)) if len(lengths) == 1 else None
    # Not by numpy's leave: of one long text among many short ones it would make an array of gigabytes.
    if not flat or len(flat) != size or set(map(type, flat)) != {int} or min(flat) < 0 or max(flat) > 255:
        raise MalformedRequest(
            f"the data of {ROWS} are not {size} whole numbers from 0 to 255, in one list or nested by shape"
        )
    return np.frombuffer(bytes(flat), np.uint8).reshape(shape)


def _wishes(call: InferenceCall, model: LoadedModel, count: int) -> tuple[Wish, ...]:
    given, usual = outputs_of(model), call.parameters.binary_data_output
    wishes = [] if call.outputs else [Wish(name, usual) for name in given]
    for output in call.outputs:
        if output.name not in given:
            raise InvalidParameter(
                f"{model.name} on {model.engine.name} gives no output {output.name[:40]!r}, only {', '.join(given)}"
            )
        binary, classes = output.parameters.binary_data, output.parameters.classification
        if classes is not None and output.name != PROBABILITIES:
            raise InvalidParameter(f"classification goes with {PROBABILITIES} alone")
        wishes.append(Wish(output.name, usual if binary is None else binary, classes))
    named = sum(count * min(wish.classes, given[wish.name]) for wish in wishes if wish.classes)
    written = sum(count * given[wish.name] for wish in wishes if not wish.classes and not wish.binary)
    if named > MAX_NAMED or written > MAX_WRITTEN:
        raise LimitExceeded(
            f"the answer would have {written:,} numbers in its JSON and {named:,} named classes; up to {MAX_WRITTEN:,} "
            f"and {MAX_NAMED:,} are given. Ask for binary_data, or send fewer rows"
        )
    return tuple(wishes)


@dataclass(frozen=True)
class _AnswerTensor:
    """An output as it was wished for: float32 [n, width], or the names of classes, [n, classes]."""

    wish: Wish
    values: NDArray[np.float32]
    names: tuple[tuple[str, ...], ...] | None

    @property
    def datatype(self) -> Literal["FP32", "BYTES"]:
        return "FP32" if self.names is None else "BYTES"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape if self.names is None else (len(self.names), len(self.names[0]))

    def listed(self) -> list[float] | list[str]:
        """As JSON has it, row after row."""
        return self.values.ravel().tolist() if self.names is None else [name for row in self.names for name in row]

    def binary(self) -> bytes:
        """As bytes: little-endian float32, or each name with its length before it."""
        if self.names is None:
            return self.values.astype("<f4", copy=False).tobytes()
        return bytes_tensor(name.encode() for row in self.names for name in row)


def _answer_tensors(request: InferenceRequest, model: LoadedModel, answers: Sequence[Outputs]) -> list[_AnswerTensor]:
    """What was wished for. `answers` are of all rows together, or one of a single row for each file."""
    tensors = []
    for wish in request.wishes:
        parts = [answer.features if wish.name == FEATURES else answer.probabilities for answer in answers]
        values = np.concatenate([part for part in parts if part is not None])  # [n, width]
        names = None if wish.classes is None else _named(values, wish.classes, model.labels)
        tensors.append(_AnswerTensor(wish, values, names))
    return tensors


def encode_answer(request: InferenceRequest, model: LoadedModel, answers: Sequence[Outputs]) -> tuple[bytes, int]:
    """The body of an answer, and how much of it is JSON; outputs that were wished for as bytes stand behind that."""
    tensors: list[OutputTensor] = []
    blobs: list[bytes] = []
    for each in _answer_tensors(request, model, answers):
        data = size = None
        if each.wish.binary:
            blobs.append(each.binary())
            size = BinaryData(binary_data_size=len(blobs[-1]))
        else:
            data = each.listed()
        name, datatype, shape = each.wish.name, each.datatype, each.shape
        tensors.append(OutputTensor(name=name, datatype=datatype, shape=shape, parameters=size, data=data))
    answer = InferenceAnswer(
        model_name=model.name, model_version=str(model.version), id=request.id, outputs=tuple(tensors)
    )
    text = answer.model_dump_json(exclude_none=True).encode()
    return b"".join([text, *blobs]), len(text)


def _named(probabilities: NDArray[np.float32], classes: int, labels: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Of each row the likeliest classes as Triton writes them: value, index and label."""
    return tuple(
        tuple(f"{value:f}:{index}:{labels[index]}" for index, value in top_k(row, classes)) for row in probabilities
    )


def bytes_tensor(elements: Iterable[bytes]) -> bytes:
    """The binary data of a BYTES tensor."""
    return b"".join(ELEMENT_HEAD.pack(len(element)) + element for element in elements)


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape[:8]))
