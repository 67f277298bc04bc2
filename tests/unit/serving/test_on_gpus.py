"""Serving on GPUs, with their real engine over devices whose memory is the host's: several, none, and staging."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from cuda.bindings import runtime
from host_device import HostDevice
from serving_fakes import PATIENCE_S, FakeEngine, Gate, Listener, classes_of, deliver_here, flat_curve, rows_of

from app.engines import gpu
from app.engines.base import Rows
from app.engines.factory import EngineOptions
from app.serving.batcher import Batcher
from app.serving.curve import CostModel
from app.serving.deployment import ServingOptions
from app.serving.instance import Instance
from app.serving.observer import SilentObserver
from app.serving.registry import ModelRegistry
from app.serving.submission import Terms

MakePackage = Callable[..., Path]
Status = runtime.cudaError_t


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[HostDevice]]:
    """A machine with two GPUs and a CUDA build of ONNX Runtime; each device that was opened, by name."""
    opened: dict[str, list[HostDevice]] = {}

    def open_device(device: str) -> HostDevice:
        name = "cuda:0" if device == "cuda" else device
        opened.setdefault(name, []).append(HostDevice(architecture="sm_90", name=name))
        return opened[name][-1]

    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (Status.cudaSuccess, 2))
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(gpu, "CudaDevice", open_device)
    return opened


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., ModelRegistry]]:
    made: list[ModelRegistry] = []

    def load(engine: EngineOptions, instances: int = 0) -> ModelRegistry:
        options = ServingOptions(instances=instances, warmup_budget_s=0.5)
        made.append(ModelRegistry(tmp_path / "repo", engine, options))
        made[-1].load_all()
        return made[-1]

    yield load
    for registry in made:
        registry.close(PATIENCE_S)


def classify(registry: ModelRegistry, rows: Rows) -> list[int]:
    model = registry.get("image", None)
    try:
        inference = asyncio.run(model.dispatcher.infer(_Lease(rows), Terms(math.inf)))
    finally:
        model.release()
    return [int(best) for best in inference.probabilities.argmax(axis=1)]


class _Lease:
    fd = -1
    reused = False

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def close(self) -> None:
        """The test keeps them."""


@pytest.mark.parametrize(
    ("setting", "instances", "expected"), [("cuda:0,cuda:1", 0, 2), ("cuda:1", 2, 2), ("cuda", 0, 1)]
)
def test_every_named_gpu_gets_its_instances(
    devices: dict[str, list[HostDevice]],
    load: Callable[..., ModelRegistry],
    make_package: MakePackage,
    setting: str,
    instances: int,
    expected: int,
) -> None:
    make_package("model")
    registry = load(EngineOptions("onnxruntime", device=setting, max_batch=4), instances)
    assert registry.unready_reason() is None
    [status] = registry.models()
    assert status.model is not None
    assert status.model.instances == expected
    named = "cuda:0" if setting == "cuda" else setting
    assert status.model.engine.device == named
    working = [device for name in named.split(",") for device in devices[name] if device.held]
    assert len(working) == expected
    golden = np.load(make_golden(registry))
    assert classify(registry, golden["rows"]) == golden["probabilities"].argmax(axis=1).tolist()
    registry.close(PATIENCE_S)
    assert not any(device.held for opened in devices.values() for device in opened)


def make_golden(registry: ModelRegistry) -> Path:
    return registry._root / "model" / "1" / "golden.npz"


@pytest.mark.usefixtures("devices")
def test_auto_on_a_gpu_machine_tries_all_that_there_is_and_says_why_tensorrt_was_not_it(
    load: Callable[..., ModelRegistry], make_package: MakePackage
) -> None:
    make_package("model")
    [status] = load(EngineOptions("auto", max_batch=4)).models()
    assert status.model is not None
    trials = {trial.engine: trial for trial in status.model.choice.trials}
    assert set(trials) == {"tensorrt", "openvino", "onnxruntime"}
    assert "run hiera-export tensorrt" in trials["tensorrt"].detail
    timed = {name: trial.seconds for name, trial in trials.items() if trial.seconds is not None}
    assert status.model.choice.engine == min(timed, key=lambda name: timed[name] or math.inf)


@pytest.mark.usefixtures("devices")
def test_a_missing_plan_is_the_reason_that_readiness_gives(
    load: Callable[..., ModelRegistry], make_package: MakePackage
) -> None:
    make_package("model")
    registry = load(EngineOptions("tensorrt", max_batch=4))
    said = registry.unready_reason() or ""
    assert said.startswith("no model could be loaded: no TensorRT plan for sm_90")
    assert "run hiera-export tensorrt" in said
    assert "run hiera-export tensorrt" in (registry.models()[0].reason or "")


def test_a_missing_driver_is_the_reason_that_readiness_gives_once_for_all_models(
    load: Callable[..., ModelRegistry], make_package: MakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (Status.cudaErrorInsufficientDriver, 0))
    monkeypatch.setattr(runtime, "cudaDriverGetVersion", lambda: (Status.cudaSuccess, 0))
    make_package("one")
    make_package("two")
    registry = load(EngineOptions("onnxruntime", device="cuda"))
    assert (registry.unready_reason() or "").count("there is no NVIDIA driver here") == 1


def test_a_package_that_is_broken_is_no_matter_of_the_machine(
    load: Callable[..., ModelRegistry], make_package: MakePackage
) -> None:
    make_package("model", wrong_golden=True)
    assert load(EngineOptions("onnxruntime", device="cpu")).unready_reason() == "no model could be loaded"


class Stages(FakeEngine):
    """Keeps what was staged, and by which thread."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate, device="cuda:0")
        self.staged: list[tuple[list[int], str]] = []
        self.next_is_staged = threading.Event()

    def stage(self, rows: Rows) -> None:
        self.staged.append(([int(row.flat[0]) for row in rows], threading.current_thread().name))
        if len(self.staged) == 2:
            self.next_is_staged.set()


def test_the_next_batch_is_staged_while_one_runs() -> None:
    gate = Gate()
    engine = Stages(gate)
    batcher = Batcher(max_rows=100, deliver=deliver_here, predict_s=lambda rows: 0.0)
    cost = CostModel(flat_curve(2))
    instance = Instance("model", engine, batcher, cost, SilentObserver(), prove=lambda engine: None)
    instance.start()
    listeners = [Listener() for _ in range(3)]
    batcher.submit(rows_of(1), Terms(math.inf), listeners[0])
    gate.wait_entered()
    for mark, listener in zip((2, 3), listeners[1:], strict=True):
        batcher.submit(rows_of(mark), Terms(math.inf), listener)
    assert engine.next_is_staged.wait(PATIENCE_S)
    assert engine.batches == [[1]]  # still running
    gate.open()
    assert [classes_of(listener.inference())[0] for listener in listeners] == [1, 2, 3]
    assert [marks for marks, _ in engine.staged] == engine.batches == [[1], [2, 3]]
    assert {thread for _, thread in engine.staged} == {"gather-model"}
    batcher.close()
    instance.stop()
    assert instance.join(PATIENCE_S)
