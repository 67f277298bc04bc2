"""The bare engine in a loop, without a server around it: what all serving is compared with.

python -m benchmarks.bare --model hiera_tiny_224 --engine openvino --precision bf16 --batches 1,2,4,8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from app.engines.base import Engine
from app.engines.factory import EngineName, EngineOptions, EnginePrecision, engine_threads
from app.repository.store import Package
from app.serving.proven import load_engine, load_streams
from benchmarks.contenders import MODEL, ROOT
from benchmarks.packages import REPOSITORY, random_package
from benchmarks.results import median_seconds


def engine_options(engine: str, precision: str, max_batch: int) -> EngineOptions:
    """What a benchmark's words for an engine mean to the server."""
    return EngineOptions(name=cast(EngineName, engine), precision=cast(EnginePrecision, precision), max_batch=max_batch)


def time_batch(engine: Engine, rows: int, seconds: float) -> float:
    """Median seconds of a batch of `rows` random rows, over about `seconds` and at least three runs."""
    draw = np.random.default_rng(0)
    batch = engine.empty_rows(rows)
    batch[...] = draw.integers(0, 256, batch.shape, dtype=np.uint8)
    return median_seconds(lambda: engine.run(batch), seconds)


def streams_rows_per_s(package: Package, options: EngineOptions, rows: int, seconds: float) -> float:
    """Of as many streams as there are cores, each in a loop of its own: what no single loop reaches."""
    options = replace(options, max_batch=rows)
    count = engine_threads(options)
    streams = load_streams(package, options.name, options, count)
    draw = np.random.default_rng(0)
    batch = draw.integers(0, 256, (rows, *package.manifest.row_shape), dtype=np.uint8)
    until = time.perf_counter() + seconds

    def loop(stream: Engine) -> float:
        stream.run(batch)
        done, began = 0, time.perf_counter()
        while time.perf_counter() < until:
            stream.run(batch)
            done += rows
        return done / (time.perf_counter() - began)

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(loop, streams))


def rows_per_s_in_a_process(
    model: str,
    engine: str,
    precision: str,
    batches: Sequence[int],
    seconds: float,
    repository: Path = REPOSITORY,
    *,
    streams: bool = False,
) -> dict[int, float]:
    """Rows per second by batch size, measured in a fresh process that leaves no threads behind."""
    command = [sys.executable, "-m", "benchmarks.bare", "--model", model, "--engine", engine, "--precision", precision]
    command += ["--batches", ",".join(map(str, batches)), "--seconds", str(seconds), "--repository", str(repository)]
    command += ["--streams"] * streams
    finished = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True, cwd=ROOT)
    return {int(rows): float(rate) for rows, rate in json.loads(finished.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each batch size")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--streams", action="store_true", help="one engine a core, side by side, instead of one on all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    batches = [int(part) for part in arguments.batches.split(",")]
    package = random_package(arguments.model, arguments.repository)
    options = engine_options(arguments.engine, arguments.precision, max(batches))
    engine = load_engine(package, options.name, options)
    if arguments.streams:
        rates = {rows: streams_rows_per_s(package, options, rows, arguments.seconds) for rows in batches}
    else:
        rates = {rows: rows / time_batch(engine, rows, arguments.seconds) for rows in batches}
    if arguments.json:
        print(json.dumps(rates))
        return
    print(f"{arguments.model} on {engine.info.name} {engine.info.precision} ({engine.info.detail})")
    for rows, rate in rates.items():
        print(f"batch {rows:>3}: {rate:8.1f} rows/s  {1000 * rows / rate:8.1f} ms")


if __name__ == "__main__":
    main()
