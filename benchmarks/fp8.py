"""Would FP8 pass the gate? Its rounding, put into a package's graph and run on any CPU, beside fp32 over many rows.

    python -m benchmarks.fp8 hiera_large_224 --rows 200
    python -m benchmarks.fp8 --package model_repo/hiera_demo_objects/1 --rows photos/

Operands of every linear layer but the classifier are rounded to float8 e4m3 (OCP 8-bit floating point, whose largest
number is 448), as engines do: weights with a scale for each output channel; inputs with one for the whole tensor,
or with one for each token, which is the kindest that kernels offer. Everything else, sums too, stays fp32, so a real
kernel can hardly come closer. Each operand is rounded alone, too: what inputs do by themselves, no choice of weights
mends. It says how close FP8 comes, and nothing of its speed.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.engines.base import Engine, Graph
from app.engines.factory import EngineOptions, create_engine
from app.load.table import text_table
from app.repository.store import Package
from benchmarks.packages import add_package_arguments, packages_of
from benchmarks.results import add_output_argument, write_results
from export.agreement import Agreement, least_agreement, measure_agreement, rows_to_compare

Scales = Literal["tensor", "token"]


@dataclass(frozen=True)
class Rounding:
    """Which operands are rounded: the inputs, with a scale for each tensor or token, or not (None), and the weights."""

    inputs: Scales | None
    weights: bool

    def __str__(self) -> str:
        words = [f"inputs (each {self.inputs})"] if self.inputs else []
        return " and ".join([*words, "weights"] if self.weights else words)


ROUNDINGS = (Rounding("tensor", True), Rounding("token", True), Rounding("token", False), Rounding(None, True))
_LARGEST = 448.0  # of e4m3
_SMALLEST_SCALE = 1e-12


def round_linears(model: Any, rounding: Rounding) -> int:
    """Round operands of every MatMul with fixed weights, in an ONNX model, in place; how many there are."""
    weights = {each.name: each for each in model.graph.initializer if len(each.dims) == 2}
    nodes: list[Any] = []
    count = 0
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            count += 1
            weight = weights[node.input[1]]
            if rounding.weights:
                weight.CopyFrom(numpy_helper.from_array(_rounded(numpy_helper.to_array(weight)), weight.name))
            if rounding.inputs:
                nodes += _rounding(node.input[0], f"{node.name}_fp8", rounding.inputs)
                node.input[0] = nodes[-1].output[0]
        nodes.append(node)
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (("fp8_largest", _LARGEST), ("fp8_smallest_scale", _SMALLEST_SCALE)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "fp8_channels"))
    return count


def _rounded(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [in, out], with a scale for each output channel."""
    scale = np.maximum(np.abs(weight).max(axis=0) / _LARGEST, _SMALLEST_SCALE)
    kept: NDArray[np.float32] = (weight / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    return kept.astype(np.float32)


def _rounding(tensor: str, name: str, scales: Scales) -> list[Any]:
    """Nodes that round a tensor [..., in]; the last one's output is what is left of it."""
    axes = ["fp8_channels"] if scales == "token" else []
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Abs", [tensor], "sizes", {}),
        ("ReduceMax", [f"{name}_sizes", *axes], "largest", {"keepdims": len(axes)}),
        ("Div", [f"{name}_largest", "fp8_largest"], "ratio", {}),
        ("Max", [f"{name}_ratio", "fp8_smallest_scale"], "scale", {}),
        ("Div", [tensor, f"{name}_scale"], "scaled", {}),
        ("Cast", [f"{name}_scaled"], "eight_bits", {"to": TensorProto.FLOAT8E4M3FN}),
        ("Cast", [f"{name}_eight_bits"], "floats", {"to": TensorProto.FLOAT}),
        ("Mul", [f"{name}_floats", f"{name}_scale"], "rounded", {}),
    ]
    return [
        helper.make_node(kind, inputs, [f"{name}_{output}"], name=f"{name}_{output}", **attributes)
        for kind, inputs, output, attributes in steps
    ]


def measure(package: Package, rows: str, rounding: Rounding) -> Agreement:
    """The agreement over a folder of photos or so many rendered rows."""
    model = onnx.load(package.graph)
    round_linears(model, rounding)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / package.graph.name
        onnx.save(model, graph)
        engine, exact = _engine(package, graph), _engine(package, package.graph)
        return measure_agreement(engine, lambda each: (exact.run(each), None), rows_to_compare(rows, package), 4)


def _engine(package: Package, graph: Path) -> Engine:
    manifest = package.manifest
    whole = Graph(graph, manifest.row_shape, manifest.num_classes, "fp32")
    return create_engine("onnxruntime", whole, EngineOptions(device="cpu", max_batch=4))


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
        for rounding in ROUNDINGS:
            found = measure(package, arguments.rows, rounding)
            measured[f"{name}, {rounding}"] = asdict(found)
            agreed, difference = f"{found.top1:.1%}", f"{found.max_probability:.2g}"
            lines.append((name, str(rounding), str(found.rows), agreed, f"{least_agreement(package):.1%}", difference))
    print(text_table(("model", "rounded", "rows", "top-1 as fp32", "needed", "largest difference"), lines))
    write_results(arguments.output, "fp8", {"rows": arguments.rows}, measured)


if __name__ == "__main__":
    main()
