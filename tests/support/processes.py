"""Processes of this machine, seen from outside (Linux's /proc)."""

from __future__ import annotations

import gc
import re
from pathlib import Path


def children(parent: int) -> frozenset[int]:
    """Process ids of the children of `parent`, dead ones that nobody has reaped included."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found.add(int(folder.name))
    return frozenset(found)


def descendants(ancestor: int) -> frozenset[int]:
    """Process ids of all that `ancestor` started, and they, and so on."""
    found = children(ancestor)
    return found.union(*(descendants(pid) for pid in found))


def media_workers(server: int) -> frozenset[int]:
    """Process ids of the workers that decode for `server`."""
    return frozenset(pid for pid in descendants(server) if name_of(pid).startswith("media-"))


def open_descriptors() -> int:
    """How many descriptors this process holds, without those that earlier tests have left to the garbage collector."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def name_of(pid: int) -> str:
    """What the process calls itself; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def resident_bytes(pid: int) -> int:
    """Memory that the process has in RAM."""
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int) -> int:
    """The most memory that the process ever had in RAM."""
    return _status_bytes(pid, "VmHWM")


def _status_bytes(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
