"""Engines on NVIDIA GPUs as the factory wants them: what is missing for one, how each is built, what identifies it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from app.engines.base import Engine, Graph
from app.engines.cuda import CudaDevice, why_no_gpu
from app.engines.plans import PLAN, PlanKey, file_sha256, find_plan, record_file
from app.engines.trt import FLAVOURS, INSTALL, installed_flavours, load_bindings
from app.errors import EngineUnavailable


def missing(name: str, device: str) -> list[str]:
    """What keeps an engine from a device, each fault with its remedy; nothing where it can be had.

    Args:
        name: "onnxruntime", "openvino" or "tensorrt".
        device: "auto", "cpu", "cuda" or "cuda:N", or several of the latter.
    """
    wants_gpu = device.startswith("cuda")
    if name == "tensorrt":
        if device == "cpu":
            return ["TensorRT runs on NVIDIA GPUs alone: leave HIERA_ENGINE_DEVICE at auto, or name cuda"]
        not_installed = [] if installed_flavours() else [f"neither {' nor '.join(FLAVOURS)} is installed: {INSTALL}"]
        return not_installed + _no_gpu()
    if importlib.util.find_spec(name) is None:
        return [f"the package {name} is not installed: pip install 'hiera-serve[{'gpu' if wants_gpu else 'cpu'}]'"]
    if not wants_gpu:
        return []
    if name == "openvino":
        return ["OpenVINO is used on CPUs alone: leave HIERA_ENGINE_DEVICE at auto, or name cpu"]
    return _no_gpu() + _no_cuda_provider()


def runs_on_gpu(name: str, device: str) -> bool:
    """Whether an engine goes to a GPU: where one is asked for, or is there and "auto" leaves the choice."""
    if name == "tensorrt":
        return True
    return name == "onnxruntime" and (device.startswith("cuda") or (device == "auto" and not missing(name, "cuda")))


def open_gpu(device: str) -> CudaDevice:
    """The GPU that a setting names; the first for "auto". Raises EngineUnavailable, in plain words."""
    return CudaDevice("cuda" if device == "auto" else device)


def gpu_identity(name: str, graph: Path, device: str) -> str:
    """What a measurement on a GPU is valid for: its model, and the plans that there were; "" on a CPU."""
    if not runs_on_gpu(name, device) or why_no_gpu() is not None:
        return ""
    gpu = open_gpu(device)
    known = [gpu.architecture, gpu.description]
    if name == "tensorrt":
        records = map(record_file, sorted(graph.parent.glob(f"*{PLAN}")))
        known += [file_sha256(record) for record in records if record.is_file()]
    return " ".join(known)


def build_onnxruntime(graph: Graph, *, max_batch: int, device: str) -> Engine:
    """Raises EngineUnavailable, PackageError or EngineOutOfMemory."""
    _refuse(_no_gpu() + _no_cuda_provider())
    from app.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine

    return OnnxRuntimeCudaEngine(graph, max_batch=max_batch, device=open_gpu(device))


def build_tensorrt(graph: Graph, *, max_batch: int, device: str) -> Engine:
    """The plan for this GPU, by the first TensorRT here that has one.

    Raises EngineUnavailable (naming the command that makes the plan), PackageError or EngineOutOfMemory.
    """
    _refuse(missing("tensorrt", device))
    from app.engines.tensorrt import TensorRtEngine

    gpu = open_gpu(device)
    faults: list[str] = []
    for flavour in installed_flavours():
        try:
            trt = load_bindings(flavour)
            plan, record = find_plan(graph.path, PlanKey(gpu.architecture, flavour, str(trt.__version__)))
        except EngineUnavailable as error:
            faults.append(str(error))
            continue
        shape, classes = graph.row_shape, graph.classes
        return TensorRtEngine(plan, record, trt, row_shape=shape, classes=classes, max_batch=max_batch, device=gpu)
    raise EngineUnavailable("; ".join(faults))


def _no_gpu() -> list[str]:
    why = why_no_gpu()
    return [why] if why else []


def _no_cuda_provider() -> list[str]:
    from app.engines.onnxruntime_cuda import require_cuda_provider

    try:
        require_cuda_provider()
    except EngineUnavailable as error:
        return [str(error)]
    return []


def _refuse(faults: list[str]) -> None:
    if faults:
        raise EngineUnavailable("; ".join(faults))
