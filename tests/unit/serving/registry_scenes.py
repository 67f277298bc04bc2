"""What the tests of the registry share: how it is asked, and what holds its engines."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from serving_fakes import PATIENCE_S, FakeRows, Gate

from app.engines.base import Engine, Probabilities, Rows
from app.engines.factory import create_engine
from app.serving import proven
from app.serving.deployment import ServingOptions
from app.serving.registry import ModelRegistry
from app.serving.results import Task
from app.serving.status import ModelStatus
from app.serving.submission import Terms
from app.serving.supervisor import SupervisionOptions

MakePackage = Callable[..., Path]
MakeRegistry = Callable[..., ModelRegistry]
WATCHFUL = ServingOptions(
    warmup_budget_s=0.05,
    supervision=SupervisionOptions(interval_s=0.002, stuck_floor_s=0.5, stuck_factor=1, first_pause_s=0),
)


def status_of(registry: ModelRegistry, name: str) -> ModelStatus:
    (status,) = [status for status in registry.models() if status.name == name]
    return status


def stop_the_first_engine(
    gate: Gate, begins: threading.Event, monkeypatch: pytest.MonkeyPatch, others: Gate | None = None
) -> None:
    """Hold each run of the first engine that is made at the gate, once `begins` is set, and the making of `others`."""
    made = itertools.count()

    def create(name: str, *args: object) -> Engine:
        engine = create_engine(name, *args)  # type: ignore[arg-type]
        if next(made) == 0:
            inner = engine.run
            monkeypatch.setattr(engine, "run", lambda rows: held(inner, rows))
        elif others is not None:
            others([])
        return engine

    def held(run: Callable[[Rows], Probabilities], rows: Rows) -> Probabilities:
        if begins.is_set():
            gate([])
        return run(rows)

    monkeypatch.setattr(proven, "create_engine", create)


def answer(registry: ModelRegistry, name: str | None = None, colour: int = 0) -> int:
    """The class that a model names for a picture of one primary colour."""
    model = registry.get("image", name)
    try:
        rows = np.zeros((1, 8, 8, 3), np.uint8)
        rows[..., colour] = 255
        inference = asyncio.run(model.dispatcher.infer(FakeRows(rows), Terms(time.monotonic() + PATIENCE_S)))
        return int(inference.probabilities[0].argmax())
    finally:
        model.release()


def name_of(registry: ModelRegistry, task: Task) -> str:
    model = registry.get(task, None)
    model.release()
    return model.name
