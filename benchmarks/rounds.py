"""Runs servers side by side: in interleaved rounds, each with the same load from the same generator.

A machine drifts (temperature, neighbours, caches), so that two figures taken minutes apart say little about each other.
In every round each server is started, warmed, loaded and stopped, in an order that rotates from round to round; ratios
are taken within a round, and the median over the rounds is reported with the lowest and the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import HieraError
from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.progress import ProgressBar
from app.load.summary import Summary, summarise
from app.load.table import text_table
from app.load.target import parse_target
from benchmarks.contenders import Contender
from benchmarks.results import median, spread


@dataclass(frozen=True)
class Load:
    """A closed loop."""

    connections: int
    seconds: float
    warmup_s: float


@dataclass
class Measured:
    """Everything of one contender: a summary for each round and load, None where the round failed."""

    name: str
    ready_s: list[float] = field(default_factory=list)
    runs: dict[int, list[Summary | None]] = field(default_factory=dict)  # by connections
    faults: list[str] = field(default_factory=list)


def interleave(
    contenders: Sequence[Contender],
    loads: Sequence[Load],
    file: Path,
    rounds: int,
    between: Callable[[int], None] | None = None,
) -> dict[str, Measured]:
    """Measure all contenders; `between(round)` runs once in each round, for what is measured beside them."""
    measured = {contender.name: Measured(contender.name) for contender in contenders}
    for number in range(rounds):
        if between is not None:
            between(number)
        shift = number % len(contenders)
        for contender in [*contenders[shift:], *contenders[:shift]]:
            _one_round(contender, loads, file, measured[contender.name], f"round {number + 1} of {rounds}")
    return measured


def _one_round(contender: Contender, loads: Sequence[Load], file: Path, measured: Measured, label: str) -> None:
    runs: dict[int, Summary | None] = {load.connections: None for load in loads}
    try:
        with contender.start() as server:
            measured.ready_s.append(server.ready_s)
            target = parse_target(server.url)
            request = contender.request(target, file)
            for load in loads:
                workload = Workload(
                    target,
                    (request,),
                    connections=load.connections,
                    seconds=load.seconds,
                    warmup_s=load.warmup_s,
                )
                with ProgressBar(f"{label}  {contender.name:<18} {load.connections:>3} connections") as bar:
                    samples = run_isolated(workload, bar.show)
                summary = runs[load.connections] = summarise(workload, samples)
                if summary.errors:
                    bodies = {code: body[:200] for code, body in samples.bodies.items() if code != 200}
                    measured.faults.append(f"{summary.errors} {bodies}")
    except (HieraError, OSError) as error:
        measured.faults.append(str(error))
    for connections, run in runs.items():  # None where it failed, so that the rounds stay aligned for the ratios
        measured.runs.setdefault(connections, []).append(run)


def throughputs(measured: Measured, connections: int) -> list[float | None]:
    """Requests per second, by round."""
    return [run.throughput_per_s if run else None for run in measured.runs.get(connections, [])]


def p50s_ms(measured: Measured, connections: int) -> list[float | None]:
    """Median latency in milliseconds, by round."""
    return [run.latency_ms.p50 if run and run.latency_ms else None for run in measured.runs.get(connections, [])]


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Ours over theirs, within each round in which they answered. We may have answered nothing, which is a ratio of 0;
    that they did is no win of ours."""
    return [a / b for a, b in zip(ours, theirs, strict=False) if a is not None and b]


def _compared(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    """Their ratios; says so if a round has none."""
    within = ratios(ours, theirs)
    return spread(within) + (f", {len(within)} of {len(theirs)} rounds" if len(within) < len(theirs) else "")


def print_comparison(measured: dict[str, Measured], reference: str, loads: Sequence[Load]) -> None:
    """A table for each load; the ratio columns say how `reference` compares with each line."""
    ours = measured[reference]
    for load in loads:
        n = load.connections
        rows = []
        for each in measured.values():
            runs = [run for run in each.runs.get(n, []) if run]
            latencies = [run.latency_ms for run in runs if run.latency_ms]
            rows.append(
                (
                    each.name,
                    f"{median([run.throughput_per_s for run in runs]):.1f}",
                    f"{median([latency.p50 for latency in latencies]):.2f}",
                    f"{median([latency.p99 for latency in latencies]):.2f}",
                    _compared(throughputs(ours, n), throughputs(each, n)),
                    _compared(p50s_ms(ours, n), p50s_ms(each, n)),
                    f"{median(each.ready_s):.1f}",
                    str(sum(sum(run.errors.values()) for run in runs)),
                )
            )
        print(f"\n{n} connection{'s' if n > 1 else ''}, {load.seconds:g} s, medians of the rounds")
        header = ("server", "requests/s", "p50 ms", "p99 ms", f"{reference} throughput ÷ its", f"{reference} p50 ÷ its")
        print(text_table((*header, "ready s", "errors"), rows))
    for each in measured.values():
        for fault in each.faults:
            print(f"{each.name}: {fault}")
