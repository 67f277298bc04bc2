"""How many CPU cores this process may really use, and which machine it runs on."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path

_Quota = Callable[[Path], "float | None"]
_ARM_NAME = ("CPU implementer", "CPU part", "CPU variant")


def available_cpus(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores by affinity, and by the tightest CPU quota of the control groups above this process (version 2 or 1).

    A container with a quota of 1.5 cores on a 64-core machine sees 64 cores everywhere else. Quotas are rounded up; at
    least 1. The two folders are arguments for tests.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(proc, cgroup)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def machine_id(proc: Path = Path("/proc")) -> str:
    """What a measured batch cost is valid for: the CPU's name, its instructions, and the cores that may be used.

    The name does not tell the instructions, of which a virtual machine may hide some.
    """
    name, instructions = _cpu(proc)
    digest = hashlib.sha256(instructions.encode()).hexdigest()[:8]
    return f"{name} x{available_cpus()} {platform.machine()} {digest}"


def _cpu(proc: Path) -> tuple[str, str]:
    """The first core's name and its instructions, as Linux lists them for x86 ("flags") and Arm ("Features").

    Arm's cores have numbers for a name: who made it, and what it is.
    """
    fields: dict[str, str] = {}
    for line in (_read(proc / "cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    numbers = " ".join(fields[each] for each in _ARM_NAME if each in fields)
    name = fields.get("model name") or numbers or platform.processor()
    return name, fields.get("flags") or fields.get("Features", "")


def _quota(proc: Path, cgroup: Path) -> float | None:
    """The smallest quota in cores, None where there is none."""
    quotas: list[float] = []
    for line in (_read(proc / "self" / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += _climb(cgroup, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            quotas += _climb(cgroup / "cpu", path, _quota_v1) + _climb(cgroup / controllers, path, _quota_v1)
    return min(quotas, default=None)


def _climb(root: Path, path: str, quota: _Quota) -> list[float]:
    """Quotas of a group and of all above it. A container sees its own group as the root, whatever its path says."""
    folder = root / path.lstrip("/")
    folders = [folder, *folder.parents]
    return [cores for each in folders if each.is_relative_to(root) and (cores := quota(each)) is not None]


def _quota_v2(folder: Path) -> float | None:
    limit, _, period = (_read(folder / "cpu.max") or "max").strip().partition(" ")
    return None if limit == "max" else int(limit) / int(period or 100_000)


def _quota_v1(folder: Path) -> float | None:
    limit, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(limit) / int(period) if limit and period and int(limit) > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
