"""The table and the picture of some runs against one server."""

from __future__ import annotations

from collections.abc import Sequence

from app.load.plot import Line
from app.load.summary import Summary

HEADER = ("load", "requests/s", "p50 ms", "p90 ms", "p99 ms", "overhead ms", "of engine", "errors")


def row(summary: Summary, engine_rows_per_s: float | None) -> tuple[str, ...]:
    """One line of the table; "of engine" is the throughput as a part of the bare engine's best."""
    latency, overhead = summary.latency_ms, summary.overhead_ms
    return (
        describe_load(summary),
        f"{summary.throughput_per_s:,.1f}",
        *((f"{latency.p50:.1f}", f"{latency.p90:.1f}", f"{latency.p99:.1f}") if latency else ("-", "-", "-")),
        f"{overhead.p50:.1f}" if overhead else "-",
        f"{summary.throughput_per_s / engine_rows_per_s:.0%}" if engine_rows_per_s else "-",
        ", ".join(f"{count} x {name}" for name, count in summary.errors.items()) or "none",
    )


def describe_load(summary: Summary) -> str:
    if summary.offered_per_s is not None:
        return f"{summary.offered_per_s:,.1f}/s offered"
    return f"{summary.connections} connection{'s' if summary.connections > 1 else ''}"


def latency_over_load(summaries: Sequence[Summary]) -> list[Line]:
    """p50, p90 and p99 over requests per second: of the open loop where there is one, else of the closed."""
    is_open = any(summary.offered_per_s is not None for summary in summaries)
    chosen = [s for s in summaries if s.latency_ms is not None and (s.offered_per_s is not None) == is_open]
    points = sorted(
        ((s.offered_per_s or s.throughput_per_s, s.latency_ms) for s in chosen if s.latency_ms is not None),
        key=lambda point: point[0],
    )
    return [
        Line(name, tuple((rate, getattr(latency, name)) for rate, latency in points)) for name in ("p50", "p90", "p99")
    ]
