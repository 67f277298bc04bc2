"""Would int8 pay on a CPU? A package quantised as CPU engines run it best, beside bf16 and fp32: agreement and time.

    python -m benchmarks.int8 hiera_tiny_224 --rows 200
    python -m benchmarks.int8 --package model_repo/hiera_demo_objects/1 --rows photos/

Operands of every linear layer but the classifier are rounded to eight bits in OpenVINO's own form (FakeQuantize), so
that its int8 kernels run them: weights with a scale for each output channel, inputs with one for the whole tensor, from
the largest value that rendered rows give it. The rest is bf16. With `inputs` alone the weights stay as they are, which
is no faster, and shows what no choice of weights could mend.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from app.engines.base import EngineInfo, Probabilities, Rows
from app.load.table import text_table
from app.repository.store import Package
from benchmarks.packages import add_package_arguments, packages_of
from benchmarks.results import add_output_argument, median, write_results
from export.agreement import least_agreement, measure_agreement, rendered, rows_to_compare

_CALIBRATION_ROWS = 8
_ROUNDS = 9
_BATCHES = (1, 4)
_LARGEST = 127.0

Ranges = dict[str, tuple[float, float]]  # of a tensor, by the name of what gives it


class OnCpu:
    """A model compiled by OpenVINO: as much of an engine as a comparison needs."""

    def __init__(self, model: ov.Model, precision: str, package: Package) -> None:
        options = {"INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16"}
        self._compiled = ov.Core().compile_model(model, "CPU", options)
        self.info = EngineInfo("openvino", precision, "cpu")
        self.row_shape = package.manifest.row_shape
        self.classes = package.manifest.num_classes
        self.max_batch = max(_BATCHES)

    def empty_rows(self, n: int) -> Rows:
        return np.empty((n, *self.row_shape), np.uint8)

    def run(self, rows: Rows) -> Probabilities:
        return np.array(self._compiled([rows])["probabilities"], np.float32)

    def close(self) -> None:
        del self._compiled


def linear_layers(model: ov.Model) -> list[Any]:
    """The MatMul nodes with fixed weights; the classifier, which reads the mean over the tokens, is the last."""
    matmuls = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [node for node in matmuls if node.input_value(1).get_node().get_type_name() == "Constant"][:-1]


def input_ranges(package: Package) -> Ranges:
    """The smallest and largest value of what every linear layer reads, over some rendered rows in fp32."""
    model = ov.Core().read_model(package.graph)
    sources = {node.input_value(0).get_node().get_friendly_name(): node.input_value(0) for node in linear_layers(model)}
    results = [ops.result(source) for source in sources.values()]
    watched = ov.Core().compile_model(
        ov.Model(results, model.get_parameters()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    seen = [
        [(float(value.min()), float(value.max())) for value in watched([row[np.newaxis]]).to_tuple()]
        for row in rendered(package.manifest.row_shape, _CALIBRATION_ROWS)
    ]
    return {
        name: (min(low for low, _ in found), max(high for _, high in found))
        for name, found in zip(sources, zip(*seen, strict=True), strict=True)
    }


def quantised(package: Package, ranges: Ranges, *, weights: bool) -> ov.Model:
    """The package's graph with the inputs of its linear layers in eight bits, and the weights, too, if wanted."""
    model = ov.Core().read_model(package.graph)
    rounded: dict[str, Any] = {}
    for node in linear_layers(model):
        source = node.input_value(0)
        name = source.get_node().get_friendly_name()
        if name not in rounded:
            low, high = ranges[name]
            top = np.float32(max(-low, high))
            bottom = np.float32(0.0 if low >= 0 else -top * (_LARGEST + 1) / _LARGEST)
            rounded[name] = ops.fake_quantize(source, bottom, top, bottom, top, 256)
        node.input(0).replace_source_output(rounded[name].output(0))
        if weights:
            constant = node.input_value(1).get_node()
            axis = 1 if node.get_attributes()["transpose_b"] else 0
            node.input(1).replace_source_output(_eight_bits(constant.get_data(), axis).output(0))
    return model


