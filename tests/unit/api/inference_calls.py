"""Requests of the Open Inference Protocol, by hand, and a model to send them to."""

from __future__ import annotations

import json
import struct
from typing import Any, cast

from app.api.tensors import InferenceRequest, parse_request
from app.engines.base import EngineInfo
from app.repository.manifest import Manifest, Preprocessing, Sampling, Weights
from app.serving.curve import BatchCurve, CostModel
from app.serving.dispatcher import Dispatcher
from app.serving.model import EngineChoice, LoadedModel
from app.serving.results import Task

ROW_SHAPE = (2, 2, 3)
ROW_BYTES = 12


def model_of(task: Task = "image", *, features: bool = True) -> LoadedModel:
    """A model of the three classes a, b: c and d; of its features it gives 2, or none."""
    manifest = Manifest(
        name="m",
        version=3,
        task=task,
        variant="none",
        description="for tests",
        num_classes=3,
        feature_dim=2,
        parameters=1,
        precision="fp32",
        preprocessing=Preprocessing(
            resize_short_side=2, height=2, width=2, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
        ),
        sampling=Sampling(frames=4) if task == "video" else None,
        weights=Weights(source="a test", licence="none", commercial_use=True),
        files={},
        tools={},
    )
    return LoadedModel(
        manifest,
        ("a", "b: c", "d"),
        engine=EngineInfo("fake", "fp32", "cpu"),
        choice=EngineChoice("fake", "for tests"),
        cost=CostModel(BatchCurve((1,), (0.01,))),
        dispatcher=cast(Dispatcher, None),  # nothing is run
        feature_dim=2 if features else 0,
    )


MODEL = model_of()


def rows(data: Any = None, *, count: int = 1, **more: Any) -> dict[str, Any]:
    """The input `rows` with its numbers in JSON, from 0 on unless they are given."""
    numbers = [number % 256 for number in range(count * ROW_BYTES)] if data is None else data
    return {"name": "rows", "shape": [count, *ROW_SHAPE], "datatype": "UINT8", "data": numbers} | more


def binary_rows(count: int = 1, nbytes: int | None = None, **more: Any) -> dict[str, Any]:
    """The input `rows` whose bytes stand behind the JSON."""
    size = {"binary_data_size": count * ROW_BYTES if nbytes is None else nbytes}
    return {"name": "rows", "shape": [count, *ROW_SHAPE], "datatype": "UINT8", "parameters": size} | more


def files(count: int, nbytes: int, **more: Any) -> dict[str, Any]:
    """The input `files` whose elements stand behind the JSON."""
    return {
        "name": "files", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": nbytes}
    } | more  # fmt: skip


def elements(*contents: bytes) -> bytes:
    """A BYTES tensor."""
    return b"".join(struct.pack("<I", len(content)) + content for content in contents)


def text_of(tensor: dict[str, Any], **more: Any) -> bytes:
    """The JSON of a request with this input."""
    return json.dumps({"inputs": [tensor], **more}).encode()


def parse(text: bytes, model: LoadedModel = MODEL, *, binary_follows: bool = True) -> InferenceRequest:
    return parse_request(text, model, binary_follows=binary_follows)


def wanted(tensor: dict[str, Any], model: LoadedModel = MODEL, **more: Any) -> InferenceRequest:
    """What a request with this input wants."""
    return parse(text_of(tensor, **more), model)
