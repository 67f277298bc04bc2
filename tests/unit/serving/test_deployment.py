"""Engines of a deployment that cannot begin, or begin again, are closed, and the model can be loaded anew."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_graph import add_features, features_in
from serving_fakes import PATIENCE_S, FakeRows

from app.engines.base import Engine, Probabilities, Rows
from app.engines.factory import EngineOptions, create_engine, create_streams
from app.errors import ChangeRefused, EngineError, EngineOutOfMemory
from app.repository.store import discover, open_package, sha256
from app.serving import deployment, proven
from app.serving.curve import BatchCurve, Sample, warm_up
from app.serving.deployment import Deployment, ServingOptions
from app.serving.measured import MeasuredStore
from app.serving.observer import SilentObserver
from app.serving.registry import ModelRegistry
from app.serving.submission import Terms
from app.serving.supervisor import SupervisionOptions

start_thread = threading.Thread.start


class Mortal:
    """An engine whose thread dies, or that has no room, when told to."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.fault: BaseException | None = None
        self.closed = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, rows: Rows) -> Probabilities:
        if self.fault is not None:
            raise self.fault
        return self.inner.run(rows)

    def close(self) -> None:
        self.closed.set()
        self.inner.close()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Mortal]:
    """The engines that are made, in their order."""
    engines: list[Mortal] = []

    def create(*args: Any) -> Engine:
        engines.append(Mortal(create_engine(*args)))
        return engines[-1]

    monkeypatch.setattr(proven, "create_engine", create)
    return engines


def lose_engine(registry: ModelRegistry, engine: Mortal) -> None:
    """Have the thread of the only model's engine die of a batch."""
    engine.fault = SystemExit()
    model = registry.get("image", None)
    with pytest.raises(EngineError):
        asyncio.run(
            model.dispatcher.infer(FakeRows(np.zeros((1, 8, 8, 3), np.uint8)), Terms(time.monotonic() + PATIENCE_S))
        )
    model.release()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])  # two alone, or two streams and the engine of all cores
