"""Latency over load: an open loop of rising rate against this server and its peers, with no model run.

python -m benchmarks.rates --rates 50,100,200,300,400,500,600,700 --photo dog.jpg
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from app.errors import HieraError
from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.progress import ProgressBar
from app.load.summary import Summary, summarise
from app.load.table import text_table
from app.load.target import parse_target
from benchmarks.contenders import MODEL, PEERS, peer_python
from benchmarks.media import add_photo_argument
from benchmarks.packages import random_package
from benchmarks.results import add_output_argument, write_results
from benchmarks.servers import noop_contenders

_CONNECTIONS = 256
# Beyond its capacity a server only fills its queues; what it does further up says nothing more.
_KEPT_UP = 0.9


def kept_up(run: Summary) -> bool:
    """Whether what was due was answered in time: chance draws more or fewer arrivals than the rate says."""
    return run.throughput_per_s * run.seconds >= _KEPT_UP * run.answers


def table(measured: dict[str, list[Summary]]) -> str:
    """A row for each server and rate, also where nothing was answered."""
    rows = []
    for name, runs in measured.items():
        for run in runs:
            latencies = (f"{run.latency_ms.p50:.1f}", f"{run.latency_ms.p99:.1f}") if run.latency_ms else ("-", "-")
            errors = str(sum(run.errors.values()))
            rows.append((name, f"{run.offered_per_s:g}", f"{run.throughput_per_s:.0f}", *latencies, errors))
    return text_table(("server", "offered/s", "answered/s", "p50 ms", "p99 ms", "errors"), rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(PEERS), help="a comma-separated choice, or none")
    parser.add_argument("--rates", default="25,50,100,150,200,300,400,500,600,700,800", help="requests/s")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    add_photo_argument(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()
    random_package(MODEL)
    peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    peers = [name for name in peers if peer_python(name).exists()]
    rates = [float(rate) for rate in arguments.rates.split(",")]
    measured: dict[str, list[Summary]] = {}
    for contender in noop_contenders(peers):
        measured[contender.name] = runs = []
        try:
            with contender.start() as server:
                target = parse_target(server.url)
                request = contender.request(target, arguments.photo)
                for rate in rates:
                    workload = Workload(
                        target, (request,), _CONNECTIONS, arguments.seconds, rate_per_s=rate, timeout_s=10.0
                    )
                    with ProgressBar(f"{contender.name:<14} {rate:>5g} requests/s") as bar:
                        runs.append(summarise(workload, run_isolated(workload, bar.show)))
                    if not kept_up(runs[-1]):
                        break
        except (HieraError, OSError) as error:
            print(f"{contender.name}: {error}")
    print(table(measured))
    method = {"photo": arguments.photo.name, "seconds": arguments.seconds, "connections": _CONNECTIONS}
    write_results(arguments.output, "rates", method, {k: [asdict(run) for run in runs] for k, runs in measured.items()})


if __name__ == "__main__":
    main()
