"""The Open Inference Protocol's JSON, as pydantic models that read it, write it and document it in OpenAPI.

Source: KServe's "Open Inference Protocol (V2)", and Triton's extensions to it for binary tensor data and
classification.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas import Problem

MOST_OUTPUTS, MOST_AXES = 2, 8
_INT64 = 2**63 - 1  # what the protocol's other wire, protobuf, holds


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class InferenceProblem(Problem):
    """An error, as RFC 9457 and the Open Inference Protocol write it."""

    error: str
    """The detail, where clients of that protocol look for it."""


class ServerMetadata(_Wire):
    """Who this is, and which extensions of the protocol are spoken."""

    name: str
    version: str
    """Of this interface, not of the software."""
    extensions: tuple[str, ...]


class TensorMetadata(_Wire):
    """A tensor; -1 stands for the number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(_Wire):
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class RequestParameters(_Wire):
    """Of a whole request."""

    binary_data_output: bool = False
    """Whether outputs come as bytes behind the JSON, where they do not say otherwise."""
    timeout: Annotated[int, Field(ge=1, le=_INT64)] | None = None
    """Microseconds from the start of the upload to the answer; later, the work is dropped (504)."""


class InputParameters(_Wire):
    """Of an input."""

    binary_data_size: Annotated[int, Field(ge=0, le=_INT64)] | None = None
    """How many bytes it has behind the JSON, whose length is the header Inference-Header-Content-Length."""


class OutputParameters(_Wire):
    """Of an output that is wanted."""

    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=1, le=_INT64)] | None = None
    """Of probabilities: the likeliest classes instead, so many, each as `value:index:label`."""


class InputTensor(_Wire):
    """Rows of pixels, or files that have yet to be decoded."""

    name: str
    """"rows", uint8 of the model's geometry, or "files", which come as bytes behind the JSON."""
    shape: Annotated[list[Annotated[int, Field(ge=0, le=_INT64)]], Field(max_length=MOST_AXES)]
    datatype: str
    """UINT8 for rows, BYTES for files."""
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None
    """Rows as whole numbers from 0 to 255, in one list or nested by shape."""


class OutputWanted(_Wire):
    """An output that is wanted."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferenceCall(_Wire):
    """A request to run a model. Without `outputs` it gives all that it has."""

    id: Annotated[str, Field(max_length=256)] | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[OutputWanted], Field(max_length=MOST_OUTPUTS)] = []


class BinaryData(_Wire):
    """How many bytes an output has behind the JSON."""

    binary_data_size: int


class OutputTensor(_Wire):
    """An output: in `data`, row after row, or as bytes behind the JSON."""

    name: str
    datatype: Literal["FP32", "BYTES"]
    shape: tuple[int, ...]
    parameters: BinaryData | None = None
    data: list[float] | list[str] | None = None


class InferenceAnswer(_Wire):
    """What a model gave."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: tuple[OutputTensor, ...]
