"""What the classifier read, from each engine that can say so, beside what ONNX Runtime says when asked for that alone.

ONNX Runtime's engine for GPUs runs over the CPU's memory and provider.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from feature_graph import add_features, features_in
from host_device import HostDevice
from onnx import TensorProto, helper

from app.engines.base import Engine, Graph, feature_dim, features_of
from app.engines.factory import EngineOptions, create_engine, create_streams
from app.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from app.engines.openvino import OpenVinoEngine
from app.errors import EngineError, EngineOutOfMemory

MakeGraph = Callable[..., Path]
ROW = (8, 8, 3)
OPTIONS = EngineOptions(threads=2, precision="fp32", max_batch=8)
ENGINES = ["onnxruntime", "openvino", "onnxruntime-cuda"]


def build(name: str, path: Path) -> Engine:
    graph = Graph(path, ROW, 5, "fp32")
    if name == "onnxruntime-cuda":
        return OnnxRuntimeCudaEngine(graph, max_batch=8, device=HostDevice())
    return create_engine(name, graph, OPTIONS)


def draw(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *ROW), dtype=np.uint8)


@pytest.mark.parametrize("name", ENGINES)
def test_features_are_those_of_the_last_batch_at_every_number_of_rows(name: str, make_graph: MakeGraph) -> None:
    graph = add_features(make_graph())
    engine = build(name, graph)
    assert feature_dim(engine) == 3
    for n in (8, 1, 4, 3, 5):  # on a GPU 3 runs as 4, and 5 as 8
        rows = draw(n, n)
        engine.run(rows)
        features = features_of(engine)
        assert (features.shape, features.dtype) == ((n, 3), np.dtype(np.float32))
        np.testing.assert_allclose(features, features_in(graph, rows), atol=1e-5)
        assert len({tuple(row) for row in features.round(4)}) == n
    engine.close()


@pytest.mark.parametrize("name", ENGINES)
def test_features_belong_to_the_caller_and_survive_the_next_run(name: str, make_graph: MakeGraph) -> None:
    graph = add_features(make_graph())
    engine = build(name, graph)
    engine.run(draw(2, 1))
    first = features_of(engine)
    kept = first.copy()
    engine.run(draw(2, 2))
    second = features_of(engine)
    np.testing.assert_array_equal(first, kept)
    first[...] = -1
    np.testing.assert_allclose(second, features_in(graph, draw(2, 2)), atol=1e-5)
    engine.close()


@pytest.mark.parametrize("name", ENGINES)
def test_probabilities_are_the_same_with_features_and_without(name: str, make_graph: MakeGraph) -> None:
    with_features, without = build(name, add_features(make_graph())), build(name, make_graph())
    rows = draw(3)
    np.testing.assert_allclose(with_features.run(rows), without.run(rows), atol=1e-6)
    with_features.close()
    without.close()


@pytest.mark.parametrize("name", ENGINES)
def test_a_graph_without_features_gives_none(name: str, make_graph: MakeGraph) -> None:
    engine = build(name, make_graph())
    assert engine.run(draw(2)).shape == (2, 5)
    assert feature_dim(engine) == 0
    with pytest.raises(EngineError, match="gives no features of this model"):
        features_of(engine)
    engine.close()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("element", "shape"),
    [(TensorProto.DOUBLE, (3,)), (TensorProto.INT64, (3,)), (TensorProto.FLOAT, (3, 1)), (TensorProto.FLOAT, ())],
)
def test_features_of_another_type_or_rank_are_none_and_the_graph_is_served(
    name: str, element: int, shape: tuple[int, ...], make_graph: MakeGraph
) -> None:
    engine = build(name, add_features(make_graph(), element, shape))
    assert engine.run(draw(2)).shape == (2, 5)
    assert feature_dim(engine) == 0
    with pytest.raises(EngineError, match="gives no features of this model"):
        features_of(engine)
    engine.close()


@pytest.mark.parametrize("name", ENGINES)
def test_features_that_grow_with_the_batch_are_none_and_the_graph_is_served(name: str, make_graph: MakeGraph) -> None:
    path = make_graph()
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Transpose", ["mean"], ["features"], perm=[1, 0]))
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, [3, "n"]))
    onnx.save(model, path)
    engine = build(name, path)
    assert engine.run(draw(2)).shape == (2, 5)
    assert feature_dim(engine) == 0
    engine.close()


def test_features_that_cannot_be_fetched_are_the_engines_error(make_graph: MakeGraph) -> None:
    engine = build("openvino", add_features(make_graph()))
    engine.run(draw(2))

    class Gone:
        def get_tensor(self, name: str) -> None:
            raise RuntimeError("no such tensor")

    engine._request = Gone()  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="no features of the last batch: no such tensor"):
        features_of(engine)


def test_streams_and_twins_each_have_the_features_of_their_own_batch(make_graph: MakeGraph) -> None:
    path = add_features(make_graph())
    first, second = create_streams("openvino", Graph(path, ROW, 5, "fp32"), OPTIONS, 2)
    assert isinstance(first, OpenVinoEngine)
    engines = [first, second, first.twin()]
    batches = [draw(2, seed) for seed in range(3)]
    for engine, rows in zip(engines, batches, strict=True):
        engine.run(rows)
    for engine, rows in zip(engines, batches, strict=True):
        assert feature_dim(engine) == 3
        np.testing.assert_allclose(features_of(engine), features_in(path, rows), atol=1e-5)
        engine.close()


def test_the_noop_engine_has_no_features() -> None:
    engine = create_engine("noop", Graph(Path("there is no such file"), ROW, 5, "fp32"), OPTIONS)
    engine.run(draw(1))
    assert feature_dim(engine) == 0
    with pytest.raises(EngineError, match="noop gives no features"):
        features_of(engine)


def test_features_are_copied_from_a_gpu_only_when_they_are_asked_for_and_their_place_is_given_back(
    make_graph: MakeGraph,
) -> None:
    device = HostDevice()
    graph = Graph(add_features(make_graph()), ROW, 5, "fp32")
    engine = OnnxRuntimeCudaEngine(graph, max_batch=8, device=device)
    engine.run(draw(2))
    assert device.log.count("download") == 1
    engine.features()
    assert device.log.count("download") == 2
    engine.close()
    assert not device.held


def test_a_gpu_without_room_for_features_is_named_as_that_and_left_empty(make_graph: MakeGraph) -> None:
    class Short(HostDevice):
        def allocate(self, nbytes: int) -> int:
            if nbytes == 8 * 3 * 4:
                raise EngineOutOfMemory("no room for features")
            return super().allocate(nbytes)

    device = Short()
    with pytest.raises(EngineOutOfMemory, match="for features"):
        OnnxRuntimeCudaEngine(Graph(add_features(make_graph()), ROW, 5, "fp32"), max_batch=8, device=device)
    assert not device.held
