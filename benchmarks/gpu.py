"""Everything that is to be known of a GPU, in one run on one card: rates, latency, agreement, and the server over HTTP.

    python -m benchmarks.gpu --output benchmarks/results/gpu.json --photo dog.jpg
    python -m benchmarks.gpu --dry-run

Needs the extras `gpu`, `export` and one of `tensorrt` and `tensorrt-rtx`, and a torch that is built for CUDA; with the
package hiera-transformer the reference itself is measured, without it this project's torch model. What fails is written
down with its reason, and the rest goes on. `--dry-run` takes the CPU, the smallest models and minutes, to see that
all of it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.load.request import classify_request
from app.load.table import text_table
from benchmarks.contenders import ours
from benchmarks.gpu_contenders import Job, prepare, run_job
from benchmarks.gpu_machine import describe_gpus
from benchmarks.packages import REPOSITORY
from benchmarks.results import add_output_argument, write_results
from benchmarks.rounds import Load, interleave
from export.catalog import find_variant

SAMPLE = Path(__file__).parents[1] / "app" / "load" / "sample.jpg"
GOALS = (
    ("base_224 against the reference's eager fp16", "3 times"),
    ("base_224 against torch.compile", "1.5 times"),
    ("base_224, rows/s", "15,000"),
    ("share of the measured matrix rate: large_224, huge_224, base_16x224, large_16x224", "45%"),
    ("base_224, one row, ms", "1"),
    ("HTTP against the bare engine: large_224", "0.8"),
    ("top-1 agreement with fp32: random weights, trained weights", "99.9%, 100%"),
)
EAGER = ("reference fp16", "torch fp16")  # of each, what counts: the reference, or this project's model without it
COMPILED = ("reference-compiled fp16", "torch-compiled fp16")
TORCHES = (*EAGER, *COMPILED)


@dataclass(frozen=True)
class Course:
    """What is run.

    Attributes:
        compared: the variant that torch is compared at; `others` are for the share of the matrix rate.
        engines, precisions: each engine in each precision.
        images, clips: batch sizes.
        agreement_rows: rendered rows, or a folder of photos, for random weights.
        trained: variant, weights file and rows of a model that was trained; None leaves it out.
        served: variants that are asked over HTTP.
    """

    device: str
    compared: str
    others: tuple[str, ...]
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    images: tuple[int, ...]
    clips: tuple[int, ...]
    matrices: tuple[int, ...]
    seconds: float
    agreement_rows: str
    trained: tuple[str, str, str] | None
    served: tuple[str, ...]
    connections: int
    http_workers: int
    repository: Path


FULL = Course(
    device="cuda:0",
    compared="hiera_base_224",
    others=("hiera_tiny_224", "hiera_large_224", "hiera_huge_224", "hiera_base_16x224", "hiera_large_16x224"),
    engines=("tensorrt", "onnxruntime"),
    precisions=("fp16", "bf16"),
    images=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    clips=(1, 2, 4, 8, 16),
    matrices=(4096, 8192, 16384),
    seconds=2.0,
    agreement_rows="1000",
    trained=None,
    served=("hiera_large_224", "hiera_tiny_224"),
    connections=256,
    http_workers=4,
    repository=REPOSITORY,
)
DRY = Course(
    device="cpu",
    compared="hiera_tiny_224",
    others=("hiera_demo_camera_motion",),
    engines=("tensorrt", "onnxruntime"),
    precisions=("fp16",),
    images=(1, 2),
    clips=(1,),
    matrices=(256,),
    seconds=0.1,
    agreement_rows="8",
    trained=None,
    served=("hiera_tiny_224",),
    connections=2,
    http_workers=1,
    repository=REPOSITORY.parent / "dry-run",
)


def run_course(course: Course, photo: Path) -> dict[str, Any]:
    """All measurements, one process each; a failed one has an "error" in its place."""
    matrix = {
        precision: run_job(_job(course, "matrix", f"torch {precision}", course.compared, course.matrices))
        for precision in course.precisions
    }
    rates: dict[str, dict[str, Any]] = {}
    contenders = [f"{engine} {precision}" for engine in course.engines for precision in course.precisions]
    for variant in (course.compared, *course.others):
        torches = TORCHES if variant == course.compared else ()
        rates[variant] = {}
        for contender in (*torches, *contenders):
            print(f"{variant}  {contender}", file=sys.stderr, flush=True)
            rates[variant][contender] = run_job(_job(course, "rates", contender, variant, _batches(course, variant)))
    return {
        "matrix": matrix,
        "rates": rates,
        "agreement": _agreements(course, contenders),
        "http": {variant: _over_http(course, variant, rates[variant], photo) for variant in course.served},
    }


def _agreements(course: Course, contenders: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    batch = _batches(course, course.compared)[-1:]
    for contender in contenders:
        job = _job(course, "agreement", contender, course.compared, batch)
        found[f"{course.compared} random, {contender}"] = run_job(replace(job, rows=course.agreement_rows))
        if course.trained is not None:
            variant, weights, rows = course.trained
            job = replace(job, variant=variant, weights=weights, rows=rows)
            found[f"{variant} trained, {contender}"] = run_job(job)
    return found


def _over_http(course: Course, variant: str, rates: dict[str, Any], photo: Path) -> dict[str, Any]:
    """The server with the fastest contender of `variant`, asked for one photo by many connections."""
    best = _fastest(rates, [f"{engine} {precision}" for engine in course.engines for precision in course.precisions])
    if best is None:
        return {"error": "no engine ran"}
    contender, rate = best
    package = prepare(_job(course, "rates", contender, variant, (1,)))
    server = ours(
        contender.split()[0], "", package.folder.parents[1], name=variant,
        extra={
            "HIERA_ENGINE_DEVICE": course.device,
            "HIERA_MAX_BATCH_ROWS": str(max(_batches(course, variant))),
            "HIERA_HTTP_WORKERS": str(course.http_workers),
            "HIERA_DEFAULT_IMAGE_MODEL": package.manifest.name,
        },
    )  # fmt: skip
    server = replace(server, request=lambda target, file: classify_request(target, file, model=package.manifest.name))
    load = Load(course.connections, course.seconds * 5, course.seconds)
    measured = interleave([server], [load], photo, rounds=1)[variant]
    [run] = measured.runs[course.connections]
    if run is None or not run.throughput_per_s:
        return {"error": "; ".join(measured.faults) or "nothing was answered"}
    return {
        "contender": contender,
        "requests_per_s": run.throughput_per_s,
        "p50_ms": run.latency_ms.p50 if run.latency_ms else None,
        "against_engine": run.throughput_per_s / rate,
        "errors": measured.faults,
    }


def summarise(course: Course, measured: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Measure, goal and what was seen, "-" where it was not."""
    rates = measured["rates"]
    engines = [f"{engine} {precision}" for engine in course.engines for precision in course.precisions]
    best = {variant: _fastest(rates[variant], engines) for variant in rates}
    base = best[course.compared]
    theirs = _first_that_ran(rates[course.compared], EAGER)
    compiled = _first_that_ran(rates[course.compared], COMPILED)
    alone = [each["rates"]["1"] for name, each in rates[course.compared].items() if name in engines and "rates" in each]
    shares = ", ".join(
        f"{variant} {_share(variant, found, measured['matrix'])}" for variant, found in best.items() if found
    )
    agreements = ", ".join(
        f"{name} {each['top1']:.2%}" for name, each in measured["agreement"].items() if "top1" in each
    )
    http = ", ".join(
        f"{name} {each['against_engine']:.2f}" for name, each in measured["http"].items() if "against_engine" in each
    )
    seen = (
        f"{base[1] / theirs[1]:.2f}" if base and theirs else "-",
        f"{base[1] / compiled[1]:.2f}" if base and compiled else "-",
        f"{base[1]:.0f} ({base[0]})" if base else "-",
        shares or "-",
        f"{1000 / max(alone):.2f}" if alone else "-",
        http or "-",
        agreements or "-",
    )
    return [(measure, goal, figure) for (measure, goal), figure in zip(GOALS, seen, strict=True)]


