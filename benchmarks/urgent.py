"""Callers in a hurry beside patient ones: who is answered, and when.

Patient callers send photos without a pause and allow the server's own bound (30 s); others send a few a second and
allow `--timeout-ms`. In rounds: those in a hurry alone, then both.

    python -m benchmarks.urgent --engine auto --patient 64 --rate 5 --timeout-ms 1000
"""

from __future__ import annotations

import argparse

from app.load.generator import Workload
from app.load.request import classify_request
from app.load.summary import Summary
from app.load.target import Target, parse_target
from benchmarks.contenders import MODEL
from benchmarks.own_server import own_server
from benchmarks.packages import REPOSITORY, build_packages
from benchmarks.together import add_arguments, report, run_together

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
    return run_together(workloads)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--patient", type=int, default=64, help="connections of callers who can wait")
    parser.add_argument("--rate", type=float, default=5.0, help="requests/s of those who cannot")
    parser.add_argument("--timeout-ms", type=int, default=1000, help="that these allow")
    arguments = parser.parse_args()
    build_packages([MODEL])
    runs: dict[str, list[Summary]] = {"hurried, alone": [], "hurried": [], "patient": []}
    with own_server(REPOSITORY, arguments.engine, arguments.set) as server:
        target = parse_target(server.url)
        for number in range(arguments.rounds):
            runs["hurried, alone"].append(measure(target, arguments, number, patient=False)["hurried"])
            for name, summary in measure(target, arguments, number, patient=True).items():
                runs[name].append(summary)
    report("urgent", runs, arguments, "patient", "rate", "timeout_ms")


if __name__ == "__main__":
    main()
