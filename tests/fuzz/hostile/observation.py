"""A server process from outside: its workers, descriptors, memory and gauges, and whether it has let go of all."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from running_server import RunningServer

from app.load.processes import media_workers, resident_bytes
from app.media.shared import KEPT_BUFFERS

_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)
_KEPT_ROWS_PER_WORKER = 2 * KEPT_BUFFERS  # by design; Python's mmap doubles the descriptor of each


@dataclass(frozen=True)
class State:
    """What a server holds at a moment.

    Attributes:
        workers: process ids of the media workers.
        descriptors: open ones, by what they are.
        resident_bytes: of the server process itself.
        restarts: media workers replaced so far, by reason.
        in_flight: rows and bytes that admission counts.
        busy: workers that are not idle.
    """

    workers: frozenset[int]
    descriptors: Mapping[str, int]
    resident_bytes: int
    restarts: Mapping[str, int]
    in_flight: tuple[float, float]
    busy: float


def observe(server: RunningServer) -> State:
    pid = server.process.pid
    metrics = {
        (name, labels): float(value)
        for name, labels, value in _SAMPLE.findall(httpx.get(f"{server.url}/metrics", timeout=30).text)
    }

    def by_label(family: str) -> dict[str, float]:
        return {labels.split('"')[1]: value for (name, labels), value in metrics.items() if name == family}

    states = by_label("hiera_media_workers")
    return State(
        workers=frozenset(media_workers(pid)),
        descriptors=_descriptors(pid),
        resident_bytes=resident_bytes(pid),
        restarts={why: int(count) for why, count in by_label("hiera_media_worker_restarts_total").items() if count},
        in_flight=(metrics["hiera_in_flight_rows", ""], metrics["hiera_in_flight_bytes", ""]),
        busy=states["busy"] + states["starting"],
    )


def settle(server: RunningServer, before: State, patience_s: float = 60.0) -> tuple[State, list[str]]:
    """Wait until the server holds no more than `before`; its state then, and what is still more."""
    end = time.monotonic() + patience_s
    while True:
        now = observe(server)
        left = leaks(before, now)
        if not left or time.monotonic() > end:
            return now, left
        time.sleep(0.1)


def leaks(before: State, now: State) -> list[str]:
    """What a server that was idle `before` and should be idle `now` holds on to."""
    found = []
    if now.in_flight != (0, 0):
        found.append(f"rows and bytes in flight: {now.in_flight}")
    if now.busy:
        found.append(f"{now.busy:g} workers are not idle")
    if len(now.workers) != len(before.workers):
        found.append(f"{len(now.workers)} processes instead of {len(before.workers)}")
    replaced = len(now.workers - before.workers)
    counted = sum(now.restarts.values()) - sum(before.restarts.values())
    if replaced > counted:
        found.append(f"{replaced} workers are others, but {counted} restarts were counted")
    kept_rows = _KEPT_ROWS_PER_WORKER * len(before.workers)
    for kind, count in now.descriptors.items():
        if count > (kept_rows if kind == "memfd:rows" else before.descriptors.get(kind, 0)):
            found.append(f"{count} descriptors of {kind} instead of {before.descriptors.get(kind, 0)}")
    return found


def _descriptors(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{entry}")
        except FileNotFoundError:
            continue
        found[re.sub(r":\[\d+\]$|^/(?=memfd)| \(deleted\)$", "", target)] += 1
    return found
