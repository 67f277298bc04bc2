"""What the engine host and its HTTP workers say to each other, as frames of `app.serving.channel`.

    HTTP worker                                     engine host
    SUBMIT rows of a file, with their memory  ──▶   maps them, submits them to the model's batcher
    CANCEL                                    ──▶
                                              ◀──   ANSWER | FAILURE     once, unless cancelled
                                              ◀──   RELEASE              once: no engine reads the rows any more
    SERVING                                   ──▶   from now on connections may come
                                              ◀──   CONNECTION           an accepted socket
                                              ◀──   TABLE, STATE         the models; how they are
                                              ◀──   PROBE                every second, and at a scrape
    PULSE how the worker is, its metrics      ──▶
    DROPPED a model that it has done with     ──▶
    SCRAPE                                    ──▶
    ORDER to change the models                ──▶
                                              ◀──   REPLY | REFUSAL      to an order once all workers saw the models
                                              ◀──   PHASE                of the drain

The host trusts no worker further than it must: what comes from there is fixed structs and JSON, bounded and checked.
TABLE and STATE are pickled; they travel only from the process that started the workers.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from app import errors
from app.engines.base import EngineInfo
from app.errors import EngineError, HieraError, Overloaded
from app.repository.manifest import Manifest
from app.serving.curve import BatchCurve
from app.serving.model import EngineChoice
from app.serving.results import Task
from app.serving.submission import Inference, Terms


class Kind(IntEnum):
    SUBMIT = 1
    CANCEL = 2
    SERVING = 3
    PULSE = 4
    DROPPED = 5
    SCRAPE = 6
    ORDER = 7
    ANSWER = 10
    FAILURE = 11
    RELEASE = 12
    CONNECTION = 13
    TABLE = 14
    STATE = 15
    PROBE = 16
    PHASE = 17
    REPLY = 18
    REFUSAL = 19


class Phase(IntEnum):
    """The steps of a drain: say not ready; take no more requests; drop what is not finished."""

    DRAIN = 1
    STOP = 2
    DROP = 3


NUMBER = struct.Struct("<Q")
_SUBMIT = struct.Struct("<QII?d??")
_ANSWER = struct.Struct("<QIIIIdd")


class SubmitHeader(NamedTuple):
    """Rows that are to be classified.

    Attributes:
        number: the worker's, for the answer.
        key: of the model, from the table.
        rows: how many.
        reused: whether the memory will hold other rows later.
        terms: the deadline is by the clock that the processes share.
    """

    number: int
    key: int
    rows: int
    reused: bool
    terms: Terms


@dataclass(frozen=True)
class LoadedRecord:
    """A model that answers. `key` is never used again for another one."""

    key: int
    labels: tuple[str, ...]
    engine: EngineInfo
    choice: EngineChoice
    curve: BatchCurve
    instances: int
    feature_dim: int


@dataclass(frozen=True)
class ModelRecord:
    """A package as the host's registry shows it. `refusal` is the encoded error for who asks for it; None if it
    answers."""

    name: str
    version: int
    state: str
    reason: str | None
    manifest: Manifest | None
    default: bool
    loaded: LoadedRecord | None
    refusal: bytes | None


@dataclass(frozen=True)
class Table:
    """All models. `defaults` has the name that answers a task, or the encoded error when none does."""

    models: tuple[ModelRecord, ...]
    defaults: dict[Task, str | bytes]


@dataclass(frozen=True)
class State:
    """What changes from second to second. `live` has the correction of the cost and the waiting rows by model."""

    unready_reason: str | None
    hopeless_reason: str | None
    live: dict[str, tuple[float, int]]


def encode_submit(header: SubmitHeader) -> bytes:
    terms = header.terms
    fixed = _SUBMIT.pack(
        header.number, header.key, header.rows, header.reused, terms.deadline, terms.with_features, terms.averaged
    )
    return fixed + terms.caller.encode()


def decode_submit(payload: bytes) -> SubmitHeader:
    """Raises struct.error or UnicodeDecodeError when it is none."""
    number, key, rows, reused, deadline, with_features, averaged = _SUBMIT.unpack_from(payload)
    terms = Terms(deadline, payload[_SUBMIT.size :].decode(), with_features, averaged)
    return SubmitHeader(number, key, rows, reused, terms)


def encode_answer(number: int, inference: Inference) -> bytes:
    rows, classes = inference.probabilities.shape
    features = inference.features
    width = 0 if features is None else features.shape[1]
    head = _ANSWER.pack(number, rows, classes, width, inference.batch_rows, inference.queue_s, inference.inference_s)
    parts = [inference.probabilities] if features is None else [inference.probabilities, features]
    return b"".join([head, *(part.astype(np.float32, copy=False).tobytes() for part in parts)])


def decode_answer(payload: bytes) -> tuple[int, Inference]:
    number, rows, classes, width, batch_rows, queue_s, inference_s = _ANSWER.unpack_from(payload)
    values = np.frombuffer(payload, np.float32, rows * (classes + width), _ANSWER.size)
    probabilities = values[: rows * classes].reshape(rows, classes)
    features = values[rows * classes :].reshape(rows, width) if width else None
    return number, Inference(probabilities, queue_s, inference_s, batch_rows, features)


def encode_error(error: HieraError) -> bytes:
    record: dict[str, object] = {"error": type(error).__name__, "message": str(error), "code": error.code}
    if isinstance(error, Overloaded):
        record["retry_after_s"] = error.retry_after_s
    return json.dumps(record).encode()


def decode_error(payload: bytes) -> HieraError:
    """The same domain exception; an unknown one becomes an `EngineError`."""
    record = json.loads(payload)
    kind = getattr(errors, record["error"], None)
    if kind is Overloaded:
        return Overloaded(record["message"], retry_after_s=record["retry_after_s"], code=record["code"])
    if isinstance(kind, type) and issubclass(kind, HieraError):
        error: HieraError = kind(record["message"], code=record["code"])
        return error
    return EngineError(record["message"])
