"""The processes of a server, seen from outside (Linux's /proc): which they are, and what memory they take.

Of a process that has ended meanwhile there is nothing to read: it counts as empty. One that ended and that nobody has
reaped is still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def read_proc(pid: int, name: str) -> bytes:
    """A file of a process below /proc; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def session_members(session: int) -> list[int]:
    """Process ids of a session."""
    return [pid for pid, _, other in _everyone() if other == session]


def process_tree(pid: int) -> list[int]:
    """`pid`, all that it started, and they, and so on."""
    parents = {child: parent for child, parent, _ in _everyone()}
    tree = [pid]
    for each in tree:
        tree += [child for child, parent in parents.items() if parent == each]
    return tree


def media_workers(pid: int) -> list[int]:
    """The processes below `pid` that decode."""
    return [each for each in process_tree(pid) if read_proc(each, "comm").startswith(b"media-")]


def pss_bytes(pid: int) -> int:
    """Proportional set size: pages that several processes share count once among them."""
    return _bytes(pid, "smaps_rollup", b"Pss:")


def resident_bytes(pid: int) -> int:
    """Memory that the process has in RAM."""
    return _bytes(pid, "status", b"VmRSS:")


def peak_resident_bytes(pid: int) -> int:
    """The most memory that the process ever had in RAM."""
    return _bytes(pid, "status", b"VmHWM:")


def _everyone() -> Iterator[tuple[int, int, int]]:
    """Process id, parent and session of all processes: proc(5), `stat`."""
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        fields = read_proc(pid, "stat").rpartition(b")")[2].split()
        if fields:
            yield pid, int(fields[1]), int(fields[3])


def _bytes(pid: int, name: str, field: bytes) -> int:
    lines = read_proc(pid, name).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)
