"""The engines over real ONNX graphs, and the factory that builds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper

from app.engines.base import Engine, Graph
from app.engines.factory import EngineOptions, candidates, create_engine, create_streams, installed_version
from app.engines.openvino import cpu_precision
from app.errors import EngineUnavailable, PackageError

MakeGraph = Callable[..., Path]
ROW = (8, 8, 3)


def build(name: str, graph: Path, options: EngineOptions | None = None, row_shape: tuple[int, ...] = ROW) -> Engine:
    options = options or EngineOptions(threads=1, precision="fp32", max_batch=8)
    return create_engine(name, Graph(graph, row_shape, 5, "fp32"), options)


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (6, *ROW), dtype=np.uint8)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_engine_classifies_every_batch_size_alike(name: str, make_graph: MakeGraph, rows: np.ndarray) -> None:
    engine = build(name, make_graph())
    together = engine.run(rows)
    one_by_one = np.concatenate([engine.run(rows[at : at + 1]) for at in range(len(rows))])
    assert together.shape == (6, 5)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert len({tuple(row) for row in together.round(4)}) == 6
    engine.close()


def test_openvino_and_onnxruntime_agree(make_graph: MakeGraph, rows: np.ndarray) -> None:
    graph = make_graph()
    a, b = build("onnxruntime", graph), build("openvino", graph)
    np.testing.assert_allclose(a.run(rows), b.run(rows), atol=1e-5)
    a.close()
    b.close()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "noop"])
def test_a_result_belongs_to_the_caller_and_survives_the_next_run(
    name: str, make_graph: MakeGraph, rows: np.ndarray
) -> None:
    engine = build(name, make_graph())
    first = engine.run(rows[:1])
    kept = first.copy()
    engine.run(rows[1:2])
    np.testing.assert_array_equal(first, kept)
    engine.close()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_read_only_rows_of_a_video_are_accepted(name: str, make_graph: MakeGraph) -> None:
    shape = (4, *ROW)
    engine = build(name, make_graph(row_shape=shape), row_shape=shape)
    rows = engine.empty_rows(2)
    rows[...] = 9
    rows.flags.writeable = False
    assert engine.run(rows).shape == (2, 5)
    engine.close()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_for_rows_of_another_shape_is_refused(name: str, make_graph: MakeGraph) -> None:
    with pytest.raises(PackageError, match="uint8 rows"):
        build(name, make_graph(row_shape=(16, 16, 3)))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_that_takes_floats_or_has_no_probabilities_is_refused(name: str, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["rows"], ["scores"], axis=-1)],
        "wrong",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", *ROW])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", *ROW])],
    )
    path = tmp_path / "wrong.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(PackageError):
        build(name, path)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_whose_probabilities_have_another_name_is_refused(name: str, make_graph: MakeGraph) -> None:
    path = make_graph()
    model = onnx.load(path)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    onnx.save(model, path)
    with pytest.raises(PackageError, match="probabilities"):
        build(name, path)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_graph_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(PackageError, match=r"model\.onnx"):
        build(name, path)


def test_openvino_keeps_its_compiled_model_and_makes_it_again_once_it_is_damaged(
    make_graph: MakeGraph, tmp_path: Path, rows: np.ndarray
) -> None:
    options = EngineOptions(precision="fp32", threads=1, max_batch=8, cache_dir=tmp_path / "cache")
    graph = make_graph()
    answers = build("openvino", graph, options).run(rows)
    (blob,) = (tmp_path / "cache" / "openvino").glob("*/*.blob")
    written = blob.stat().st_ino
    again = build("openvino", graph, options)
    np.testing.assert_allclose(again.run(rows), answers, atol=1e-6)
    assert blob.stat().st_ino == written
    data = bytearray(blob.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1024] = bytes(1024)
    blob.write_bytes(data)
    np.testing.assert_allclose(build("openvino", graph, options).run(rows), answers, atol=1e-6)
    assert blob.stat().st_ino != written


def test_openvino_does_not_take_a_graph_for_another_that_lay_in_its_place_with_its_size_and_time(
    make_graph: MakeGraph, tmp_path: Path, rows: np.ndarray
) -> None:
    options = EngineOptions(precision="fp32", threads=1, max_batch=8, cache_dir=tmp_path / "cache")
    path, other = make_graph(seed=0), make_graph(seed=1)
    first = create_engine("openvino", Graph(path, ROW, 5, "fp32", "first"), options).run(rows)
    before = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = create_engine("openvino", Graph(path, ROW, 5, "fp32", "second"), options).run(rows)
    np.testing.assert_allclose(second, build("openvino", other).run(rows), atol=1e-6)
    assert np.abs(second - first).max() > 0.01


def test_openvino_does_without_a_cache_that_fails_while_the_server_runs(
    make_graph: MakeGraph, tmp_path: Path, rows: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # below it even root cannot make a folder
    options = EngineOptions(threads=1, precision="fp32", max_batch=8, cache_dir=tmp_path / "file")
    graph = make_graph()
    np.testing.assert_allclose(build("openvino", graph, options).run(rows), build("openvino", graph).run(rows))
    assert "not kept" in caplog.text
    graph.write_bytes(b"no graph")
    with pytest.raises(PackageError, match="cannot compile it"):
        build("openvino", graph, options)
    assert "does without its cache" not in caplog.text


def test_streams_answer_side_by_side_as_one_engine_does(make_graph: MakeGraph, rows: np.ndarray) -> None:
    graph, options = make_graph(), EngineOptions(threads=2, precision="fp32", max_batch=8)
    alone = build("openvino", graph)
    streams = create_streams("openvino", Graph(graph, ROW, 5, "fp32"), options, 2)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda stream: [stream.run(rows[at : at + 1]) for at in range(6)], streams))
    for each in answers:
        np.testing.assert_allclose(np.concatenate(each), alone.run(rows), atol=1e-5)
    assert "1 thread," in streams[0].info.detail
    streams[0].close()
    np.testing.assert_allclose(streams[1].run(rows[:1]), answers[1][0], atol=1e-5)
    with pytest.raises(EngineUnavailable):
        create_streams("onnxruntime", Graph(graph, ROW, 5, "fp32"), options, 2)


def test_openvino_computes_in_bf16_only_where_the_cpu_does(make_graph: MakeGraph) -> None:
    engine = build("openvino", make_graph(), EngineOptions(threads=1))
    assert engine.info.precision == cpu_precision("fp32", "auto")
    engine.close()


def test_openvino_computes_a_bf16_graph_as_it_says_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def cpu(*capabilities: str) -> None:
        monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "INT8", *capabilities])

    cpu("BF16")
    assert cpu_precision("bf16", "auto") == cpu_precision("bf16", "bf16") == "bf16"
    with pytest.raises(EngineUnavailable, match="in the graph's own bf16 on this CPU; for fp32, build"):
        cpu_precision("bf16", "fp32")
    assert cpu_precision("fp16", "fp32") == "fp32"
    with pytest.raises(EngineUnavailable, match="cannot compute in fp16 on this CPU"):
        cpu_precision("bf16", "fp16")
    cpu()  # its weights are widened, and everything is float32
    assert cpu_precision("bf16", "auto") == cpu_precision("bf16", "fp32") == "fp32"


def test_onnxruntime_refuses_a_precision_that_the_graph_does_not_have(make_graph: MakeGraph) -> None:
    with pytest.raises(EngineUnavailable, match="hiera-export build --precision bf16"):
        build("onnxruntime", make_graph(), EngineOptions(precision="bf16"))


def test_the_noop_engine_answers_by_the_row_alone(make_graph: MakeGraph, rows: np.ndarray) -> None:
    engine = build("noop", Path("there is no such file"))
    together = engine.run(rows)
    np.testing.assert_array_equal(together[3], engine.run(rows[3:4])[0])
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-6)
    assert engine.info.name == "noop"
    assert "NO MODEL IS RUN" in engine.info.detail


def test_auto_expects_openvino_to_be_the_fastest_on_a_cpu() -> None:
    assert candidates(EngineOptions(device="cpu")) == ["openvino", "onnxruntime"]
    assert candidates(EngineOptions(name="onnxruntime")) == ["onnxruntime"]
    assert candidates(EngineOptions(name="noop")) == ["noop"]


def test_an_engine_of_a_later_release_is_refused_in_plain_words() -> None:
    unknown: Any = "abacus"
    with pytest.raises(EngineUnavailable, match="no engine named abacus"):
        candidates(EngineOptions(name=unknown))
    with pytest.raises(EngineUnavailable, match="no engine named abacus"):
        create_engine("abacus", Graph(Path("x"), ROW, 5, "fp32"), EngineOptions())


def test_the_installed_versions_are_known() -> None:
    assert installed_version("openvino")[0].isdigit()
    assert installed_version("onnxruntime")[0].isdigit()
    assert installed_version("noop") == ""
