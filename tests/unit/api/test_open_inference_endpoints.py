"""What the Open Inference Protocol's endpoints do between looking at a model and being admitted to it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from asgi_double import Channel
from inference_calls import MODEL, model_of, rows, text_of
from starlette.requests import Request

from app.api.body import UploadPace
from app.api.classify import ClassifyBounds
from app.api.exchange import Exchange
from app.api.health import HealthEndpoints
from app.api.open_inference import OpenInferenceEndpoints
from app.api.query import QueryLimits
from app.api.uploads import UploadLimits
from app.errors import UnknownModel
from app.serving.demand import Arrival
from app.serving.model import LoadedModel
from app.serving.observer import SilentObserver
from app.serving.service import Service
from app.serving.status import ModelStatus

BOUNDS = ClassifyBounds(QueryLimits(60_000, 1), UploadLimits(1000, 2500, 4), UploadPace(1.0, 1.0, 1.0))


class Swapped:
    """A service whose model is another one by the time that a request is admitted; a ticket that is released."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.released = 0
        self.callers: list[str] = []

    def admit(self, arrival: Arrival) -> Swapped:
        self.callers.append(arrival.caller)
        return self

    def __enter__(self) -> Swapped:
        return self

    def __exit__(self, *why: object) -> None:
        self.released += 1


def test_a_version_that_was_swapped_meanwhile_is_not_answered_by_its_successor() -> None:
    manifest = MODEL.manifest.model_copy(update={"version": 4})
    successor = cast(LoadedModel, SimpleNamespace(name="m", version=4, manifest=manifest, row_shape=MODEL.row_shape))
    status = ModelStatus("m", 3, "ready", None, MODEL.manifest, model_of(), True, 0)
    service = Swapped(successor)
    endpoints = OpenInferenceEndpoints(
        SimpleNamespace(models=lambda: [status]),
        cast(HealthEndpoints, None),
        cast(Service, service),
        {"image": BOUNDS},
        SilentObserver(),
    )
    channel = Channel([text_of(rows())])
    scope: dict[str, Any] = channel.scope | {"path_params": {"name": "m", "version": "3"}}
    exchange = Exchange("r", None, open_inference=True)
    exchange.key = "alice"
    exchange.bind(scope)
    with pytest.raises(UnknownModel, match="m serves version 4, and no other"):
        asyncio.run(endpoints.infer(Request(scope, channel.receive)))
    assert service.released == 1
    assert service.callers == ["alice"]
