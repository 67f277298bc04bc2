"""The engines over real ONNX graphs, and the factory that builds them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from app.engines.base import Engine, Graph
from app.engines.cpus import available_cpus
from app.engines.factory import (
    EngineOptions,
    candidates,
    create_engine,
    create_streams,
    engine_identity,
    engine_threads,
    installed_version,
)
from app.engines.openvino import cpu_precision, open_engines
from app.errors import EngineError, EngineOutOfMemory, EngineUnavailable, PackageError

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
@pytest.mark.parametrize("fault", ["takes floats", "takes two tensors"])
def test_a_graph_that_takes_another_input_is_refused(name: str, fault: str, make_graph: MakeGraph) -> None:
    path = make_graph()
    model = onnx.load(path)
    if fault == "takes floats":
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    else:
        model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [5]))
        model.graph.node[-1].input[0] = "sum"
        model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Add", ["logits", "more"], ["sum"]))
    onnx.save(model, path)
    with pytest.raises(PackageError, match="not one tensor of uint8 rows"):
        build(name, path)


def test_onnxruntime_refuses_probabilities_that_are_not_float32(make_graph: MakeGraph) -> None:
    path = make_graph()
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "plain"
    model.graph.node.append(helper.make_node("Cast", ["plain"], ["probabilities"], to=TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model, path)
    with pytest.raises(PackageError, match="has no float32 output named probabilities"):
        build("onnxruntime", path)


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


def test_what_openvino_compiled_is_used_for_the_same_graph_settings_release_and_machine_alone(
    make_graph: MakeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_graph().rename(tmp_path / "model[1].onnx")
    options = EngineOptions(precision="fp32", threads=1, max_batch=8, cache_dir=tmp_path / "cache")

    def kept() -> int:
        create_streams("openvino", Graph(path, ROW, 5, "fp32", "a package"), options, 1)[0].close()
        return len(list((tmp_path / "cache" / "openvino").glob("*/digests.json")))

    assert [kept(), kept()] == [1, 1]
    options = dataclasses.replace(options, threads=2)
    assert kept() == 2
    os.utime(path, ns=(1, 1))
    assert kept() == 3
    data = path.with_name("model[1].onnx.data")  # of a graph that keeps its weights beside it
    data.write_bytes(bytes(10))
    assert kept() == 4
    before = data.stat()
    data.write_bytes(bytes(11))
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert kept() == 5
    monkeypatch.setattr("app.engines.openvino.machine_id", lambda: "another CPU")
    assert kept() == 6
    monkeypatch.setattr(ov, "__version__", "2099.1")
    assert kept() == 7
    assert kept() == 7


def test_openvino_does_without_a_cache_that_it_cannot_use_itself(
    make_graph: MakeGraph, tmp_path: Path, rows: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(root: Path, identity: str, compile_in: object) -> None:
        raise RuntimeError("cannot write the blob: no space left on the device")

    options = EngineOptions(threads=1, precision="fp32", max_batch=8, cache_dir=tmp_path)
    graph = make_graph()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.engines.openvino.keep_compiled", refuse)
        engine = build("openvino", graph, options)
    np.testing.assert_allclose(engine.run(rows), build("openvino", graph).run(rows))
    assert f"does without its cache in {tmp_path / 'openvino'} (cannot write the blob" in caplog.text


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What OpenVINO is told for each model that it compiles. What it makes of that depends on the machine."""
    seen: list[dict[str, str]] = []
    compile_model = ov.Core.compile_model

    def watched(core: ov.Core, path: Path, device: str, properties: dict[str, str]) -> ov.CompiledModel:
        seen.append(properties)
        return compile_model(core, path, device, properties)

    monkeypatch.setattr(ov.Core, "compile_model", watched)
    return seen


@pytest.mark.parametrize(("threads", "count"), [(2, 1), (3, 1), (2, 2), (6, 3)])
def test_openvino_is_given_the_threads_and_streams_that_were_asked_for(
    threads: int, count: int, make_graph: MakeGraph, handed_over: list[dict[str, str]]
) -> None:
    options = EngineOptions(threads=threads, precision="fp32", max_batch=8)
    engines = create_streams("openvino", Graph(make_graph(), ROW, 5, "fp32"), options, count)
    assert [engine.max_batch for engine in engines] == [8] * count
    (given,) = handed_over
    assert (given["INFERENCE_NUM_THREADS"], given["NUM_STREAMS"]) == (str(threads), str(count))
    assert given["PERFORMANCE_HINT"] == ("LATENCY" if count == 1 else "THROUGHPUT")
    assert given["ENABLE_CPU_PINNING"] == "NO"


def test_more_streams_than_threads_say_that_each_has_one(make_graph: MakeGraph) -> None:
    (engine, _) = open_engines(Graph(make_graph(), ROW, 5, "fp32"), precision="fp32", threads=1, max_batch=8, count=2)
    assert "1 thread," in engine.info.detail


