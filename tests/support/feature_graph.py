"""Small graphs that say what their classifier read, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper


def add_features(graph: Path, element: int = TensorProto.FLOAT, shape: tuple[int, ...] = (3,)) -> Path:
    """Have a graph of `make_graph` give the mean colour that its linear layer reads as `features`, float32 [n, 3], or
    as another `element` type and in another `shape` (of a row). Returns `graph`."""
    model = onnx.load(graph)
    model.graph.initializer.append(
        helper.make_tensor("row_of_features", TensorProto.INT64, [1 + len(shape)], [-1, *shape])
    )
    model.graph.node.append(helper.make_node("Reshape", ["mean", "row_of_features"], ["shaped_features"]))
    model.graph.node.append(helper.make_node("Cast", ["shaped_features"], ["features"], to=element))
    model.graph.output.append(helper.make_tensor_value_info("features", element, ["n", *shape]))
    onnx.save(model, graph)
    return graph


def features_in(graph: Path, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What ONNX Runtime gives when it is asked for nothing else, float32 [n, D]."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    features: NDArray[np.float32] = session.run(["features"], {session.get_inputs()[0].name: rows})[0]
    return features
