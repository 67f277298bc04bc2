"""Several kinds of callers at once: their loads, each from a process of its own, and the table of what they got."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.summary import Summary, summarise
from app.load.table import text_table
from benchmarks.contenders import MODEL
from benchmarks.media import add_photo_argument
from benchmarks.own_server import add_server_arguments
from benchmarks.results import add_output_argument, median, write_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What benchmarks of this kind take beside arguments of their own."""
    add_server_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    add_photo_argument(parser)
    add_output_argument(parser)


def run_together(workloads: Mapping[str, Workload]) -> dict[str, Summary]:
    """Run all of them at the same time."""
    with ThreadPoolExecutor(len(workloads)) as threads:
        samples = threads.map(run_isolated, workloads.values())
    return {name: summarise(each, found) for (name, each), found in zip(workloads.items(), samples, strict=True)}


def report(name: str, runs: Mapping[str, Sequence[Summary]], arguments: argparse.Namespace, *settings: str) -> None:
    """Print the table of a benchmark, and write its figures where `--output` says, with these settings of its own."""
    print(_table(runs))
    method = {key: getattr(arguments, key) for key in ("engine", "seconds", "set", *settings)}
    write_results(
        arguments.output,
        name,
        method | {"photo": arguments.photo.name, "model": MODEL},
        {who: [asdict(run) for run in each] for who, each in runs.items()},
    )


def _table(runs: Mapping[str, Sequence[Summary]]) -> str:
    """A line for each kind of callers: medians over its rounds, errors of all together."""
    rows = []
    for name, each in runs.items():
        answers, succeeded = sum(run.answers for run in each), sum(run.succeeded for run in each)
        latencies = [run.latency_ms for run in each if run.latency_ms]
        p50, p99 = (
            f"{median([getattr(latency, at) for latency in latencies]):.0f}" if latencies else "-"
            for at in ("p50", "p99")
        )
        rate = f"{median([run.throughput_per_s for run in each]):.1f}"
        codes = sorted({code for run in each for code in run.errors})
        errors = ", ".join(f"{code}: {sum(run.errors.get(code, 0) for run in each)}" for code in codes)
        rows.append((name, f"{succeeded / max(answers, 1):.1%}", rate, p50, p99, errors))
    return text_table(("", "answered", "answered/s", "p50 ms", "p99 ms", "errors"), rows)
