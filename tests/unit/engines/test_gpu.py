"""What is said where a GPU, its driver or a package is missing, and what is chosen where there is one."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cuda.bindings import runtime
from host_device import HostDevice

from app.engines import cuda, gpu
from app.engines.base import Graph
from app.engines.cuda import CudaDevice, gpu_count, why_no_gpu
from app.engines.device import Device
from app.engines.factory import EngineOptions, candidates, create_engine, engine_identity, placements
from app.errors import EngineError, EngineLost, EngineOutOfMemory, EngineUnavailable

MakeGraph = Callable[..., Path]
Status = runtime.cudaError_t


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`found(status, gpus=…, driver=…)`: what CUDA's runtime reports of this machine."""

    def report(status: Any, gpus: int = 0, driver: int = 0) -> None:
        monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (status, gpus))
        monkeypatch.setattr(runtime, "cudaDriverGetVersion", lambda: (Status.cudaSuccess, driver))

    return report


@pytest.fixture
def one_gpu(found: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and a CUDA build of ONNX Runtime; its memory is the host's."""
    found(Status.cudaSuccess, gpus=1, driver=13000)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(gpu, "CudaDevice", lambda device: HostDevice(architecture="sm_90"))


@pytest.fixture
def no_gpu(found: Callable[..., None]) -> None:
    """A machine without a driver, which this one may well be."""
    found(Status.cudaErrorInsufficientDriver)


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in modules else find(name, *a))


def test_without_the_package_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "cuda")
    with pytest.raises(EngineUnavailable, match=r"cuda-bindings is not installed: pip install 'hiera-serve\[gpu\]'"):
        gpu_count()


def test_without_a_driver_that_is_said(found: Callable[..., None]) -> None:
    found(Status.cudaErrorInsufficientDriver, driver=0)
    assert "there is no NVIDIA driver here" in (why_no_gpu() or "")
    assert "--gpus all" in (why_no_gpu() or "")


def test_a_driver_that_is_too_old_is_said_with_both_versions(found: Callable[..., None]) -> None:
    found(Status.cudaErrorInsufficientDriver, driver=12040)
    assert "the NVIDIA driver is for CUDA 12.4 and too old for the runtime's 13." in (why_no_gpu() or "")


@pytest.mark.parametrize("status", [Status.cudaErrorNoDevice, Status.cudaSuccess])
def test_a_driver_that_shows_no_gpu_is_said(found: Callable[..., None], status: Any) -> None:
    found(status, gpus=0, driver=13000)
    assert "shows this process no GPU" in (why_no_gpu() or "")
    assert "CUDA_VISIBLE_DEVICES" in (why_no_gpu() or "")


def test_any_other_trouble_is_given_in_cudas_words(found: Callable[..., None]) -> None:
    found(Status.cudaErrorSystemNotReady, driver=13000)
    assert "cudaErrorSystemNotReady" in (why_no_gpu() or "")


def test_a_gpu_that_is_not_among_those_here_is_refused(found: Callable[..., None]) -> None:
    found(Status.cudaSuccess, gpus=2, driver=13000)
    assert why_no_gpu() is None
    with pytest.raises(EngineUnavailable, match="there is no GPU cuda:5 here, only cuda:0 to cuda:1"):
        CudaDevice("cuda:5")


