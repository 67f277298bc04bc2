"""A package's graph as TensorRT's parser takes it, with the same answers.

Three things that ONNX allows and TensorRT (11.4, and tensorrt_rtx 1.7) refuses are put otherwise; the package's own
graph stays as it is, which CPUs run as well:

- it reorders no uint8 tensor: the cast to float comes before the transpose to channels first;
- its Attention has no attribute `softmax_precision`: its fused kernels keep the softmax in float32 by themselves, and
  the golden check looks at the result;
- no tensor has more than 8 axes: the reordering of tokens (`unroll`), which has up to 14, becomes a lookup of rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.errors import BuildRefused

MOST_AXES = 8


def graph_for_tensorrt(path: Path) -> bytes:
    """The rewritten model, serialized; weights in a file of their own stay there and are not read.

    Raises:
        BuildRefused: the graph is not one of ours.
    """
    model = onnx.load(path, load_external_data=False)
    rewrite(model)
    return cast("bytes", model.SerializeToString())


def rewrite(model: Any) -> None:
    """Rewrite an ONNX model in place."""
    graph = model.graph
    _cast_before_transpose(graph)
    for node in graph.node:
        if node.op_type == "Attention":
            kept = [attribute for attribute in node.attribute if attribute.name != "softmax_precision"]
            del node.attribute[:]
            node.attribute.extend(kept)
    _look_up_tokens(graph)
    _drop_unused(graph)
    del graph.value_info[:]  # shapes of tensors that are no more


def _cast_before_transpose(graph: Any) -> None:
    rows = graph.input[0].name
    for transpose in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] == rows]:
        readers = _readers(graph, transpose.output[0])
        if [reader.op_type for reader in readers] != ["Cast"]:
            raise BuildRefused(f"the graph does more with {rows} than to cast them: build the package again")
        cast_node = readers[0]
        floats = f"{rows}_as_floats"
        channels_first = cast_node.output[0]
        cast_node.input[0], cast_node.output[0] = rows, floats
        transpose.input[0], transpose.output[0] = floats, channels_first
        nodes = list(graph.node)
        nodes.remove(cast_node)
        nodes.insert(nodes.index(transpose), cast_node)
        _put(graph, nodes)


def _look_up_tokens(graph: Any) -> None:
    """[B, N, C] -> reshape -> transpose -> reshape -> [B, N, C] becomes a Gather along N."""
    constants = _constants(graph)
    makers = {output: node for node in graph.node for output in node.output}
    for transpose in [node for node in graph.node if node.op_type == "Transpose"]:
        order = list(transpose.attribute[0].ints)
        if len(order) <= MOST_AXES:
            continue
        split = makers[transpose.input[0]]
        readers = _readers(graph, transpose.output[0])
        batch_and_channels_stay = order[0] == 0 and order[-1] == len(order) - 1
        if (
            split.op_type != "Reshape"
            or [each.op_type for each in readers] != ["Reshape"]
            or not batch_and_channels_stay
        ):
            raise BuildRefused(f"{transpose.name} has {len(order)} axes and is no reordering of tokens")
        axes = [int(size) for size in constants[split.input[1]][1:-1]]
        tokens = np.arange(int(np.prod(axes)), dtype=np.int64).reshape(axes)
        index = f"{transpose.output[0]}_tokens"
        graph.initializer.append(
            numpy_helper.from_array(tokens.transpose([axis - 1 for axis in order[1:-1]]).ravel(), index)
        )
        lookup = helper.make_node(
            "Gather", [split.input[0], index], [readers[0].output[0]], axis=1, name=f"{transpose.name}_tokens"
        )
        nodes = [node for node in graph.node if node not in (split, readers[0])]
        nodes[nodes.index(transpose)] = lookup
        _put(graph, nodes)


def _drop_unused(graph: Any) -> None:
    used = {tensor for node in graph.node for tensor in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    if len(kept) < len(graph.initializer):
        copies = [type(each).FromString(each.SerializeToString()) for each in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def _readers(graph: Any, tensor: str) -> list[Any]:
    return [node for node in graph.node if tensor in node.input]


def _constants(graph: Any) -> dict[str, NDArray[Any]]:
    """Small known tensors by name; those in another file are weights and none of these."""
    found = {
        each.name: numpy_helper.to_array(each)
        for each in graph.initializer
        if each.data_location != onnx.TensorProto.EXTERNAL and each.data_type == onnx.TensorProto.INT64
    }
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _put(graph: Any, nodes: list[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
