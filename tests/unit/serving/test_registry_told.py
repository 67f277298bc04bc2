"""What telemetry and readiness are told of models that come, go, fail and hang."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time

import numpy as np
import pytest
from registry_scenes import WATCHFUL, MakePackage, MakeRegistry, answer, status_of, stop_the_first_engine
from serving_fakes import PATIENCE_S, FakeRows, Gate

from app.errors import ChangeRefused, EngineError, Unavailable
from app.serving.observer import SilentObserver
from app.serving.submission import Terms
from app.telemetry.metrics import Metrics


def ready_series(metrics: Metrics) -> dict[str, float]:
    """What is said of each version of `model`."""
    text, _ = metrics.render("")
    found = re.findall(r'^hiera_model_ready{model="model",version="(\d+)"} (.*)$', text.decode(), re.MULTILINE)
    return {version: float(value) for version, value in found}


def test_what_telemetry_hears_of_a_swap_and_an_unload(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    metrics = Metrics()
    make_package("model", 1)
    registry = make_registry(observer=metrics)
    registry.load_all()

    def versions(family: str) -> list[str]:
        text, _ = metrics.render("")
        return sorted(re.findall(rf'^{family}{{.*version="(\d+)".*}} 1.0$', text.decode(), re.MULTILINE))

    def one_row() -> float | None:
        return metrics.registry.get_sample_value("hiera_batch_cost_seconds", {"model": "model", "rows": "1"})

    assert versions("hiera_model_ready") == versions("hiera_engine_info") == ["1"]
    make_package("model", 2)
    registry.load("model")
    assert versions("hiera_model_ready") == versions("hiera_engine_info") == ["2"]
    assert one_row() is not None  # what the old version takes with it was there before the new one's
    answer(registry)
    registry.unload("model")
    text, _ = metrics.render("")
    left = {line.partition("{")[0] for line in text.decode().splitlines() if 'model="model"' in line}
    assert not left & {"hiera_model_ready", "hiera_engine_info", "hiera_batch_cost_seconds", "hiera_queue_rows"}
    assert "hiera_rows_total" in left


def test_telemetry_hears_of_a_model_that_was_refused(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    metrics = Metrics()
    root = make_package("model", 1, wrong_golden=True)
    make_package("model", 2, wrong_golden=True)
    registry = make_registry(observer=metrics)
    registry.load_all()
    assert ready_series(metrics) == {"2": 0}
    make_package("model", 3)
    registry.load("model")
    assert ready_series(metrics) == {"3": 1}
    make_package("model", 4, wrong_golden=True)
    with pytest.raises(ChangeRefused):
        registry.load("model")  # 3 serves on
    assert ready_series(metrics) == {"3": 1}
    registry.unload("model")
    with pytest.raises(ChangeRefused):
        registry.load("model", 1)
    assert ready_series(metrics) == {"1": 0}
    registry.unload("model")
    assert ready_series(metrics) == {}
    shutil.rmtree(root / "model")


def test_telemetry_hears_of_the_version_that_took_the_place_of_a_refused_one(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    metrics = Metrics()
    make_package("model", 1)
    make_package("model", 2, wrong_golden=True)
    registry = make_registry(observer=metrics)
    registry.load_all()
    assert ready_series(metrics) == {"1": 1}


def test_the_queue_of_the_version_before_does_not_stay_in_the_metrics(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, serving = Gate(), threading.Event()
    stop_the_first_engine(gate, serving, monkeypatch)
    metrics = Metrics()
    make_package("model", 1)
    registry = make_registry(observer=metrics)
    registry.load_all()
    serving.set()
    callers = [threading.Thread(target=answer, args=(registry,)) for _ in range(3)]
    callers[0].start()
    gate.wait_entered()  # the others wait behind it
    for caller in callers[1:]:
        caller.start()

    def queue() -> float | None:
        return metrics.registry.get_sample_value("hiera_queue_rows", {"model": "model"})

    end = time.monotonic() + PATIENCE_S
    while queue() != 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert queue() == 2
    make_package("model", 2)
    swap = threading.Thread(target=registry.load, args=("model",))
    swap.start()
    while status_of(registry, "model").version != 2 and time.monotonic() < end:
        time.sleep(0.001)
    gate.open()
    for thread in (*callers, swap):
        thread.join(PATIENCE_S)
    assert queue() == 0


def test_a_stuck_engine_makes_the_model_unready_until_it_is_rebuilt(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, stuck, rebuilding = Gate(), threading.Event(), Gate()
    readiness: list[bool] = []

    class Watcher(SilentObserver):
        def model_ready(self, model: str, version: int, ready: bool) -> None:
            readiness.append(ready)

    make_package("model")
    stop_the_first_engine(gate, stuck, monkeypatch, others=rebuilding)
    registry = make_registry(options=WATCHFUL, observer=Watcher())
    registry.load_all()
    assert answer(registry) >= 0
    stuck.set()
    model = registry.get("image", None)
    rows = FakeRows(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(Exception, match="the engine stopped answering"):
        asyncio.run(model.dispatcher.infer(rows, Terms(time.monotonic() + PATIENCE_S)))
    model.release()
    assert "being rebuilt" in (registry.unready_reason() or "")
    with pytest.raises(Unavailable, match="being restarted"):
        registry.get("image", None)
    rebuilding.open()
    end = time.monotonic() + PATIENCE_S
    while readiness != [True, False, True] and time.monotonic() < end:
        time.sleep(0.001)
    assert readiness == [True, False, True]
    assert registry.unready_reason() is None
    assert answer(registry) >= 0
    assert registry.hopeless_reason() is None
    gate.open()


def test_an_engine_that_hangs_while_its_version_is_drained_is_given_up(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, stuck = Gate(), threading.Event()
    stop_the_first_engine(gate, stuck, monkeypatch)
    make_package("model", 1)
    registry = make_registry(options=WATCHFUL)
    registry.load_all()
    held = registry.get("image", "model")
    make_package("model", 2)
    swap = threading.Thread(target=registry.load, args=("model",))
    swap.start()
    end = time.monotonic() + PATIENCE_S
    while status_of(registry, "model").version != 2 and time.monotonic() < end:
        time.sleep(0.001)
    stuck.set()
    rows = FakeRows(np.zeros((1, 8, 8, 3), np.uint8))
    try:
        with pytest.raises(EngineError, match="the engine stopped answering"):
            asyncio.run(held.dispatcher.infer(rows, Terms(time.monotonic() + PATIENCE_S)))
    finally:
        held.release()
        gate.open()
    swap.join(PATIENCE_S)
    assert not swap.is_alive()


def test_telemetry_hears_of_an_unload_before_the_last_request_is_answered(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    gone = threading.Event()

    class Watcher(SilentObserver):
        def version_gone(self, model: str, version: int) -> None:
            gone.set()

    make_package("model")
    registry = make_registry(observer=Watcher())
    registry.load_all()
    held = registry.get("image", "model")
    unload = threading.Thread(target=registry.unload, args=("model",))
    unload.start()
    try:
        assert gone.wait(PATIENCE_S)
        assert unload.is_alive()
    finally:
        held.release()
    unload.join(PATIENCE_S)
    assert not unload.is_alive()