@pytest.mark.parametrize(
    ("of_graph", "precision", "told"), [("fp32", "fp32", "f32"), ("fp32", "bf16", "bf16"), ("bf16", "bf16", "f32")]
)
def test_openvino_is_told_to_lower_fp32_graphs_alone(
    of_graph: str, precision: str, told: str, make_graph: MakeGraph, handed_over: list[dict[str, str]]
) -> None:
    open_engines(Graph(make_graph(), ROW, 5, of_graph), precision=precision, threads=1, max_batch=8)
    assert handed_over[0]["INFERENCE_PRECISION_HINT"] == told


def test_onnxruntime_has_the_threads_that_were_asked_for_and_none_that_burn_a_core_while_they_wait(
    make_graph: MakeGraph,
) -> None:
    engine = build("onnxruntime", make_graph(), EngineOptions(threads=3, max_batch=7))
    assert engine.max_batch == 7
    options = engine._session.get_session_options()  # type: ignore[attr-defined]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_an_engine_has_all_cores_that_are_really_available_unless_settings_say_how_many() -> None:
    assert engine_threads(EngineOptions()) == available_cpus()
    assert engine_threads(EngineOptions(threads=available_cpus() + 1)) == available_cpus() + 1


@pytest.mark.parametrize(("name", "held"), [("onnxruntime", ["_session"]), ("openvino", ["_request", "_compiled"])])
def test_a_closed_engine_holds_nothing_of_its_library(name: str, held: list[str], make_graph: MakeGraph) -> None:
    engine = build(name, make_graph())
    parts = [weakref.ref(getattr(engine, part)) for part in held]
    assert all(part() is not None for part in parts)
    engine.close()
    assert all(part() is None for part in parts)


class Failing:
    """A request or a session that raises what a library raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> object:
        raise self._error


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("std::bad_alloc", EngineOutOfMemory),
        ("Failed to allocate memory for requested buffer of size 1234", EngineOutOfMemory),
        ("[CPU] Out of memory", EngineOutOfMemory),
        ("Concat node: axes do not match", EngineError),
    ],
)
def test_a_want_of_memory_is_told_from_other_failures(
    name: str, text: str, kind: type[EngineError], make_graph: MakeGraph, rows: np.ndarray
) -> None:
    engine = build(name, make_graph())
    setattr(engine, "_request" if name == "openvino" else "_session", Failing(RuntimeError(text)))
    with pytest.raises(EngineError, match=f"6 rows: {re.escape(text)}") as failure:
        engine.run(rows)
    assert type(failure.value) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), EngineOutOfMemory),
        (ort_errors.RuntimeException("BFCArena: Available memory is smaller than requested"), EngineOutOfMemory),
        (ort_errors.Fail("of its own"), EngineError),
        (ort_errors.InvalidArgument("of its own"), EngineError),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else type(each).__name__,
)
def test_all_that_onnxruntime_raises_is_an_engines_error(
    error: Exception, kind: type[EngineError], make_graph: MakeGraph, rows: np.ndarray
) -> None:
    engine = build("onnxruntime", make_graph())
    engine._session = Failing(error)  # type: ignore[attr-defined]
    with pytest.raises(EngineError) as failure:
        engine.run(rows)
    assert type(failure.value) is kind


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_rows_of_another_shape_fail_and_those_after_them_do_not(
    name: str, make_graph: MakeGraph, rows: np.ndarray
) -> None:
    engine = build(name, make_graph())
    with pytest.raises(EngineError, match="failed on 6 rows"):
        engine.run(np.zeros((6, 4, 4, 3), np.uint8))
    assert engine.run(rows).shape == (6, 5)


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


def test_tensorrt_refuses_a_precision_that_the_graph_does_not_have() -> None:
    with pytest.raises(EngineUnavailable, match="TensorRT computes in the graph's own fp32; for fp16, build"):
        build("tensorrt", Path("there is no such file"), EngineOptions(precision="fp16"))


def test_tensorrt_runs_on_the_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr("app.engines.gpu.build_tensorrt", lambda graph, **how: asked.append(how))
    build("tensorrt", Path("model.onnx"), EngineOptions(device="cuda:1", max_batch=7))
    assert asked == [{"device": "cuda:1", "max_batch": 7}]


def test_the_noop_engine_takes_batches_as_large_as_any_other() -> None:
    assert build("noop", Path("there is no such file"), EngineOptions(max_batch=7)).max_batch == 7


def test_a_measurement_is_of_one_engine_and_one_release_of_its_library() -> None:
    options = EngineOptions(device="cpu")
    for name in ("openvino", "onnxruntime"):
        assert engine_identity(name, Path("model.onnx"), options) == f"{name} {installed_version(name)}"


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


@pytest.mark.parametrize(
    ("distribution", "engine"),
    [
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime-gpu", "onnxruntime"),
        ("tensorrt-cu12", "tensorrt"),
        ("tensorrt-rtx-cu13", "tensorrt"),
        ("tensorrt-rtx-cu12", "tensorrt"),
    ],
)
def test_a_library_may_come_in_several_distributions(
    distribution: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name != distribution:
            raise importlib.metadata.PackageNotFoundError(name)
        return "7.8.9"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert installed_version(engine) == "7.8.9"
