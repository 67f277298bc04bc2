"""The GPUs of this machine in the metrics, read through NVML at each scrape (the package nvidia-ml-py, extra `gpu`).

Without the package, the driver's library or a GPU there are no series: a CPU machine has nothing to say of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

LABELS = ("gpu", "name")
_Read = Callable[[Any, Any], float]
# Name, help, and how it is read of a device's handle through the module `pynvml`.
GAUGES: tuple[tuple[str, str, _Read], ...] = (
    (
        "hiera_gpu_utilization_ratio",
        "Share of the last moments in which a kernel ran, 0 to 1.",
        lambda nvml, handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
    ),
    (
        "hiera_gpu_memory_used_bytes",
        "Device memory in use, by all programs.",
        lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).used,
    ),
    (
        "hiera_gpu_memory_total_bytes",
        "Device memory.",
        lambda nvml, handle: nvml.nvmlDeviceGetMemoryInfo(handle).total,
    ),
    (
        "hiera_gpu_power_watts",
        "Power that the board draws.",
        lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    ),
    (
        "hiera_gpu_temperature_celsius",
        "Temperature of the chip.",
        lambda nvml, handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    ),
)


def watch_gpus(registry: CollectorRegistry) -> None:
    """Add the GPUs' gauges to a registry; of several processes on a machine, to that of one."""
    registry.register(GpuCollector(_start_nvml()))


class GpuCollector(Collector):
    """Reads every GPU that the process may see, at each collection: about a millisecond for each.

    Args:
        nvml: the module `pynvml`, initialised; None where there is nothing to read.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._devices: list[tuple[str, str, Any]] = [] if nvml is None else list(_devices(nvml))

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, documentation, read in GAUGES:
            family = GaugeMetricFamily(name, documentation, labels=LABELS)
            for index, title, handle in self._devices:
                try:
                    family.add_metric((index, title), read(self._nvml, handle))
                except self._nvml.NVMLError as error:
                    # Some cards and shares of cards do not tell everything.
                    logger.debug("GPU %s has no %s (%s)", index, name, error)
            yield family


def _devices(nvml: Any) -> Iterable[tuple[str, str, Any]]:
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        logger.warning("no GPU metrics: the driver answers, but not how many GPUs there are (%s)", error)
        return
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            title = nvml.nvmlDeviceGetName(handle)
        except nvml.NVMLError as error:
            logger.warning("GPU %d is left out of the metrics (%s)", index, error)
            continue
        yield str(index), title.decode() if isinstance(title, bytes) else title, handle


def _start_nvml() -> Any:
    """The module `pynvml`, initialised; None, and a line in the log, where it cannot be."""
    try:
        import pynvml
    except ImportError:
        logger.debug("no GPU metrics: the package nvidia-ml-py is not installed (extra `gpu`)")
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.debug("no GPU metrics: %s", error)
        return None
    return pynvml
