"""What `benchmarks.gpu` measures, and in which order: what matters most comes first, as a run may be cut."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_jobs import Job, Outcome, was_stopped
from benchmarks.packages import REPOSITORY
from export.catalog import find_variant

SAMPLE = Path(__file__).parents[1] / "app" / "load" / "sample.jpg"
# This project's model stands in where the reference is not installed, or fails.
TORCHES: tuple[str, ...] = ("reference", "torch")
TORCH_PRECISION = "fp16"


@dataclass(frozen=True)
class Course:
    """What is run.

    Attributes:
        compared: the variant that torch is compared at; `others` are for the share of the matrix rate, in their order:
            the first comes before torch.compile.
        engines, precisions: each engine in each precision; all of the first precision comes first.
        images, clips: batch sizes, ascending.
        compiled: batch sizes of torch.compile: each is compiled for itself, which takes minutes.
        agreement_rows: rendered rows, or a folder of photos, for random weights.
        trained: variant, weights file and rows of a model that was trained; None leaves it out.
        served: variants that are asked over HTTP for `photo`, each with so many `instances` of its fastest engine.
    """

    device: str
    compared: str
    others: tuple[str, ...]
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    images: tuple[int, ...]
    clips: tuple[int, ...]
    compiled: tuple[int, ...]
    matrices: tuple[int, ...]
    seconds: float
    agreement_rows: str
    served: tuple[str, ...]
    connections: int
    http_workers: int
    repository: Path
    trained: tuple[str, str, str] | None = None
    instances: tuple[int, ...] = (1, 2)
    photo: Path = SAMPLE

    def contenders(self, precision: str) -> list[str]:
        """Each engine in a precision."""
        return [f"{engine} {precision}" for engine in self.engines]


FULL = Course(
    device="cuda:0",
    compared="hiera_base_224",
    others=("hiera_large_224", "hiera_tiny_224", "hiera_base_16x224", "hiera_large_16x224", "hiera_huge_224"),
    engines=("tensorrt", "onnxruntime"),
    precisions=("fp16", "bf16"),
    images=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    clips=(1, 2, 4, 8, 16),
    compiled=(64, 256, 1),
    matrices=(4096, 8192, 16384),
    seconds=2.0,
    agreement_rows="1000",
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
    compiled=(2,),
    matrices=(256,),
    seconds=0.1,
    agreement_rows="8",
    served=("hiera_tiny_224",),
    connections=2,
    http_workers=1,
    repository=REPOSITORY.with_name(f"{REPOSITORY.name}-dry-run"),
)


def jobs(course: Course, done: Mapping[str, Outcome]) -> Iterator[Job]:
    """Every job, some of them more than once; what comes next hangs on what was seen.

    Args:
        done: outcomes by the key of their job, which must have that of a job before the next is asked for.
    """
    first = course.precisions[0]
    for precision in course.precisions:
        yield replace(
            _job(course, "matrix", f"torch {precision}", course.compared), variant="", batches=course.matrices
        )
        yield from _rates(course, course.compared, precision, done)
        kinds = (yield from _eager(course, done)) if precision == first else ()
        yield from _agreement(course, precision, done)
        for variant in (course.compared, *course.others[:1]):
            yield from _rates_and_http(course, variant, precision, done)
        yield from _compiled(course, kinds, done)
        for variant in course.others[1:]:
            yield from _rates_and_http(course, variant, precision, done)


def fastest(done: Mapping[str, Outcome], variant: str, contenders: list[str]) -> tuple[str, float] | None:
    """Of some contenders the one with the most rows a second at any batch size."""
    ran = {name: max(rates) for name in contenders if (rates := _rates_seen(done, variant, name))}
    return max(ran.items(), key=lambda each: each[1], default=None)


def _rates_and_http(course: Course, variant: str, precision: str, done: Mapping[str, Outcome]) -> Iterator[Job]:
    if variant != course.compared:
        yield from _rates(course, variant, precision, done)
    if precision == course.precisions[0] and variant in course.served:
        yield from _http(course, variant, precision, done)


def _rates(course: Course, variant: str, precision: str, done: Mapping[str, Outcome]) -> Iterator[Job]:
    for contender in course.contenders(precision):
        job = _job(course, "rates", contender, variant)
        if (yield from _built(job, done)):
            yield job


def _eager(course: Course, done: Mapping[str, Outcome]) -> Generator[Job, Any, tuple[str, ...]]:
    """Torch as it is; the kinds that are worth compiling."""
    kinds = TORCHES
    while kinds:
        eager = _job(course, "rates", f"{kinds[0]} {TORCH_PRECISION}", course.compared)
        yield eager
        if _ran(eager, done):
            break
        kinds = kinds[1:]
    return kinds


def _compiled(course: Course, kinds: tuple[str, ...], done: Mapping[str, Outcome]) -> Iterator[Job]:
    for batch in course.compiled:
        for kind in kinds:
            compiled = _job(course, "rates", f"{kind}-compiled {TORCH_PRECISION}", course.compared)
            compiled = replace(compiled, batches=(batch,), apart=f"batch {batch}")
            yield compiled
            if was_stopped(done[compiled.key]):
                kinds = kinds[:1]  # what stands in would take as long
                break
            if _ran(compiled, done):
                break


def _agreement(course: Course, precision: str, done: Mapping[str, Outcome]) -> Iterator[Job]:
    for contender in course.contenders(precision):
        found = [replace(_job(course, "agreement", contender, course.compared), rows=course.agreement_rows)]
        if course.trained is not None:
            variant, weights, rows = course.trained
            job = _job(course, "agreement", contender, variant)
            found.append(replace(job, rows=rows, weights=weights, apart="trained"))
        for job in found:
            if (yield from _built(job, done)):
                yield job


def _http(course: Course, variant: str, precision: str, done: Mapping[str, Outcome]) -> Iterator[Job]:
    best = fastest(done, variant, course.contenders(precision))
    if best is None:
        return
    for instances in course.instances:
        yield replace(
            _job(course, "http", best[0], variant),
            apart=f"{instances} instance{'s' * (instances > 1)}",
            photo=str(course.photo),
            connections=course.connections,
            http_workers=course.http_workers,
            instances=instances,
        )


def _built(job: Job, done: Mapping[str, Outcome]) -> Generator[Job, Any, bool]:
    """What builds the package, and the plan where there has to be one; whether they are there. They are jobs of their
    own because they take minutes, and so that what cannot be built is tried once."""
    contenders = [f"package {job.precision}"]
    if job.contender.startswith("tensorrt"):
        contenders.append(job.contender)
    for contender in contenders:
        build = replace(job, what="build", contender=contender, rows="")
        yield build
        if not _ran(build, done):
            return False
    return True


def _ran(job: Job, done: Mapping[str, Outcome]) -> bool:
    return "result" in done[job.key]


def _rates_seen(done: Mapping[str, Outcome], variant: str, contender: str) -> list[float]:
    """At all batch sizes; torch.compile has a job for each."""
    found: list[float] = []
    for outcome in done.values():
        job = outcome["job"]
        if (job["what"], job["variant"], job["contender"]) == ("rates", variant, contender) and "result" in outcome:
            found += outcome["result"]["rates"].values()
    return found


def _job(course: Course, what: str, contender: str, variant: str) -> Job:
    batches = course.images if find_variant(variant).task == "image" else course.clips
    return Job(what, contender, variant, course.device, str(course.repository), batches, course.seconds)
