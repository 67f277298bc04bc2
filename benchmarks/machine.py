"""Describes the machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from app.engines.cpus import available_cpus

_PACKAGES = (
    "fastapi",
    "uvicorn",
    "onnxruntime",
    "openvino",
    "numpy",
    "pillow",
    "simplejpeg",
    "cykooz-resizer",
    "av",
    "torch",
)
_MATRIX_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def describe_machine() -> dict[str, object]:
    """Model, cores, memory, instructions for matrices, system and the versions that matter; no names of hosts."""
    cpu = _fields(Path("/proc/cpuinfo"))
    memory = _fields(Path("/proc/meminfo"))
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cores": available_cpus(),
        "cpu_flags": [flag for flag in _MATRIX_FLAGS if flag in flags],
        "memory_gib": round(int(memory.get("MemTotal", "0 kB").split()[0]) / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "load_before": round(os.getloadavg()[0], 2),
    }


def _fields(path: Path) -> dict[str, str]:
    """The first value of each `name: value` line."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
