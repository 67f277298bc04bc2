"""The query strings of the classification routes: parsed strictly, documented from the same table.

A parameter that is not known is refused with a suggestion, for `topk=1` silently ignored is a wrong answer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from app.errors import InvalidParameter
from app.repository.manifest import NAME
from app.serving.results import ClassifyOptions, Task

MAX_TOP_K = 1000
CROPS = (1, 3)
_INTEGER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class QueryLimits:
    """The largest values that a caller may ask for."""

    max_timeout_ms: int
    max_clips: int


@dataclass(frozen=True)
class _Parameter:
    name: str
    schema: Mapping[str, Any]
    description: str


def parameters(task: Task, limits: QueryLimits) -> list[dict[str, Any]]:
    """The OpenAPI parameter objects of a task's classification route."""
    return [
        {
            "name": parameter.name,
            "in": "query",
            "required": False,
            "description": parameter.description,
            "schema": dict(parameter.schema),
        }
        for parameter in _parameters(task, limits)
    ]


class QueryParser:
    """Reads the query string of one task's route."""

    def __init__(self, task: Task, limits: QueryLimits) -> None:
        self._schemas = {parameter.name: parameter.schema for parameter in _parameters(task, limits)}
        self._task = task

    def parse(self, query: bytes) -> ClassifyOptions:
        """Turn the raw query string into options.

        Raises:
            InvalidParameter: a parameter is unknown, repeated, not of its type or out of its range.
        """
        if not query:
            return ClassifyOptions()
        values: dict[str, Any] = {}
        for field in query.split(b"&"):
            if not field:
                continue
            raw_name, _, raw_value = field.partition(b"=")
            name = _decoded(raw_name)
            schema = self._schemas.get(name)
            if schema is None:
                raise InvalidParameter(self._unknown(name))
            if name in values:
                raise InvalidParameter(f"the parameter {name} was given twice")
            values[name] = _value(name, _decoded(raw_value), schema)
        return ClassifyOptions(**values)

    def _unknown(self, name: str) -> str:
        shown = name[:40]
        if self._task == "image" and name in ("clips", "crops"):
            return f"the parameter {shown} is for videos; images are sent to /classify/image without it"
        near = difflib.get_close_matches(shown.lower().replace("-", "_"), self._schemas, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self._schemas)}"
        return f"unknown parameter {shown!r}; {hint}"


def _parameters(task: Task, limits: QueryLimits) -> list[_Parameter]:
    common = [
        _Parameter(
            "model",
            {"type": "string", "pattern": NAME},
            "A name from /models; the task's default answers.",
        ),
        _Parameter(
            "top_k",
            {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5},
            "How many classes to name, the most probable first; at most as many as the model has.",
        ),
        _Parameter(
            "timeout_ms",
            {"type": "integer", "minimum": 1, "maximum": limits.max_timeout_ms},
            "Milliseconds from the start of the upload to the answer; later, the work is dropped (504).",
        ),
        _Parameter(
            "features",
            {"type": "boolean", "default": False},
            "Whether to add the features (the embedding) that the classifier read.",
        ),
    ]
    if task == "image":
        return common
    return [
        *common,
        _Parameter(
            "clips",
            {"type": "integer", "minimum": 1, "maximum": limits.max_clips, "default": 1},
            "Temporal views, spread evenly over the video.",
        ),
        _Parameter(
            "crops",
            {"type": "integer", "enum": list(CROPS), "default": 1},
            "Spatial views of each clip: 1 (centre) or 3.",
        ),
    ]


def _value(name: str, text: str, schema: Mapping[str, Any]) -> int | str | bool:
    if schema["type"] == "string":
        if re.fullmatch(NAME, text) is None:
            raise InvalidParameter(f"{name} is not a model's name; /models lists them")
        return text
    if schema["type"] == "boolean":
        if text not in ("true", "false"):
            raise InvalidParameter(f"{name} is {text[:20]!r}, but must be true or false")
        return text == "true"
    number = int(text) if _INTEGER.fullmatch(text) else None
    if "enum" in schema:
        if number not in schema["enum"]:
            raise InvalidParameter(f"{name} is {text[:20]!r}, but must be {' or '.join(map(str, schema['enum']))}")
        return int(text)
    low, high = schema["minimum"], schema["maximum"]
    if number is None or not low <= number <= high:
        raise InvalidParameter(f"{name} is {text[:20]!r}, but must be a whole number from {low} to {high}")
    return number


def _decoded(raw: bytes) -> str:
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidParameter("the query string is not UTF-8") from error
