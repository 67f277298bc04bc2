"""Callers in a hurry beside patient ones: who is answered, and when.

Patient callers send photos without a pause and allow the server's own bound (30 s); others send a few a second and
allow `--timeout-ms`. In rounds: those in a hurry alone, then both.

    python -m benchmarks.urgent --engine auto --patient 64 --rate 5 --timeout-ms 1000
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.request import classify_request
from app.load.summary import Summary, summarise
from app.load.table import text_table
from app.load.target import Target, parse_target
from benchmarks.contenders import MODEL
from benchmarks.media import add_photo_argument
from benchmarks.own_server import add_server_arguments, own_server
from benchmarks.packages import REPOSITORY, build_packages
from benchmarks.results import add_output_argument, median, write_results

_WARMUP_S = 3.0  # until the patient ones' queue stands


def measure(target: Target, arguments: argparse.Namespace, seed: int, *, patient: bool) -> dict[str, Summary]:
    """One round."""

    def workload(connections: int, rate: float | None, query: dict[str, str]) -> Workload:
        request = classify_request(target, arguments.photo, model=MODEL, query=query)
        return Workload(
            target, (request,), connections, arguments.seconds, warmup_s=_WARMUP_S, rate_per_s=rate, seed=seed
        )

    workloads = {"hurried": workload(64, arguments.rate, {"timeout_ms": str(arguments.timeout_ms)})}
    if patient:
        workloads["patient"] = workload(arguments.patient, None, {})
    with ThreadPoolExecutor(len(workloads)) as threads:
        samples = threads.map(run_isolated, workloads.values())
    return {name: summarise(each, found) for (name, each), found in zip(workloads.items(), samples, strict=True)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_arguments(parser)
    parser.add_argument("--patient", type=int, default=64, help="connections of callers who can wait")
    parser.add_argument("--rate", type=float, default=5.0, help="requests/s of those who cannot")
    parser.add_argument("--timeout-ms", type=int, default=1000, help="that these allow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    add_photo_argument(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()
    build_packages([MODEL])
    runs: dict[str, list[Summary]] = {"hurried, alone": [], "hurried": [], "patient": []}
    with own_server(REPOSITORY, arguments.engine, arguments.set) as server:
        target = parse_target(server.url)
        for number in range(arguments.rounds):
            runs["hurried, alone"].append(measure(target, arguments, number, patient=False)["hurried"])
            for name, summary in measure(target, arguments, number, patient=True).items():
                runs[name].append(summary)
    _print(runs)
    method = {key: getattr(arguments, key) for key in ("engine", "patient", "rate", "timeout_ms", "seconds", "set")}
    write_results(
        arguments.output,
        "urgent",
        method | {"photo": arguments.photo.name, "model": MODEL},
        {name: [asdict(run) for run in each] for name, each in runs.items()},
    )


def _print(runs: dict[str, list[Summary]]) -> None:
    rows = []
    for name, each in runs.items():
        answers, succeeded = sum(run.answers for run in each), sum(run.succeeded for run in each)
        latencies = [run.latency_ms for run in each if run.latency_ms]
        p50, p99 = (
            f"{median([getattr(latency, at) for latency in latencies]):.0f}" if latencies else "-"
            for at in ("p50", "p99")
        )
        rate = f"{median([run.throughput_per_s for run in each]):.1f}"
        errors = ", ".join(f"{code}: {sum(run.errors.get(code, 0) for run in each)}" for code in _codes(each))
        rows.append((name, f"{succeeded / max(answers, 1):.1%}", rate, p50, p99, errors))
    print(text_table(("", "answered", "answered/s", "p50 ms", "p99 ms", "errors"), rows))


def _codes(runs: list[Summary]) -> list[str]:
    return sorted({code for run in runs for code in run.errors})


if __name__ == "__main__":
    main()