def test_every_engine_is_closed_where_one_finds_no_thread_and_the_model_can_be_loaded_later(
    make_package: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    threads, closed = [0], list[Engine]()
    made: list[Engine] = []

    def watched(engine: Engine) -> Engine:
        close = engine.close

        def close_once() -> None:
            closed.append(engine)
            close()

        monkeypatch.setattr(engine, "close", close_once)
        made.append(engine)
        return engine

    def create(*args: Any) -> Engine:
        return watched(create_engine(*args))

    def create_side_by_side(*args: Any) -> list[Engine]:
        return [watched(stream) for stream in create_streams(*args)]

    def start(thread: threading.Thread) -> None:
        if thread.name == "engine-model":
            threads[0] += 1
            if threads[0] == 2:
                raise RuntimeError("can't start new thread")
        start_thread(thread)

    monkeypatch.setattr(proven, "create_engine", create)
    monkeypatch.setattr(proven, "create_streams", create_side_by_side)
    monkeypatch.setattr(threading.Thread, "start", start)
    make_package("model")
    options = EngineOptions(engine, threads=2, max_batch=2)  # type: ignore[arg-type] # one of its words
    registry = ModelRegistry(tmp_path / "repo", options, ServingOptions(instances=2, warmup_budget_s=0.05))
    with pytest.raises(ChangeRefused, match="can't start new thread"):
        registry.load("model")
    assert len(closed) == len(made) > 1
    assert {id(each) for each in closed} == {id(each) for each in made}
    assert not [thread for thread in threading.enumerate() if thread.name == "engine-model"]
    assert registry.load("model").outcome == "loaded"
    registry.close()


def test_an_engine_that_cannot_be_warmed_up_after_a_loss_is_closed_and_another_is_made(
    make_package: Callable[..., Path], tmp_path: Path, made: list[Mortal], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm_up_worse(engine: Engine, curve: BatchCurve, sample: Sample) -> None:
        if len(made) == 2:
            raise EngineOutOfMemory("another process has it")
        warm_up(engine, curve, sample)

    monkeypatch.setattr(deployment, "warm_up", warm_up_worse)
    make_package("model")
    watchful = SupervisionOptions(interval_s=0.002, first_pause_s=0.01)
    options = ServingOptions(warmup_budget_s=0.05, supervision=watchful)
    registry = ModelRegistry(tmp_path / "repo", EngineOptions("onnxruntime", threads=1, max_batch=2), options)
    registry.load_all()
    lose_engine(registry, made[0])
    end = time.monotonic() + PATIENCE_S
    while (len(made) < 3 or registry.unready_reason() is not None) and time.monotonic() < end:
        time.sleep(0.001)
    assert registry.unready_reason() is None
    assert [each.closed.is_set() for each in made] == [True, True, False]
    registry.close()


def test_a_model_whose_engine_waits_to_be_rebuilt_is_loaded_anew_though_its_package_has_not_changed(
    make_package: Callable[..., Path], tmp_path: Path, made: list[Mortal]
) -> None:
    make_package("model")
    options = ServingOptions(
        warmup_budget_s=0.05, supervision=SupervisionOptions(interval_s=0.002, first_pause_s=3600, longest_pause_s=3600)
    )
    registry = ModelRegistry(tmp_path / "repo", EngineOptions("onnxruntime", threads=1, max_batch=2), options)
    registry.load_all()
    assert registry.load("model").outcome == "unchanged"
    lose_engine(registry, made[0])
    end = time.monotonic() + PATIENCE_S
    while registry.unready_reason() is None and time.monotonic() < end:
        time.sleep(0.001)
    assert registry.unready_reason() is not None
    assert registry.load("model").outcome == "swapped"
    assert registry.unready_reason() is None
    registry.close()


def test_an_engine_that_is_back_as_its_version_is_withdrawn_leaves_no_word_of_it(
    make_package: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    asked, answer = threading.Event(), threading.Event()

    class Notes(SilentObserver):
        def model_ready(self, model: str, version: int, ready: bool) -> None:
            told.append("ready")

        def version_gone(self, model: str, version: int) -> None:
            told.append("gone")

    def slow_reason(self: Deployment) -> None:
        asked.set()
        assert answer.wait(PATIENCE_S)

    (path,) = discover(make_package("model"))
    options = EngineOptions(name="onnxruntime", threads=1, max_batch=2)
    served = Deployment(open_package(path), options, ServingOptions(), MeasuredStore(None), Notes())
    monkeypatch.setattr(Deployment, "unready_reason", property(slow_reason))
    told.clear()
    back = threading.Thread(target=served.announce_ready)
    back.start()
    assert asked.wait(PATIENCE_S)
    leaving = threading.Thread(target=served.withdraw)
    leaving.start()
    leaving.join(0.2)  # it waits for what is being told
    answer.set()
    back.join(PATIENCE_S)
    leaving.join(PATIENCE_S)
    served.close(PATIENCE_S)
    assert told == ["ready", "gone"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])  # two alone, or two streams and the engine of all cores
def test_a_model_says_how_wide_its_engines_features_are_and_gives_them(
    make_package: Callable[..., Path], tmp_path: Path, engine: str
) -> None:
    folder = make_package("model") / "model" / "1"
    graph = add_features(folder / "model.onnx")
    manifest = json.loads((folder / "model.json").read_text())
    manifest["files"]["model.onnx"] = sha256(graph)
    (folder / "model.json").write_text(json.dumps(manifest))
    make_package("plain")
    options = EngineOptions(engine, precision="fp32", threads=2, max_batch=2)  # type: ignore[arg-type] # one of its words
    registry = ModelRegistry(tmp_path / "repo", options, ServingOptions(instances=2, warmup_budget_s=0.05))
    registry.load_all()
    model, plain = registry.get("image", "model"), registry.get("image", "plain")
    assert (model.feature_dim, plain.feature_dim) == (3, 0)
    rows = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    deadline = time.monotonic() + PATIENCE_S
    inference = asyncio.run(model.dispatcher.infer(FakeRows(rows), Terms(deadline, with_features=True)))
    assert inference.features is not None
    np.testing.assert_allclose(inference.features, features_in(graph, rows), atol=1e-5)
    model.release()
    plain.release()
    registry.close(PATIENCE_S)
