"""Everything that is to be known of a GPU, on one card: rates, latency, agreement, and the server over HTTP.

    python -m benchmarks.gpu --output gpu.json --photo dog.jpg
    python -m benchmarks.gpu --output gpu.json --photo dog.jpg --minutes 4.5 --job-seconds 270    # again and again
    python -m benchmarks.gpu --dry-run

Needs the extras `gpu`, `export` and one of `tensorrt` and `tensorrt-rtx`, and a torch that is built for CUDA; with the
package hiera-transformer the reference itself is measured, without it this project's torch model.

What matters most is measured first, each job in a process of its own. Its outcome is in the file of --output as soon as
it ends: the same command goes on where it was cut, killed or out of time. What fails is written down with its
reason, and the rest goes on; it is not tried again without --again. `--dry-run` takes the CPU, the smallest models and
minutes, to see that all of it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.load.table import text_table
from benchmarks.gpu_course import DRY, FULL, Course, jobs
from benchmarks.gpu_jobs import Job, run_job
from benchmarks.gpu_machine import describe_gpus
from benchmarks.gpu_record import Record
from benchmarks.gpu_summary import failures, in_a_line, summarise
from benchmarks.results import add_output_argument

JOB_SECONDS = 900.0  # the plans of the largest models take minutes to build


def run_course(
    course: Course,
    record: Record,
    *,
    minutes: float = math.inf,
    job_seconds: float = JOB_SECONDS,
    again: bool = False,
    run: Callable[[Job, float], Mapping[str, Any]] = run_job,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Run the jobs that `record` has no outcome of; `again` runs those that failed, too.

    Returns:
        False where `minutes` were over and something was left to do.
    """
    until = clock() + 60 * minutes
    tried: set[str] = set()
    for job in jobs(course, record.done):
        if record.has(job, again=again and job.key not in tried):
            continue
        if clock() >= until:
            return False
        print(f"{job.key} …", file=sys.stderr, flush=True)
        outcome = run(job, job_seconds)
        tried.add(job.key)
        record.keep(job, outcome)
        print(f"{job.key}: {in_a_line(outcome)}, after {outcome['took_s']:.0f} s", file=sys.stderr, flush=True)
    return True


def main() -> None:
    """Measure, print what the goals ask for, and write everything."""
    arguments = _parser().parse_args()
    course = _chosen(arguments)
    method = {"dry_run": arguments.dry_run, "packages": str(course.repository), "gpus": describe_gpus()}
    record = Record(arguments.output.path if arguments.output else None, method)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the job that runs, too
    finished = run_course(
        course, record, minutes=arguments.minutes, job_seconds=arguments.job_seconds, again=arguments.again
    )
    for line in failures(record.done):
        print(line)
    summary = summarise(course.compared, record.done)
    print(text_table(("measure", "goal", "seen (DRY RUN: MEANS NOTHING)" if arguments.dry_run else "seen"), summary))
    record.write(summary)
    print("nothing is left to measure" if finished else "not all was measured: the same command goes on from here")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no job is begun; 0 sums up")
    parser.add_argument(
        "--job-seconds",
        type=float,
        default=JOB_SECONDS,
        help=f"after which a job is stopped and counts as failed ({JOB_SECONDS:g}); building a package or plan is one",
    )
    parser.add_argument("--again", action="store_true", help="try what failed once more")
    parser.add_argument("--device", help="cuda:0, or another GPU")
    parser.add_argument("--engines", type=_some_of("tensorrt", "onnxruntime"), help="tensorrt,onnxruntime")
    parser.add_argument("--precisions", type=_some_of("fp16", "bf16"), help="fp16,bf16; HTTP takes the first")
    parser.add_argument("--others", help="variants beside base_224, separated by commas")
    parser.add_argument("--seconds", type=float, help="of each batch size")
    parser.add_argument("--http-workers", type=int, help="of the server")
    parser.add_argument("--connections", type=int, help="to the server")
    parser.add_argument("--photo", type=Path, help="what is sent over HTTP")
    parser.add_argument(
        "--photos", type=Path, help="folder for the agreement over random weights (1,000 rendered rows)"
    )
    parser.add_argument(
        "--trained",
        nargs=3,
        metavar=("VARIANT", "WEIGHTS", "FOLDER"),
        help="a trained model and photos for its agreement",
    )
    add_output_argument(parser)
    return parser


def _chosen(arguments: argparse.Namespace) -> Course:
    """The course with what the command line says. Paths become absolute: jobs run in the project's folder."""
    chosen: dict[str, Any] = {
        "device": arguments.device,
        "engines": arguments.engines,
        "precisions": arguments.precisions,
        "others": tuple(arguments.others.split(",")) if arguments.others else None,
        "seconds": arguments.seconds,
        "http_workers": arguments.http_workers,
        "connections": arguments.connections,
        "photo": arguments.photo and arguments.photo.absolute(),
        "agreement_rows": arguments.photos and str(arguments.photos.absolute()),
    }
    if arguments.trained:
        variant, *paths = arguments.trained
        chosen["trained"] = (variant, *(str(Path(path).absolute()) for path in paths))
    course = DRY if arguments.dry_run else FULL
    return replace(course, **{name: value for name, value in chosen.items() if value is not None})


def _some_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Some of these words, separated by commas."""

    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        if not set(words) <= set(known):
            raise argparse.ArgumentTypeError(f"{text!r} is not a choice of {','.join(known)}")
        return words

    return parse


if __name__ == "__main__":
    main()
