"""One job of `benchmarks.gpu`, in the process that this is; its result is the last line of stdout.

    python -m benchmarks.gpu_contenders '{"what": "rates", "contender": "tensorrt fp16", …}'

Torch gets its input where it computes, as published figures do; engines get uint8 rows in pinned host memory and give
probabilities back to the host, as in the server.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from app.engines.base import Engine, Rows, StagingEngine
from app.errors import HieraError
from benchmarks.gpu_http import http_rate
from benchmarks.gpu_jobs import Job, end_with_parent, in_one_line
from benchmarks.gpu_packages import build, open_contender, prepare
from benchmarks.results import median_seconds


def engine_rates(job: Job) -> dict[str, Any]:
    """Rows per second by batch size, and milliseconds of one row that nothing runs beside.

    A size that fails ends the ladder, and is why it is "stopped"; the first that does is the job's failure.
    """
    engine = open_contender(job, prepare(job))
    one = _random_rows(engine, 1)
    one_row_ms = 1000 * _median_seconds(lambda: engine.run(one), job.seconds)
    measured: dict[str, Any] = {"one_row_ms": one_row_ms, "detail": engine.info.detail}
    rates: dict[int, float] = {}
    for batch in job.batches:
        try:
            rates[batch] = batch / seconds_of_a_batch(engine, batch, job.seconds)
        except Exception as error:  # the card's, the engine's or numpy's: what was measured before it holds
            if not rates:
                raise
            measured["stopped"] = in_one_line(f"batch {batch}: {type(error).__name__}: {error}")
            break
    # What failed once may fail to end, too.
    with contextlib.suppress(Exception) if "stopped" in measured else contextlib.nullcontext():
        engine.close()
    return measured | {"rates": rates}


def seconds_of_a_batch(engine: Engine, batch: int, seconds: float) -> float:
    """The median while one batch follows another, as in the server: the next is copied to the card while one runs."""
    buffers = [_random_rows(engine, batch) for _ in range(2)]
    if engine.info.device == "cpu" or not isinstance(engine, StagingEngine):
        return _median_seconds(lambda: engine.run(buffers[0]), seconds)

    def run() -> None:
        buffers.reverse()
        engine.stage(buffers[0])
        engine.run(buffers[1])

    engine.stage(buffers[0])
    taken = _median_seconds(run, seconds)
    engine.run(buffers[0])  # what is staged and never run would keep a place from the next size
    return taken


def torch_rates(job: Job) -> dict[str, Any]:
    """Rows per second of torch: this project's model or the reference package's, as it is or compiled."""
    import torch

    kind, _, compiled = job.contender.split()[0].partition("-")
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[job.precision]
    model, input_size = _torch_model(kind, job.variant)
    model = model.to(job.device, dtype).eval()
    on_gpu = job.device.startswith("cuda")
    rates: dict[int, float] = {}
    with torch.inference_mode():
        for batch in job.batches:
            pixels = torch.randn(batch, 3, *input_size, device=job.device, dtype=dtype)
            runs = model
            if compiled:
                # At its best: for this one size. What is compiled once for all sizes is slower at each.
                torch.compiler.reset()
                runs = torch.compile(model, mode="max-autotune" if on_gpu else "default", dynamic=False)

            def run(runs: Any = runs, pixels: Any = pixels) -> None:
                runs(pixels)
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
    measured = measure_agreement(engine, torch_judge(found[0], package, job.device), rows, job.batches[-1])
    engine.close()
    return asdict(measured)


def _random_rows(engine: Engine, batch: int) -> Rows:
    rows = engine.empty_rows(batch)
    rows[...] = np.random.default_rng(0).integers(0, 256, rows.shape, dtype=np.uint8)
    return rows


def _median_seconds(run: Callable[[], object], seconds: float) -> float:
    return median_seconds(run, seconds, least=5, warming=3)  # it allocates, chooses kernels, compiles, records


def main() -> None:
    """Do the job that the first argument describes."""
    end_with_parent()
    job = Job.of(json.loads(sys.argv[1]))
    kinds: dict[str, Callable[[Job], dict[str, Any]]] = {
        "matrix": matrix_rate,
        "build": build,
        "agreement": agreement,
        "http": http_rate,
    }
    torch_is_it = job.contender.startswith(("torch", "reference"))
    work = kinds.get(job.what, torch_rates if torch_is_it else engine_rates)
    print(json.dumps(work(job)))


if __name__ == "__main__":
    main()
