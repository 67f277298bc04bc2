"""What a server holds: the memory, descriptors and processes of its whole tree, and what its own metrics say. Linux."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.load.processes import media_workers, process_tree, pss_bytes, resident_bytes

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Census:
    """One count.

    Attributes:
        pss_mib: proportional set sizes of all processes together; `server_rss_mib`: resident size of the first.
        descriptors: of the first process.
        media_workers, processes: alive.
        queue_rows: rows that wait for an engine.
        busy_workers: media workers that hold a job.
        in_flight_rows: rows that admission holds room for.
        rows_classified, restarts, cancelled, rejected: counted since the start, the latter by reason or stage.
    """

    pss_mib: float
    server_rss_mib: float
    descriptors: int
    processes: int
    media_workers: int
    queue_rows: int
    busy_workers: int
    in_flight_rows: int
    rows_classified: int
    restarts: dict[str, int]
    cancelled: dict[str, int]
    rejected: dict[str, int]


def take_census(pid: int, url: str) -> Census:
    """Count a server that answers at `url`, whose first process is `pid`."""
    samples = _samples(url)
    tree = process_tree(pid)
    return Census(
        pss_mib=sum(map(pss_bytes, tree)) / MEBIBYTE,
        server_rss_mib=resident_bytes(pid) / MEBIBYTE,
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        processes=len(tree),
        media_workers=len(media_workers(pid)),
        queue_rows=round(_sum(samples, "hiera_queue_rows")),
        busy_workers=round(_sum(samples, "hiera_media_workers", state="busy")),
        rows_classified=round(_sum(samples, "hiera_rows_total")),
        in_flight_rows=round(_sum(samples, "hiera_in_flight_rows")),
        restarts=_by(samples, "hiera_media_worker_restarts_total", "reason"),
        cancelled=_by(samples, "hiera_cancelled_total", "stage"),
        rejected=_by(samples, "hiera_rejected_total", "reason"),
    )


def settle(pid: int, url: str, calm_s: float, patience_s: float = 60.0) -> Census:
    """Wait for `calm_s` and until nothing is at work, at most `patience_s` more, and count."""
    time.sleep(calm_s)
    until_s = time.monotonic() + patience_s
    while True:
        census = take_census(pid, url)
        if time.monotonic() > until_s or not (census.in_flight_rows or census.busy_workers):
            return census
        time.sleep(0.5)


def _samples(url: str) -> list[tuple[str, dict[str, str], float]]:
    text = httpx.get(f"{url}/metrics", timeout=30).text
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def _sum(samples: list[tuple[str, dict[str, str], float]], name: str, **labels: str) -> float:
    return sum(value for found, of, value in samples if found == name and labels.items() <= of.items())


def _by(samples: list[tuple[str, dict[str, str], float]], name: str, label: str) -> dict[str, int]:
    values = {labels[label] for found, labels, _ in samples if found == name}
    sums = {value: round(_sum(samples, name, **{label: value})) for value in sorted(values)}
    return {value: count for value, count in sums.items() if count}
