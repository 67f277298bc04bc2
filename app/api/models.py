"""`GET /models` and `GET /models/{name}`: what is loaded, by what engine, at what cost, under which licence."""

from __future__ import annotations

import re
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from app.api.schemas import Accuracy, BatchCost, Engine, EngineTrial, ModelDetail, ModelEntry, Models
from app.errors import UnknownModel
from app.serving.model import LoadedModel
from app.serving.status import ModelStatus

# "OpenVINO 2026.1.0-18 on …": which version of a library serves is for the log; strangers may read /models.
_VERSION = re.compile(r" v?\d+\.\d[^\s,;]*")


class ModelList(Protocol):
    """Who knows the models: the registry."""

    def models(self) -> list[ModelStatus]: ...


class ModelEndpoints:
    """Reads the registry on every call: states change while the server runs."""

    def __init__(self, registry: ModelList) -> None:
        self._registry = registry

    async def list_models(self, request: Request) -> Response:
        """Every package, by name."""
        listing = Models(models=tuple(model_entry(status) for status in self._registry.models()))
        return Response(listing.model_dump_json(), media_type="application/json")

    async def show_model(self, request: Request) -> Response:
        """One package, with its labels.

        Raises:
            UnknownModel: there is none of that name.
        """
        status = find_model(self._registry, request.path_params["name"])
        labels = status.model.labels if status.model is not None else None
        detail = ModelDetail(**_fields(status), labels=labels)
        return Response(detail.model_dump_json(), media_type="application/json")


def find_model(registry: ModelList, name: str) -> ModelStatus:
    """The package of a name. Raises UnknownModel: there is none."""
    status = next((each for each in registry.models() if each.name == name), None)
    if status is None:
        raise UnknownModel(f"there is no model named {name[:128]}; /models lists them")
    return status


def model_entry(status: ModelStatus) -> ModelEntry:
    """What the wire and the command line say of a package."""
    return ModelEntry(**_fields(status))


def _fields(status: ModelStatus) -> dict[str, Any]:
    manifest, model = status.manifest, status.model
    fields: dict[str, Any] = {
        "name": status.name,
        "version": status.version,
        "state": status.state,
        "reason": status.reason,
        "default": status.default,
        "noop": model is not None and model.identity.noop,
        "precision": model.engine.precision if model else None,
        "engine": _engine(model) if model else None,
        "batch_curve": _curve(model) if model else (),
        "useful_batch_rows": model.curve.useful_rows if model else None,
        "instances": model.instances if model else None,
        "feature_dim": model.feature_dim if model else None,
        "queue_rows": status.queue_rows,
        "accuracy": (),
    }
    if manifest is None:
        unknown = ("task", "description", "variant", "demo", "random_weights", "classes", "input_shape", "parameters")
        return fields | dict.fromkeys((*unknown, "weights", "licence", "commercial_use"))
    return fields | {
        "task": manifest.task,
        "description": manifest.description,
        "variant": manifest.variant,
        "demo": manifest.demo,
        "random_weights": manifest.random_weights,
        "classes": manifest.num_classes,
        "input_shape": manifest.row_shape,
        "parameters": manifest.parameters,
        "weights": manifest.weights.source,
        "licence": manifest.weights.licence,
        "commercial_use": manifest.weights.commercial_use,
        "accuracy": tuple(Accuracy(dataset=each.dataset, top1=each.top1, how=each.how) for each in manifest.accuracy),
    }


def _engine(model: LoadedModel) -> Engine:
    info, choice = model.engine, model.choice
    return Engine(
        name=info.name,
        precision=info.precision,
        device=info.device,
        detail=_VERSION.sub("", info.detail),
        chosen=choice.reason,
        trials=tuple(
            EngineTrial(
                engine=trial.engine,
                milliseconds=None if trial.seconds is None else _ms(trial.seconds),
                detail=trial.detail,
            )
            for trial in choice.trials
        ),
    )


def _curve(model: LoadedModel) -> tuple[BatchCost, ...]:
    curve = model.curve
    return tuple(
        BatchCost(rows=rows, milliseconds=_ms(seconds)) for rows, seconds in zip(curve.rows, curve.seconds, strict=True)
    )


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 4)