def _eight_bits(weight: NDArray[np.float32], axis: int) -> Any:
    """int8 with a scale for each output channel; `axis` is that of the inputs."""
    scale = np.maximum(np.abs(weight).max(axis=axis, keepdims=True) / _LARGEST, 1e-12).astype(np.float32)
    levels = np.rint(weight / scale).clip(-_LARGEST, _LARGEST).astype(np.int8)
    ends = np.float32(-_LARGEST), np.float32(_LARGEST)
    return ops.fake_quantize(
        ops.convert(ops.constant(levels), "f32"), *ends, ends[0] * scale, ends[1] * scale, int(2 * _LARGEST + 1)
    )


@dataclass(frozen=True)
class Found:
    """One way to compute: its agreement with fp32, and the seconds of each round by batch size (if timed)."""

    top1: float
    max_probability: float
    mean_probability: float
    seconds: dict[int, list[float]]


def measure(package: Package, rows: str) -> dict[str, Found]:
    """Agreement over `rows` (a number of rendered ones, or a folder), and times in turns."""
    ranges = input_ranges(package)
    plain = ov.Core().read_model(package.graph)
    ways = {
        "fp32": OnCpu(plain, "fp32", package),
        "bf16": OnCpu(plain, "bf16", package),
        "int8, inputs alone": OnCpu(quantised(package, ranges, weights=False), "bf16", package),
        "int8": OnCpu(quantised(package, ranges, weights=True), "bf16", package),
    }
    exact = ways["fp32"]
    times = _timed({name: ways[name] for name in ("fp32", "bf16", "int8")}, package)
    found = {}
    for name, way in ways.items():
        compared = rows_to_compare(rows, package)
        agreement = measure_agreement(way, lambda each: (exact.run(each), None), compared, max(_BATCHES))
        seconds = times.get(name, {})
        found[name] = Found(agreement.top1, agreement.max_probability, agreement.mean_probability, seconds)
    return found


def _timed(ways: Mapping[str, OnCpu], package: Package) -> dict[str, dict[int, list[float]]]:
    seconds: dict[str, dict[int, list[float]]] = {name: {size: [] for size in _BATCHES} for name in ways}
    for size in _BATCHES:
        rows = np.stack(list(rendered(package.manifest.row_shape, size)))
        for turn in range(_ROUNDS + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way.run(rows)
                if turn:  # the first prepares kernels for the size
                    seconds[name][size].append(time.perf_counter() - began)
    return seconds


def _share(found: Found, exact: Found, size: int) -> str:
    """Its time over fp32's, the median of the rounds; "" where it was not timed."""
    if not found.seconds:
        return ""
    rounds = zip(found.seconds[size], exact.seconds[size], strict=True)
    return f"{median([mine / its for mine, its in rounds]):.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_package_arguments(parser)
    add_output_argument(parser)
    arguments = parser.parse_args()
    measured: dict[str, Any] = {}
    lines = []
    for package in packages_of(arguments):
        name = package.manifest.name
        ways = measure(package, arguments.rows)
        exact = ways["fp32"]
        for way, found in ways.items():
            measured[f"{name}, {way}"] = asdict(found)
            shares = [_share(found, exact, size) for size in _BATCHES]
            agreed = f"{found.top1:.2%}"
            lines.append(
                (name, way, agreed, f"{least_agreement(package):.1%}", f"{found.max_probability:.2g}", *shares)
            )
    header = ("package", "computing", "top-1 as fp32", "needed", "largest difference")
    print(text_table((*header, *(f"time of fp32's, batch {size}" for size in _BATCHES)), lines))
    write_results(arguments.output, "int8", {"rows": arguments.rows, "rounds": _ROUNDS}, measured)


if __name__ == "__main__":
    main()