def _share(variant: str, found: tuple[str, float], matrix: dict[str, Any]) -> str:
    """Two operations for each multiply-accumulate of a row, over what the card multiplies in that precision."""
    contender, rate = found
    best = matrix[contender.split()[1]].get("best")
    return f"{rate * 2 * find_variant(variant).gmacs / 1000 / best:.1%}" if best else "-"


def _fastest(rates: dict[str, Any], contenders: list[str]) -> tuple[str, float] | None:
    """Of some contenders the one with the most rows per second at any batch size."""
    ran = [(name, max(rates[name]["rates"].values())) for name in contenders if "rates" in rates.get(name, {})]
    return max(ran, key=lambda each: each[1], default=None)


def _first_that_ran(rates: dict[str, Any], contenders: tuple[str, ...]) -> tuple[str, float] | None:
    return next((found for name in contenders if (found := _fastest(rates, [name]))), None)


def _job(course: Course, what: str, contender: str, variant: str, batches: tuple[int, ...]) -> Job:
    return Job(what, contender, variant, course.device, str(course.repository), batches, course.seconds)


def _batches(course: Course, variant: str) -> tuple[int, ...]:
    return course.images if find_variant(variant).task == "image" else course.clips


def main() -> None:
    """Measure, print what the goals ask for, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--device", help="cuda:0, or another GPU")
    parser.add_argument("--others", help="variants beside base_224, separated by commas")
    parser.add_argument("--precisions", help="fp16,bf16")
    parser.add_argument("--seconds", type=float, help="of each batch size")
    parser.add_argument("--http-workers", type=int, help="of the server")
    parser.add_argument("--connections", type=int, help="to the server")
    parser.add_argument("--photo", type=Path, default=SAMPLE, help="what is sent over HTTP")
    parser.add_argument("--photos", help="folder for the agreement over random weights (1,000 rendered rows)")
    parser.add_argument(
        "--trained",
        nargs=3,
        metavar=("VARIANT", "WEIGHTS", "FOLDER"),
        help="a trained model and photos for its agreement",
    )
    add_output_argument(parser)
    arguments = parser.parse_args()
    course = DRY if arguments.dry_run else FULL
    chosen: dict[str, Any] = {
        "device": arguments.device,
        "others": tuple(arguments.others.split(",")) if arguments.others else None,
        "precisions": tuple(arguments.precisions.split(",")) if arguments.precisions else None,
        "seconds": arguments.seconds,
        "http_workers": arguments.http_workers,
        "connections": arguments.connections,
        "agreement_rows": arguments.photos,
        "trained": tuple(arguments.trained) if arguments.trained else None,
    }
    course = replace(course, **{name: value for name, value in chosen.items() if value is not None})
    gpus = describe_gpus()
    measured = run_course(course, arguments.photo)
    for name, each in _errors(measured):
        print(f"{name}: {each}")
    header = ("measure", "goal", "seen (DRY RUN: MEANS NOTHING)" if arguments.dry_run else "seen")
    print(text_table(header, summarise(course, measured)))
    method = {"seconds": course.seconds, "dry_run": arguments.dry_run, "gpus": gpus}
    write_results(arguments.output, "gpu", method, measured)


def _errors(measured: dict[str, Any], name: str = "") -> list[tuple[str, str]]:
    found = [(name, measured["error"])] if isinstance(measured.get("error"), str) else []
    for key, each in measured.items():
        if isinstance(each, dict):
            found += _errors(each, f"{name} {key}".strip())
    return found


if __name__ == "__main__":
    main()
