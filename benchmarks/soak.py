"""Memory over a long run: many requests in a row, counted at every so many of them.

    python -m benchmarks.soak --requests 100000

The no-op engine makes it quick: what could leak is in the HTTP, upload, decoding and queueing that each request goes
through all the same. `--engine auto` runs the model too.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.processes import process_tree
from app.load.progress import ProgressBar
from app.load.request import multipart_request
from app.load.server import ServerProcess
from app.load.summary import summarise
from app.load.table import text_table
from app.load.target import parse_target
from benchmarks.chaos.census import settle
from benchmarks.chaos.files import bad_files, good_photos, good_videos
from benchmarks.own_server import add_server_arguments, own_server
from benchmarks.results import add_output_argument, write_results

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Point:
    """What the server held after so many answers: proportional set sizes of all its processes together."""

    answers: int
    seconds: float
    mib: float
    descriptors: int
    processes: int


class Series:
    """Takes a point at every `step` answers; `take` is a progress callback."""

    def __init__(self, server: ServerProcess, step: int, bar: ProgressBar) -> None:
        self.points: list[Point] = []
        self._server = server
        self._step = step
        self._bar = bar
        self._began_s = time.perf_counter()

    def take(self, fraction: float, answers: int) -> None:
        self._bar.show(fraction, answers)
        if answers >= self._step * len(self.points):
            self.count(answers)

    def count(self, answers: int) -> None:
        pid = self._server.pid
        self.points.append(
            Point(
                answers,
                time.perf_counter() - self._began_s,
                self._server.memory_bytes() / MEBIBYTE,
                len(os.listdir(f"/proc/{pid}/fd")),
                len(process_tree(pid)),
            )
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--repository", type=Path, default=Path("model_repo"))
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--photos", type=int, default=50, help="different photos, as JPEG, PNG and WebP")
    parser.add_argument("--step", type=int, default=2500, help="requests from one count to the next")
    parser.add_argument("--settled-after", type=int, default=10_000, help="requests after which memory should be flat")
    add_server_arguments(parser, engine="noop")
    add_output_argument(parser)
    arguments = parser.parse_args()
    with own_server(arguments.repository, arguments.engine, arguments.set) as server:
        target = parse_target(server.url)
        photos = good_photos(arguments.photos)
        bad = [file for file in bad_files(photos[0], good_videos(1)[0]) if file.task == "image"]
        requests = tuple(
            multipart_request(target, "/classify/image", file.data, filename="a") for file in (*photos, *bad)
        )
        workload = Workload(
            target,
            requests,
            connections=arguments.connections,
            seconds=3000.0,
            warmup_s=0.0,
            max_requests=arguments.requests,
        )
        with ProgressBar(f"{arguments.requests:,} requests") as bar:
            series = Series(server, arguments.step, bar)
            summary = summarise(workload, run_isolated(workload, series.take))
        settle(server.pid, server.url, 10.0)
        series.count(summary.answers)
    settled = next(point for point in series.points if point.answers >= arguments.settled_after)
    later = [point.mib for point in series.points if point.answers >= settled.answers]
    drift = max(abs(mib / settled.mib - 1) for mib in later)
    rows = [
        (f"{point.answers:,}", f"{point.mib:.1f}", str(point.descriptors), str(point.processes))
        for point in series.points[:: max(1, len(series.points) // 12)]
    ]
    print(text_table(("answers", "MiB", "descriptors", "processes"), rows))
    print(f"{summary.answers:,} answers, {summary.throughput_per_s:.0f} good ones a second, others: {summary.errors}")
    print(f"memory after {settled.answers:,}: {settled.mib:.1f} MiB, at the end {later[-1]:.1f}; farthest {drift:.1%}")
    method = {"engine": arguments.engine, "connections": arguments.connections, "files": len(requests)}
    measured = {
        "answers": summary.answers,
        "succeeded": summary.succeeded,
        "errors": summary.errors,
        "drift_after_settling": drift,
        "series": [asdict(point) for point in series.points],
    }
    write_results(arguments.output, "soak", method, measured)


if __name__ == "__main__":
    main()
