"""The start's loading of the models, and what must not keep it from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from app.core import load_models
from app.engines.factory import EngineOptions
from app.serving.deployment import ServingOptions
from app.serving.registry import ModelRegistry
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
