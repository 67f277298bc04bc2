"""What samples say: percentiles, rates, errors, and what the server itself adds."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.load.connection import LOST, TIMED_OUT
from app.load.generator import Samples, Workload

_DURATION = re.compile(rb"([a-z_]+);dur=(\d+\.?\d*|\.\d+)(?![\d.])")
_NAMES = {LOST: "no connection", TIMED_OUT: "no answer in time"}


@dataclass(frozen=True)
class Percentiles:
    """Of some durations, in milliseconds."""

    p50: float
    p90: float
    p99: float
    mean: float
    maximum: float


@dataclass(frozen=True)
class Summary:
    """One run, summed up. Durations are of answers with status 200 and in milliseconds.

    `overhead_ms` is what the caller waited beyond decoding and inference: HTTP, hand-overs, queue and network.
    `stages_ms` holds the medians of the Server-Timing header; both are empty for a server that sends none.
    """

    connections: int
    offered_per_s: float | None
    seconds: float
    answers: int
    succeeded: int
    throughput_per_s: float  # of successes
    latency_ms: Percentiles | None
    overhead_ms: Percentiles | None
    stages_ms: dict[str, float]
    errors: dict[str, int]
    generator_share: float  # of one core


def percentiles(milliseconds: NDArray[np.float64]) -> Percentiles | None:
    """None of nothing."""
    if milliseconds.size == 0:
        return None
    p50, p90, p99 = np.percentile(milliseconds, (50, 90, 99))
    return Percentiles(float(p50), float(p90), float(p99), float(milliseconds.mean()), float(milliseconds.max()))


def stages(timing: bytes) -> dict[str, float]:
    """Milliseconds by stage from a Server-Timing header (W3C): `decode;dur=1.2, queue;dur=0.1`; numbers alone count."""
    return {name.decode(): float(duration) for name, duration in _DURATION.findall(timing)}


def summarise(workload: Workload, samples: Samples) -> Summary:
    status = np.asarray(samples.status)
    latency_ms = np.asarray(samples.latency_s) * 1000
    succeeded = status == 200
    # A closed loop's last answers come after its time is over; they are no part of its rate.
    in_time = succeeded & (np.asarray(samples.finished_s) <= samples.seconds)
    by_stage: dict[str, list[float]] = {}
    overheads: list[float] = []
    for index in np.flatnonzero(succeeded):
        durations = stages(samples.timing[index])
        for name, duration in durations.items():
            by_stage.setdefault(name, []).append(duration)
        if "decode" in durations and "inference" in durations:
            overheads.append(latency_ms[index] - durations["decode"] - durations["inference"])
    failed = Counter(int(code) for code in status[~succeeded])
    return Summary(
        connections=workload.connections,
        offered_per_s=workload.rate_per_s,
        seconds=samples.seconds,
        answers=len(status),
        succeeded=int(succeeded.sum()),
        throughput_per_s=float(in_time.sum()) / samples.seconds,
        latency_ms=percentiles(latency_ms[succeeded]),
        overhead_ms=percentiles(np.asarray(overheads)),
        stages_ms={name: float(np.median(durations)) for name, durations in by_stage.items()},
        errors={_NAMES.get(code, str(code)): count for code, count in sorted(failed.items())},
        generator_share=samples.generator_cpu_s / (samples.seconds + workload.warmup_s),
    )