def test_a_gpu_is_known_by_its_architecture_and_its_name(
    found: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found(Status.cudaSuccess, gpus=2, driver=13000)
    properties = SimpleNamespace(name=b"NVIDIA H200", major=9, minor=0, totalGlobalMem=140 * 2**30)
    monkeypatch.setattr(runtime, "cudaGetDeviceProperties", lambda index: (Status.cudaSuccess, properties))
    device = CudaDevice("cuda:1")
    assert (device.name, device.index, device.architecture) == ("cuda:1", 1, "sm_90")
    assert device.description == "NVIDIA H200, 140 GiB"


EVERY_CALL = """
import numpy as np
from types import SimpleNamespace
from cuda.bindings import runtime
from app.engines.cuda import CudaDevice
from app.errors import EngineError

success = runtime.cudaError_t.cudaSuccess
properties = SimpleNamespace(name=b"none", major=9, minor=0, totalGlobalMem=0)
runtime.cudaGetDeviceCount = lambda: (success, 1)
runtime.cudaGetDeviceProperties = lambda index: (success, properties)
device, host = CudaDevice("cuda"), np.zeros(16, np.uint8)
for name, arguments in {
    "use": (), "allocate": (16,), "free": (4096,), "pinned": (16,), "stream": (), "end_stream": (1,),
    "upload": (4096, host, 1), "download": (host, 4096, 1), "move": (4096, 8192, 16, 1), "event": (),
    "end_event": (1,), "mark": (1, 1), "wait": (1, 1), "synchronise": (1,), "record": (lambda: None, 1),
    "replay": (1, 1), "end_recorded": (1,),
}.items():
    try:
        getattr(device, name)(*arguments)
    except EngineError as error:
        print(name, error)
"""


def test_every_call_of_cuda_is_real_and_its_failure_an_engine_error() -> None:
    # Without a GPU each real call returns a status, which is what an error on a GPU looks like too; a call that
    # cuda-bindings does not have, or that takes other arguments, would raise something else. A process of its own,
    # because CUDA looks for GPUs once.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    ran = subprocess.run([sys.executable, "-c", EVERY_CALL], env=environment, capture_output=True, text=True)
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    methods = {name for name in vars(Device) if not name.startswith("_")}
    assert {line.split()[0] for line in lines} == methods
    assert all(re.search(r"cuda:0: cudaError(InsufficientDriver|NoDevice) \(", line) for line in lines)


def test_exhausted_memory_is_told_from_other_failures(
    found: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found(Status.cudaSuccess, gpus=1, driver=13000)
    properties = SimpleNamespace(name=b"small", major=8, minor=9, totalGlobalMem=0)
    monkeypatch.setattr(runtime, "cudaGetDeviceProperties", lambda index: (Status.cudaSuccess, properties))
    monkeypatch.setattr(runtime, "cudaMalloc", lambda nbytes: (Status.cudaErrorMemoryAllocation, None))
    with pytest.raises(EngineOutOfMemory, match="cuda:0 has no memory left"):
        CudaDevice("cuda").allocate(1)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.cudaErrorIllegalAddress, EngineLost),
        (Status.cudaErrorLaunchFailure, EngineLost),
        (Status.cudaErrorECCUncorrectable, EngineLost),
        (Status.cudaErrorInvalidValue, EngineError),
    ],
)
def test_what_cuda_does_not_recover_from_is_told_from_other_failures(
    found: Callable[..., None], monkeypatch: pytest.MonkeyPatch, status: Any, kind: type[EngineError]
) -> None:
    found(Status.cudaSuccess, gpus=1, driver=13000)
    properties = SimpleNamespace(name=b"a card", major=9, minor=0, totalGlobalMem=0)
    monkeypatch.setattr(runtime, "cudaGetDeviceProperties", lambda index: (Status.cudaSuccess, properties))
    monkeypatch.setattr(runtime, "cudaStreamSynchronize", lambda stream: (status,))
    with pytest.raises(EngineError, match=status.name) as failed:
        CudaDevice("cuda").synchronise(1)
    assert type(failed.value) is kind
    found(status, gpus=0)  # which is how a rebuild meets it
    with pytest.raises(EngineLost if kind is EngineLost else EngineUnavailable, match=status.name):
        gpu_count()


