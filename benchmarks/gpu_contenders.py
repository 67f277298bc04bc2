"""One contender of `benchmarks.gpu` at a time, in a process of its own: it begins with an empty card and leaves one.

    python -m benchmarks.gpu_contenders '{"what": "rates", "contender": "tensorrt fp16", …}'

Torch gets its input where it computes, as published figures do; engines get uint8 rows in pinned host memory and give
probabilities back to the host, as in the server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from app.engines.base import Engine
from app.engines.factory import EngineName, EngineOptions, create_engine
from app.errors import HieraError
from app.repository.store import Package, discover, latest, open_package
from benchmarks.contenders import ROOT
from benchmarks.results import median


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        what: "rates", "agreement" or "matrix".
        contender: an engine, or "torch" or "reference", alone or with "-compiled"; and a precision.
        variant: its name in `hiera-export list`.
        device: "cuda:0", or "cpu" for a dry run.
        repository: where packages with random weights are kept, and plans in them.
        batches: sizes to time; of "agreement" the first is used; of "matrix" the sides of the matrices.
        seconds: of each size.
        rows: of "agreement": how many, or a folder of photos.
        weights: of "agreement": trained weights to build the package from, "" for random ones.
    """

    what: str
    contender: str
    variant: str
    device: str
    repository: str
    batches: tuple[int, ...]
    seconds: float
    rows: str = ""
    weights: str = ""

    @property
    def precision(self) -> str:
        return self.contender.split()[1]


def run_job(job: Job) -> dict[str, Any]:
    """The result of a job in a process of its own; {"error": …} where it fails, so that the others still run."""
    command = [sys.executable, "-m", "benchmarks.gpu_contenders", json.dumps(asdict(job))]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if finished.returncode == 0:
        return cast("dict[str, Any]", json.loads(finished.stdout.splitlines()[-1]))
    said = [line for line in finished.stderr.splitlines() if line.strip()]
    return {"error": said[-1][:500] if said else f"ended with {finished.returncode}"}


def prepare(job: Job) -> Package:
    """The job's package, built on first use and kept."""
    name = "_".join((job.variant, job.precision, "trained" if job.weights else "random"))
    repository = Path(job.repository)
    if not (repository / name / "1" / "model.json").is_file():
        weights = ["--weights", job.weights] if job.weights else ["--random-weights", "0"]
        command = [sys.executable, "-m", "export.cli", "build", job.variant, *weights, "--precision", job.precision]
        command += ["--name", name, "--output", str(repository), "--max-batch", "2"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    return next(open_package(path) for path in latest(discover(repository)) if path.name == name)


def open_contender(job: Job, package: Package) -> Engine:
    """An engine as the server would build it; a plan that is missing is built first."""
    name = job.contender.split()[0]
    options = EngineOptions(name=cast(EngineName, name), device=job.device, max_batch=max(job.batches))
    manifest = package.manifest
    if name == "tensorrt":
        _build_plan(job, package)
    return create_engine(name, package.graph, manifest.row_shape, manifest.num_classes, manifest.precision, options)


def _build_plan(job: Job, package: Package) -> None:
    from export.errors import BuildRefused
    from export.tensorrt_plan import PlanRequest, build_plan

    try:
        build_plan(
            package,
            PlanRequest(device=job.device, max_batch=max(job.batches)),
            lambda text: print(text, file=sys.stderr),
        )
    except BuildRefused as error:
        if "--replace" not in str(error):  # it is there already
            raise


def engine_rates(job: Job) -> dict[str, Any]:
    """Rows per second by batch size, and milliseconds of one row."""
    package = prepare(job)
    engine = open_contender(job, package)
    draw = np.random.default_rng(0)
    rates: dict[int, float] = {}
    for batch in job.batches:
        rows = engine.empty_rows(batch)
        rows[...] = draw.integers(0, 256, rows.shape, dtype=np.uint8)
        seconds = _median_seconds(lambda rows=rows: engine.run(rows), job.seconds)  # type: ignore[misc]
        rates[batch] = batch / seconds
    engine.close()
    return {"rates": rates, "detail": engine.info.detail}


def torch_rates(job: Job) -> dict[str, Any]:
    """The same of torch: this project's model or the reference package's, as it is or compiled."""
    import torch

    kind, _, compiled = job.contender.split()[0].partition("-")
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[job.precision]
    model, input_size = _torch_model(kind, job.variant)
    model = model.to(job.device, dtype).eval()
    if compiled:
        model = torch.compile(model, mode="max-autotune" if job.device != "cpu" else "default")
    on_gpu = job.device.startswith("cuda")
    rates: dict[int, float] = {}
    with torch.inference_mode():
        for batch in job.batches:
            pixels = torch.randn(batch, 3, *input_size, device=job.device, dtype=dtype)

            def run(pixels: Any = pixels) -> None:
                model(pixels)
                if on_gpu:
                    torch.cuda.synchronize()

            rates[batch] = batch / _median_seconds(run, job.seconds)
    return {"rates": rates, "detail": f"torch {torch.__version__}"}


def _torch_model(kind: str, variant: str) -> tuple[Any, tuple[int, ...]]:
    from export.hiera import CONFIGS, create_model

    if kind != "reference":
        return create_model(variant), CONFIGS[variant].input_size
    import importlib

    reference = importlib.import_module("hiera")  # the package hiera-transformer
    return getattr(reference, variant)(pretrained=False), CONFIGS[variant].input_size


def matrix_rate(job: Job) -> dict[str, Any]:
    """What the card multiplies: TFLOP/s of square matrices of random numbers, the best of some sides."""
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[job.precision]
    rates: dict[int, float] = {}
    for side in job.batches:
        a = torch.randn(side, side, device=job.device, dtype=dtype)
        b = torch.randn(side, side, device=job.device, dtype=dtype)

        def run(a: Any = a, b: Any = b) -> None:
            torch.matmul(a, b)
            if job.device.startswith("cuda"):
                torch.cuda.synchronize()

        rates[side] = 2 * side**3 / _median_seconds(run, job.seconds) / 1e12
    return {"tflops": rates, "best": max(rates.values())}


def agreement(job: Job) -> dict[str, Any]:
    """The engine beside torch in fp32 on the same device."""
    from export.agreement import measure_agreement, rows_to_compare, torch_judge
    from export.download import WeightsSource
    from export.verify import torch_model

    package = prepare(job)
    source = WeightsSource(cache=Path(job.repository))
    found = torch_model(package, Path(job.weights) if job.weights else None, source)
    if found is None:
        raise HieraError(f"{package.manifest.name}: its weights cannot be had")
    engine = open_contender(job, package)
    rows = rows_to_compare(job.rows, package)
    measured = measure_agreement(engine, torch_judge(found[0], package, job.device), rows, job.batches[0])
    engine.close()
    return asdict(measured)


def _median_seconds(run: Callable[[], object], seconds: float) -> float:
    for _ in range(3):  # allocates, chooses kernels, compiles, records
        run()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 5 or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return median(taken)


def main() -> None:
    """Do the job that the first argument describes, and print its result as the last line."""
    document = json.loads(sys.argv[1])
    job = Job(**(document | {"batches": tuple(document["batches"])}))
    kinds: dict[str, Callable[[Job], dict[str, Any]]] = {"matrix": matrix_rate, "agreement": agreement}
    torch_is_it = job.contender.startswith(("torch", "reference"))
    work = kinds.get(job.what, torch_rates if torch_is_it else engine_rates)
    print(json.dumps(work(job)))


if __name__ == "__main__":
    main()
