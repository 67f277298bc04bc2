"""Describes the GPUs that figures were measured on."""

from __future__ import annotations

from importlib import metadata

from app.engines.cuda import CudaDevice, gpu_count
from app.errors import EngineUnavailable

_PACKAGES = ("cuda-bindings", "onnxruntime-gpu", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx-cu13", "torch")


def describe_gpus() -> dict[str, object]:
    """Each GPU's name, memory and architecture, the driver, and the packages that use them; why there is none."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        devices = [CudaDevice(f"cuda:{index}") for index in range(gpu_count())]
    except EngineUnavailable as error:
        return {"none": str(error), "packages": packages}
    return {
        "gpus": [f"{device.description}, {device.architecture}" for device in devices],
        "driver": _driver(),
        "packages": packages,
    }


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception as error:  # whatever NVML has to say: a figure without a driver version is still one
        return f"unknown ({error})"
