"""The table of a registry of real packages, which may change between two of the table's own looks at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serving_fakes import PATIENCE_S

from app.engines.factory import EngineOptions
from app.serving.deployment import ServingOptions
from app.serving.registry import ModelRegistry
from app.serving.status import ModelStatus
from app.serving.table import ModelTable

MakePackage = Callable[..., Path]


def test_a_model_that_is_swapped_in_during_a_look_stands_with_its_own_version_and_manifest(
    make_package: MakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_package("model", 1)
    engine = EngineOptions(name="onnxruntime", threads=1, max_batch=4)
    registry = ModelRegistry(root, engine, ServingOptions(warmup_budget_s=0.05))
    registry.load_all()
    table = ModelTable(registry)
    table.refresh()
    make_package("model", 2, seed=3)
    swap = threading.Thread(target=registry.load, args=("model",))
    models = registry.models

    def models_before_the_swap() -> list[ModelStatus]:
        statuses = models()
        monkeypatch.undo()
        swap.start()  # lasts until the table has let go of version 1
        end = time.monotonic() + PATIENCE_S
        while models()[0].version != 2 and time.monotonic() < end:
            time.sleep(0.001)
        return statuses

    monkeypatch.setattr(registry, "models", models_before_the_swap)
    try:
        table.refresh()
        assert table.table is not None
        (record,) = table.table.models
        assert record.loaded is not None
        served = table.models[record.loaded.key]
        assert (record.version, record.manifest) == (2, served.manifest)
    finally:
        table.close()
        swap.join(PATIENCE_S)
        registry.close(PATIENCE_S)
    assert not swap.is_alive()