@pytest.fixture
def two_cards(found: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    found(Status.cudaSuccess, gpus=2, driver=13000)
    properties = SimpleNamespace(name=b"a card", major=9, minor=0, totalGlobalMem=0)
    monkeypatch.setattr(runtime, "cudaGetDeviceProperties", lambda index: (Status.cudaSuccess, properties))


@pytest.mark.usefixtures("two_cards")
def test_all_engines_on_a_device_share_its_lock_and_other_devices_have_theirs() -> None:
    first, same, other = CudaDevice("cuda:0"), CudaDevice("cuda"), CudaDevice("cuda:1")
    assert first.alone is same.alone
    assert first.alone is not other.alone
    with first.alone, first.alone, ThreadPoolExecutor(1) as pool:
        assert not pool.submit(same.alone.acquire, False).result()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize("fails", [False, True])
def test_no_garbage_is_collected_while_work_is_recorded(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    for name, answer in (
        ("cudaStreamBeginCapture", ()),
        ("cudaStreamEndCapture", (7,)),
        ("cudaGraphInstantiate", (8,)),
        ("cudaGraphDestroy", ()),
    ):
        monkeypatch.setattr(runtime, name, lambda *arguments, answer=answer: (Status.cudaSuccess, *answer))
    collects: list[bool] = []

    def work() -> None:
        collects.append(gc.isenabled())
        if fails:
            raise EngineError("a kernel failed")

    device = CudaDevice("cuda")
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(EngineError) if fails else nullcontext():
                assert device.record(work, 1) == 8
            assert gc.isenabled() is enabled
        finally:
            gc.enable()
    assert collects == [False, False]


def test_pinned_memory_lives_as_long_as_a_view_of_it() -> None:
    freed: list[int] = []
    memory = np.zeros(64, np.uint8)
    whole = np.asarray(cuda._Pinned(memory.ctypes.data, 64, freed.append))
    view = whole[8:16].reshape(2, 4)
    view[...] = 7
    del whole
    assert memory[8:16].tolist() == [7] * 8
    assert freed == []
    del view
    assert freed == [memory.ctypes.data]


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["tensorrt", "onnxruntime", "auto"])
def test_a_gpu_that_was_asked_for_and_is_not_here_is_said_before_anything_is_built(name: Any) -> None:
    with pytest.raises(EngineUnavailable) as refused:
        candidates(EngineOptions(name=name, device="cuda"))
    said = str(refused.value)
    assert said.startswith(f"HIERA_ENGINE={name}, HIERA_ENGINE_DEVICE=cuda: ")
    assert said.count("there is no NVIDIA driver here") == 1


@pytest.mark.usefixtures("no_gpu")
def test_tensorrt_without_its_package_names_both_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx")
    with pytest.raises(EngineUnavailable, match=r"neither tensorrt nor tensorrt_rtx is installed.*no NVIDIA driver"):
        candidates(EngineOptions(name="tensorrt"))


def test_tensorrt_on_the_cpu_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="NVIDIA GPUs alone"):
        candidates(EngineOptions(name="tensorrt", device="cpu"))


def test_openvino_on_a_gpu_is_refused() -> None:
    with pytest.raises(EngineUnavailable, match="CPUs alone"):
        candidates(EngineOptions(name="openvino", device="cuda"))


@pytest.mark.usefixtures("one_gpu")
def test_with_a_gpu_auto_tries_what_runs_on_it_and_the_cpu_too() -> None:
    assert candidates(EngineOptions()) == ["tensorrt", "openvino", "onnxruntime"]
    assert candidates(EngineOptions(device="cuda:0")) == ["tensorrt", "onnxruntime"]
    assert candidates(EngineOptions(device="cpu")) == ["openvino", "onnxruntime"]
    assert gpu.runs_on_gpu("onnxruntime", "auto")
    assert not gpu.runs_on_gpu("onnxruntime", "cpu")
    assert not gpu.runs_on_gpu("openvino", "auto")


@pytest.mark.usefixtures("one_gpu")
def test_with_a_gpu_and_no_plan_tensorrt_names_the_command(make_graph: MakeGraph) -> None:
    graph = make_graph()
    with pytest.raises(
        EngineUnavailable, match=rf"no TensorRT plan for sm_90.*run hiera-export tensorrt {graph.parent}"
    ):
        create_engine("tensorrt", Graph(graph, (8, 8, 3), 5, "fp32"), EngineOptions())


@pytest.mark.usefixtures("one_gpu")
def test_with_a_gpu_onnxruntime_goes_to_it(make_graph: MakeGraph) -> None:
    engine = create_engine("onnxruntime", Graph(make_graph(), (8, 8, 3), 5, "fp32"), EngineOptions())
    assert engine.info.device == "cuda:0"
    engine.close()


@pytest.mark.usefixtures("one_gpu")
def test_a_measurement_is_of_one_gpu_and_of_the_plans_that_there_were(make_graph: MakeGraph) -> None:
    graph = make_graph()
    before = engine_identity("tensorrt", graph, EngineOptions())
    assert "sm_90" in before
    assert "sm_90" not in engine_identity("onnxruntime", graph, EngineOptions(device="cpu"))
    (graph.parent / "sm_90-tensorrt-11.4.plan").write_bytes(b"")
    assert engine_identity("tensorrt", graph, EngineOptions()) == before  # without a record it is not one to load
    (graph.parent / "sm_90-tensorrt-11.4.plan.json").write_text("{}")
    assert engine_identity("tensorrt", graph, EngineOptions()) != before


def test_each_of_several_gpus_is_a_place_of_its_own() -> None:
    assert [each.device for each in placements(EngineOptions(device="cuda:0,cuda:2"))] == ["cuda:0", "cuda:2"]
    assert [each.device for each in placements(EngineOptions())] == ["auto"]
