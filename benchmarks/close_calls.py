"""What it costs that close calls of bf16 are decided in fp32, and what it gains, on a CPU that computes in bf16.

Row by row through OpenVINO in bf16, as "auto" serves it, and in fp32, in turns; answers against ONNX Runtime's in fp32.

python -m benchmarks.close_calls --package model_repo/hiera_demo_objects/1 --rows PHOTOS
python -m benchmarks.close_calls hiera_tiny_224 --rows PHOTOS
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from app.engines.base import Rows
from app.engines.close_calls import CloseCalls
from app.engines.factory import EngineOptions, EnginePrecision
from app.load.table import text_table
from app.repository.store import Package
from app.serving.proven import build_engine, load_engine
from benchmarks.packages import add_package_arguments, packages_of
from benchmarks.results import add_output_argument, write_results
from export.agreement import rows_to_compare

WAYS: tuple[EnginePrecision, ...] = ("bf16", "auto", "fp32")


@dataclass
class Tally:
    """One way to compute, over all rows.

    Attributes:
        seconds: that all rows took together, one by one.
        other_class: rows whose likeliest class is not fp32's.
        largest_difference: of any probability from fp32's.
        again: rows that were run again, and the margin under which a call was close; None where nothing is.
    """

    rows: int = 0
    seconds: float = 0.0
    other_class: int = 0
    largest_difference: float = 0.0
    again: int | None = None
    margin: float | None = None


def measure(package: Package, rows: Iterable[Rows]) -> dict[str, Tally]:
    """Every row through every way, the first of which moves on by one each time."""
    judge = load_engine(package, "onnxruntime", EngineOptions(device="cpu", max_batch=1))
    engines = {way: build_engine(package, "openvino", EngineOptions(precision=way, max_batch=1)) for way in WAYS}
    if not isinstance(engines["auto"], CloseCalls):
        raise SystemExit("this CPU has no instructions for bf16, or the package is in bf16: nothing is decided in fp32")
    tallies: dict[str, Tally] = {way: Tally() for way in WAYS}
    tallies["auto"].again, tallies["auto"].margin = 0, engines["auto"].margin
    for number, row in enumerate(rows):
        batch = row[np.newaxis]
        expected = judge.run(batch)[0]
        for turn in range(len(WAYS)):
            way = WAYS[(number + turn) % len(WAYS)]
            tally, engine = tallies[way], engines[way]
            begin = time.perf_counter()
            answer = engine.run(batch)[0]
            tally.seconds += time.perf_counter() - begin
            tally.rows += 1
            tally.other_class += int(answer.argmax() != expected.argmax())
            tally.largest_difference = max(tally.largest_difference, float(np.abs(answer - expected).max()))
            if tally.again is not None and isinstance(engine, CloseCalls):
                tally.again += engine.again
    for engine in (judge, *engines.values()):
        engine.close()
    return tallies


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_package_arguments(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()
    measured: dict[str, dict[str, object]] = {}
    lines = []
    for package in packages_of(arguments):
        tallies = measure(package, rows_to_compare(arguments.rows, package))
        measured[package.manifest.name] = {way: asdict(tally) for way, tally in tallies.items()}
        for way, tally in tallies.items():
            again = "" if tally.again is None else f"{tally.again / tally.rows:.1%}"
            lines.append(
                (
                    package.manifest.name,
                    way,
                    str(tally.rows),
                    f"{tally.seconds / tally.rows * 1e3:.2f}",
                    f"{tally.seconds / tallies['fp32'].seconds:.2f}",
                    again,
                    str(tally.other_class),
                    f"{tally.largest_difference:.2g}",
                )
            )
    header = ("model", "way", "rows", "ms a row", "÷ fp32", "again", "other class than fp32's", "largest difference")
    print(text_table(header, lines))
    write_results(arguments.output, "close_calls", {"rows": Path(arguments.rows).name}, measured)


if __name__ == "__main__":
    main()
