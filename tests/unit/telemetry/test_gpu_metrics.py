"""GPUs in the metrics: over a double of NVML that has the real one's names, and over the real one without a driver."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.gpu import GAUGES, GpuCollector, watch_gpus

Samples = dict[tuple[str, str, str], float]


class Nvml:
    """Two GPUs, of which the second tells nothing of its power, and a third that is lost. The names are NVML's own."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU
    utilisation = 87

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return 100 + index

    def nvmlDeviceGetName(self, handle: int) -> Any:
        return b"NVIDIA H200" if handle == 100 else "NVIDIA L4"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=self.utilisation, memory=3)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=1000, free=600, used=400)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 101:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 412_500

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        assert sensor == 0
        return 61


def samples(registry: CollectorRegistry) -> Samples:
    return {
        (sample.name, sample.labels["gpu"], sample.labels["name"]): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_each_gpu_tells_what_it_can_in_base_units() -> None:
    registry = CollectorRegistry()
    registry.register(GpuCollector(Nvml()))
    first, second = ("0", "NVIDIA H200"), ("1", "NVIDIA L4")
    assert samples(registry) == {
        ("hiera_gpu_utilization_ratio", *first): 0.87,
        ("hiera_gpu_utilization_ratio", *second): 0.87,
        ("hiera_gpu_memory_used_bytes", *first): 400,
        ("hiera_gpu_memory_used_bytes", *second): 400,
        ("hiera_gpu_memory_total_bytes", *first): 1000,
        ("hiera_gpu_memory_total_bytes", *second): 1000,
        ("hiera_gpu_power_watts", *first): 412.5,
        ("hiera_gpu_temperature_celsius", *first): 61,
        ("hiera_gpu_temperature_celsius", *second): 61,
    }


def test_every_scrape_reads_anew() -> None:
    nvml, registry = Nvml(), CollectorRegistry()
    registry.register(GpuCollector(nvml))
    assert samples(registry)[("hiera_gpu_utilization_ratio", "0", "NVIDIA H200")] == 0.87
    nvml.utilisation = 12
    assert samples(registry)[("hiera_gpu_utilization_ratio", "0", "NVIDIA H200")] == 0.12


def test_the_double_has_no_name_that_nvml_has_not() -> None:
    names = [name for name in vars(Nvml) if name.startswith(("nvml", "NVML"))]
    assert len(names) == 9
    assert all(hasattr(pynvml, name) for name in names)


def test_where_the_drivers_library_is_missing_there_is_no_series(monkeypatch: pytest.MonkeyPatch) -> None:
    # The real package; on a machine with a driver the library is kept from it.
    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", no_library)
    registry = CollectorRegistry()
    watch_gpus(registry)
    assert samples(registry) == {}
    assert generate_latest(registry).count(b"# TYPE hiera_gpu_") == len(GAUGES)


def test_where_the_driver_does_not_say_how_many_there_are_there_is_no_series(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown() -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", unknown)
    registry = CollectorRegistry()
    watch_gpus(registry)
    assert samples(registry) == {}
    (line,) = caplog.messages
    assert line.startswith("no GPU metrics")


def test_where_the_package_is_missing_there_is_no_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    registry = CollectorRegistry()
    watch_gpus(registry)
    assert samples(registry) == {}
