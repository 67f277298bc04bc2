"""The packages and plans that `benchmarks.gpu` measures: built where they are missing, and kept.

A build that is killed leaves nothing that counts as built: packages and plans get their names when they are whole.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from app.engines.base import Engine
from app.engines.factory import EngineName, EngineOptions
from app.repository.store import Package, discover, latest, open_package
from app.serving.proven import load_engine
from benchmarks.gpu_jobs import Job


def build(job: Job) -> dict[str, Any]:
    """Build the package of a job, or the plan for it where the contender runs one; false if it was there."""
    missing = not _package_file(job).is_file()
    package = prepare(job)
    return {"built": _build_plan(job, package) if job.contender.startswith("tensorrt") else missing}


def prepare(job: Job) -> Package:
    """The job's package; built if it is missing."""
    manifest = _package_file(job)
    repository = Path(job.repository)
    if not manifest.is_file():
        from export.cli import main as hiera_export

        weights = ["--weights", job.weights] if job.weights else ["--random-weights", "0"]
        command = ["build", job.variant, *weights, "--precision", job.precision, "--name", _name(job)]
        with contextlib.redirect_stdout(sys.stderr):
            status = hiera_export([*command, "--output", str(repository), "--max-batch", "2"])
        if status:  # and it has said why, as the last that was said
            raise SystemExit(status)
    return next(open_package(path) for path in latest(discover(repository)) if path.name == _name(job))


def open_contender(job: Job, package: Package) -> Engine:
    """An engine as the server would build it; a plan that is missing is built first."""
    name = job.contender.split()[0]
    options = EngineOptions(name=cast(EngineName, name), device=job.device, max_batch=job.batches[-1])
    if name == "tensorrt":
        _build_plan(job, package)
    return load_engine(package, name, options)


@contextlib.contextmanager
def repository_of_one(package: Package) -> Iterator[Path]:
    """A model repository of this package alone: a server loads, proves and times all that it finds."""
    with tempfile.TemporaryDirectory(prefix="hiera-gpu-") as folder:
        # One link to the whole folder, so that a package is to its server what it was, plans included.
        (Path(folder) / package.manifest.name).symlink_to(package.folder.parent.absolute(), target_is_directory=True)
        yield Path(folder)


def _build_plan(job: Job, package: Package) -> bool:
    """Whether it was not there."""
    from export.errors import AlreadyThere
    from export.tensorrt_plan import PlanRequest, build_plan

    request = PlanRequest(device=job.device, max_batch=job.batches[-1])
    try:
        build_plan(package, request, lambda text: print(text, file=sys.stderr))
    except AlreadyThere:
        return False
    return True


def _name(job: Job) -> str:
    return "_".join((job.variant, job.precision, "trained" if job.weights else "random"))


def _package_file(job: Job) -> Path:
    return Path(job.repository) / _name(job) / "1" / "model.json"
