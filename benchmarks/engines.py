"""Engines over variants and batch sizes: torch eager, ONNX Runtime, OpenVINO; each in a process of its own.

python -m benchmarks.engines --variants hiera_tiny_224,hiera_base_224 --batches 1,2,4,8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial

from app.load.table import text_table
from app.serving.proven import load_engine
from benchmarks.bare import engine_options, time_batch
from benchmarks.contenders import ROOT
from benchmarks.packages import random_package
from benchmarks.results import add_output_argument, median, median_seconds, spread, write_results

ENGINES = ("torch fp32", "onnxruntime fp32", "openvino fp32", "openvino bf16")


def rates_here(variant: str, engine: str, batches: list[int], seconds: float) -> dict[int, float]:
    """Rows per second by batch size, in this process."""
    name, precision = engine.split()
    if name == "torch":
        return _torch_rates(variant, batches, seconds)
    loaded = load_engine(random_package(variant), name, engine_options(name, precision, max(batches)))
    return {rows: rows / time_batch(loaded, rows, seconds) for rows in batches}


def _torch_rates(variant: str, batches: list[int], seconds: float) -> dict[int, float]:
    import torch

    from app.engines.cpus import available_cpus
    from export.hiera import create_model

    torch.set_num_threads(available_cpus())
    model = create_model(variant).eval()
    rates = {}
    with torch.inference_mode():
        for rows in batches:
            pixels = torch.randn(rows, 3, *model.config.input_size)
            rates[rows] = rows / median_seconds(partial(model, pixels), seconds)
    return rates


def _rates_in_a_process(variant: str, engine: str, batches: str, seconds: float) -> dict[int, float]:
    command = [sys.executable, "-m", "benchmarks.engines", "--variants", variant, "--one", engine]
    finished = subprocess.run(
        [*command, "--batches", batches, "--seconds", str(seconds)],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    return {int(rows): float(rate) for rows, rate in json.loads(finished.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="hiera_tiny_224,hiera_small_224,hiera_base_224,hiera_base_16x224")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each batch size in each round")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # how this program calls itself
    add_output_argument(parser)
    arguments = parser.parse_args()
    batches = [int(part) for part in arguments.batches.split(",")]
    if arguments.one:
        print(json.dumps(rates_here(arguments.variants, arguments.one, batches, arguments.seconds)))
        return
    measured: dict[str, dict[str, dict[int, list[float]]]] = {}
    for variant in arguments.variants.split(","):
        random_package(variant)
        of_variant = measured.setdefault(variant, {})
        for number in range(arguments.rounds):
            for engine in arguments.engines.split(","):
                print(f"{variant}  round {number + 1} of {arguments.rounds}  {engine}", file=sys.stderr)
                rates = _rates_in_a_process(variant, engine, arguments.batches, arguments.seconds)
                for rows, rate in rates.items():
                    of_variant.setdefault(engine, {}).setdefault(rows, []).append(rate)
        _print_variant(variant, of_variant, batches)
    method = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    write_results(arguments.output, "engines", method, measured)


def _print_variant(variant: str, measured: dict[str, dict[int, list[float]]], batches: list[int]) -> None:
    baseline = next(iter(measured.values()))
    rows = [
        (
            engine,
            *(f"{median(by_batch[n]):.1f}" for n in batches),
            spread([a / b for a, b in zip(by_batch[batches[0]], baseline[batches[0]], strict=True)]),
        )
        for engine, by_batch in measured.items()
    ]
    header = (variant, *(f"batch {n}" for n in batches), f"÷ {next(iter(measured))} at batch {batches[0]}")
    print(f"\nrows per second\n{text_table(header, rows)}")


if __name__ == "__main__":
    main()
