"""The parts that classify: what settings make of them, and the start's loading of the models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app import core
from app.core import create_core, load_models
from app.engines.factory import EngineOptions
from app.media.limits import MediaLimits
from app.serving.deployment import ServingOptions
from app.serving.registry import ModelRegistry
from app.serving.service import ServiceDefaults
from app.settings import Settings
from app.telemetry.metrics import Metrics

MakePackage = Callable[..., Path]


def states_after_start(root: Path, metrics: Metrics) -> dict[str, str]:
    engine = EngineOptions(name="onnxruntime", threads=1, max_batch=4)
    registry = ModelRegistry(root, engine, ServingOptions(warmup_budget_s=0.05))
    try:
        load_models(root, registry, metrics)
        return {status.name: status.state for status in registry.models()}
    finally:
        registry.close(10.0)


@pytest.mark.parametrize("text", ['{"schema_version": ' + "1" * 5000 + "}", "[" * 200_000])
def test_a_manifest_that_python_cannot_hold_costs_its_own_model_alone(make_package: MakePackage, text: str) -> None:
    root = make_package("good")
    make_package("bad")
    (root / "bad" / "1" / "model.json").write_text(text)
    metrics = Metrics()
    assert states_after_start(root, metrics) == {"bad": "failed", "good": "ready"}
    exposition, _ = metrics.render("")
    assert b'hiera_rows_total{model="good"} 0.0' in exposition


def test_metrics_that_cannot_be_told_of_the_models_keep_none_from_serving(
    make_package: MakePackage, caplog: pytest.LogCaptureFixture
) -> None:
    class Deaf(Metrics):
        def expect_models(self, models: Iterable[tuple[str, str]]) -> None:
            raise RuntimeError("a fault of ours")

    root = make_package("good")
    assert states_after_start(root, Deaf()) == {"good": "ready"}
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.name == "hiera.server"


def test_without_settings_the_parts_are_what_they_are_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults stand with the settings, for their documentation, and with the parts, for those who use these alone."""
    given: dict[str, Any] = {}

    def noting(part: str) -> Callable[..., None]:
        return lambda *args, **named: given.update({part: named | {type(arg).__name__: arg for arg in args}})

    for part in ("ModelRegistry", "MediaPool", "Service"):
        monkeypatch.setattr(core, part, noting(part))
    create_core(Settings(engine_cache_folder=None), Metrics())
    assert given["ModelRegistry"]["EngineOptions"] == EngineOptions()
    assert given["ModelRegistry"]["ServingOptions"] == ServingOptions()
    assert given["MediaPool"]["limits"] == MediaLimits()
    defaults = given["Service"]["ServiceDefaults"]
    assert replace(defaults, image_workers=1, video_workers=1) == ServiceDefaults()  # the machine's
