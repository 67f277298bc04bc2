"""Start-up time, memory at rest, and memory after many requests.

python -m benchmarks.lifecycle --repository model_repo --requests 10000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.progress import ProgressBar
from app.load.request import classify_request
from app.load.server import ServerProcess
from app.load.summary import summarise
from app.load.target import parse_target
from benchmarks.media import add_photo_argument
from benchmarks.own_server import add_server_arguments, own_server
from benchmarks.results import add_output_argument, median, spread, write_results

MEBIBYTE = 2**20


def _start(arguments: argparse.Namespace) -> ServerProcess:
    """`make run` itself, or the command that it ends in."""
    if arguments.make:
        return own_server(arguments.repository, arguments.engine, arguments.set, command=["make", "run"])
    return own_server(arguments.repository, arguments.engine, arguments.set)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repo"))
    parser.add_argument("--make", action="store_true", help="start with `make run`; its environment must be in place")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=16)
    add_photo_argument(parser)
    add_server_arguments(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()

    ready_s = []
    for number in range(arguments.starts):
        with _start(arguments) as server:
            ready_s.append(server.ready_s)
        print(f"start {number + 1}: ready after {ready_s[-1]:.2f} s")
    # The first start measures the batch curve and compiles; the later ones find both on disk.
    later_s = ready_s[1:] or ready_s
    print(f"ready: first {ready_s[0]:.2f} s, later {spread(later_s)} s (3 or less wanted)")

    measured: dict[str, object] = {"ready_s": ready_s, "ready_later_median_s": median(later_s)}
    if arguments.requests:
        measured |= _memory(arguments)
    method = {"starts": arguments.starts, "engine": arguments.engine, "make": arguments.make}
    write_results(arguments.output, "lifecycle", method, measured)


def _memory(arguments: argparse.Namespace) -> dict[str, object]:
    """Proportional set sizes in MiB: at rest, after a tenth of the requests, after all of them."""
    with _start(arguments) as server:
        sizes_mib = [server.memory_bytes() / MEBIBYTE]
        target = parse_target(server.url)
        request = classify_request(target, arguments.photo)
        errors: dict[str, int] = {}
        for count in (arguments.requests // 10, arguments.requests - arguments.requests // 10):
            workload = Workload(
                target,
                (request,),
                connections=arguments.connections,
                seconds=3000.0,
                warmup_s=0.0,
                max_requests=count,
            )
            with ProgressBar(f"{count:,} requests") as bar:
                errors |= summarise(workload, run_isolated(workload, bar.show)).errors
            sizes_mib.append(server.memory_bytes() / MEBIBYTE)
    rest, early, late = sizes_mib
    print(
        f"memory: {rest:.0f} MiB at rest, {early:.0f} after {arguments.requests // 10:,} requests, "
        f"{late:.0f} after {arguments.requests:,} (growth after the first tenth: {late - early:+.1f} MiB)"
    )
    if errors:
        print(f"errors: {errors}")
    return {"rest_mib": rest, "after_a_tenth_mib": early, "after_all_mib": late, "errors": errors}


if __name__ == "__main__":
    main()
