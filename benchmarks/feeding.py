"""What feeding an engine costs the host: CPU of each kind of process for a photo, and how many a second that allows.

    python -m benchmarks.feeding --photo dog.jpg --cores 16

No model is run: the engine waits as long as a GPU would compute (benchmarks/simulated_gpu.py), so that batches form.
With several HTTP processes, the engine host is the one process that all requests go through: its time bounds them all,
on any number of cores. What the cores of another machine would carry is an estimate from these times.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, dataclass

from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.processes import process_tree, read_proc
from app.load.request import classify_request
from app.load.summary import summarise
from app.load.table import text_table
from app.load.target import parse_target
from benchmarks.media import add_photo_argument
from benchmarks.own_server import add_server_arguments, own_server
from benchmarks.packages import random_package
from benchmarks.results import add_output_argument, median, write_results

VARIANT = "hiera_tiny_224"  # a thousand classes, as the models that a GPU is for
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_WARMUP = 500


@dataclass(frozen=True)
class Costs:
    """Of one request, in microseconds of CPU. `host_us` is 0 where the one HTTP process has the engines."""

    host_us: float
    http_us: float
    media_us: float
    requests_per_s: float

    @property
    def total_us(self) -> float:
        return self.host_us + self.http_us + self.media_us


def measure(arguments: argparse.Namespace, http_workers: int) -> Costs:
    """Load a server of so many HTTP processes, and see what its processes used.

    Raises:
        SystemExit: a request was not answered.
    """
    repository = random_package(VARIANT).folder.parents[1]
    command = (sys.executable, "-m", "benchmarks.simulated_gpu", "run")
    with own_server(
        repository,
        arguments.engine,
        arguments.set,
        command=command,
        http_workers=http_workers,
        default_image_model=VARIANT,
        engine_instances=2,
        max_batch_rows=64,
        image_workers=8,  # as on a machine with more cores: the rows in flight spread over that many
    ) as server:
        target = parse_target(server.url)
        request = classify_request(target, arguments.photo)
        for count in (_WARMUP, arguments.requests):
            before = _cpu_s(server.pid)
            workload = Workload(
                target, (request,), connections=arguments.connections, seconds=600.0, warmup_s=0.0, max_requests=count
            )
            summary = summarise(workload, run_isolated(workload))
            if summary.errors:
                raise SystemExit(f"not all was answered: {summary.errors}\n{server.log_tail()}")
        used = {kind: seconds - before[kind] for kind, seconds in _cpu_s(server.pid).items()}
    costs_us = {kind: seconds / summary.answers * 1e6 for kind, seconds in used.items()}
    alone = http_workers == 1
    return Costs(
        host_us=0.0 if alone else costs_us["first"],
        http_us=costs_us["first"] if alone else costs_us["http"],
        media_us=costs_us["media"],
        requests_per_s=summary.throughput_per_s,
    )


def _cpu_s(pid: int) -> dict[str, float]:
    """Seconds of CPU that a server's processes have used so far, by kind."""
    used = {"first": 0.0, "http": 0.0, "media": 0.0}
    for each in process_tree(pid):
        kind = "first" if each == pid else "http" if b"app.http_worker" in read_proc(each, "cmdline") else "media"
        fields = read_proc(each, "stat").rpartition(b")")[2].split()
        # utime, stime, and those of children that have ended (media workers are renewed): proc(5)
        used[kind] += sum(map(int, fields[11:15])) * _TICK_S
    return used


def _middle(rounds: list[Costs]) -> Costs:
    return Costs(**{name: median([asdict(each)[name] for each in rounds]) for name in asdict(rounds[0])})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--batch-ms", type=float, default=40.0, help="that the engine waits for a batch")
    parser.add_argument("--http-workers", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=16, help="of the machine to estimate for")
    add_photo_argument(parser)
    add_server_arguments(parser, engine="noop")
    add_output_argument(parser)
    arguments = parser.parse_args()
    os.environ["SIMULATED_BATCH_MS"] = str(arguments.batch_ms)
    numbers = [int(number) for number in arguments.http_workers.split(",")]
    rounds = [{number: measure(arguments, number) for number in numbers} for _ in range(arguments.rounds)]
    costs = {number: _middle([each[number] for each in rounds]) for number in numbers}
    header = ("HTTP processes", "host us", "HTTP us", "media us", "requests/s", "one process carries",
              f"{arguments.cores} cores carry")  # fmt: skip
    rows = [
        (
            str(number), f"{each.host_us:.0f}", f"{each.http_us:.0f}", f"{each.media_us:.0f}",
            f"{each.requests_per_s:.0f}", f"{1e6 / (each.host_us or each.http_us):.0f}/s",
            f"{arguments.cores * 1e6 / each.total_us:.0f}/s",
        )
        for number, each in costs.items()
    ]  # fmt: skip
    print(text_table(header, rows))
    method = {"requests": arguments.requests, "connections": arguments.connections, "photo": arguments.photo.name}
    measured = {str(number): [asdict(each[number]) for each in rounds] for number in numbers}
    write_results(arguments.output, "feeding", method, measured)


if __name__ == "__main__":
    main()
