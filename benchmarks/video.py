"""What the server adds to a video: latency of one caller beyond decoding and inference, by file.

python -m benchmarks.video --engine noop FILE…
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from app.load.generator import Workload
from app.load.isolated import run_isolated
from app.load.progress import ProgressBar
from app.load.request import classify_request
from app.load.summary import Summary, summarise
from app.load.table import text_table
from app.load.target import parse_target
from benchmarks.contenders import ours
from benchmarks.media import synthetic_video
from benchmarks.mixed import VIDEO_MODEL
from benchmarks.packages import REPOSITORY, build_packages
from benchmarks.results import add_output_argument, write_results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="videos (a synthetic 10 s H.264 file of 1920 x 1080)")
    parser.add_argument("--engine", default="noop")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--connections", type=int, default=1)
    add_output_argument(parser)
    arguments = parser.parse_args()
    files = arguments.files or [synthetic_video()]
    build_packages([VIDEO_MODEL])
    measured: dict[str, Summary] = {}
    with ours(arguments.engine, "", REPOSITORY).start() as server:
        target = parse_target(server.url)
        for file in files:
            request = classify_request(target, file, model=VIDEO_MODEL)
            workload = Workload(target, (request,), connections=arguments.connections, seconds=arguments.seconds)
            with ProgressBar(file.name) as bar:
                measured[file.name] = summarise(workload, run_isolated(workload, bar.show))
    rows = [
        (
            name,
            f"{run.throughput_per_s:.1f}",
            f"{run.latency_ms.p50:.1f}" if run.latency_ms else "-",
            f"{run.stages_ms.get('decode', float('nan')):.1f}",
            f"{run.stages_ms.get('inference', float('nan')):.1f}",
            f"{run.overhead_ms.p50:.2f}" if run.overhead_ms else "-",
            str(sum(run.errors.values())),
        )
        for name, run in measured.items()
    ]
    print(text_table(("video", "per second", "p50 ms", "decode ms", "inference ms", "overhead ms", "errors"), rows))
    method = {"engine": arguments.engine, "connections": arguments.connections}
    write_results(arguments.output, "video", method, {name: asdict(run) for name, run in measured.items()})


if __name__ == "__main__":
    main()
