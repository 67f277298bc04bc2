"""The TensorRT engine over a double of its bindings that computes for real, and the plans that it may load."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_double
from feature_graph import add_features, features_in
from host_device import GuardedDevice, HostDevice
from onnx import TensorProto

from app.engines.base import Graph, StagingEngine, feature_dim, features_of
from app.engines.onnxruntime import OnnxRuntimeEngine
from app.engines.plans import PlanCheck, PlanKey, PlanRecord, file_sha256, find_plan, graph_sources, record_file
from app.engines.tensorrt import TensorRtEngine
from app.errors import EngineError, EngineOutOfMemory, EngineUnavailable, PackageError

MakeGraph = Callable[..., Path]
ROW = (8, 8, 3)
KEY = PlanKey("sm_90", "tensorrt", tensorrt_double.__version__)
MEASURED = PlanCheck(max_abs_probability=0.01, max_log_ratio=0.02, top1_agreement=1.0)


def write_plan(graph: Path, key: PlanKey = KEY, **changes: Any) -> Path:
    """A plan of `graph` with a true record, but for `changes`."""
    plan = graph.parent / key.file
    plan.write_bytes(graph.read_bytes())
    facts: dict[str, Any] = {
        "key": key,
        "precision": "bf16",
        "batches": (1, 2, 4, 8),
        "sources": graph_sources(graph),
        "sha256": file_sha256(plan),
        "gpu": "a card",
        "check": MEASURED,
    }
    record_file(plan).write_text(PlanRecord(**(facts | changes)).to_json())
    return plan


def build(graph: Path, device: HostDevice | None = None, **changes: Any) -> TensorRtEngine:
    plan, record = find_plan(graph, KEY)
    settings: dict[str, Any] = {"row_shape": ROW, "classes": 5, "max_batch": 64} | changes
    return TensorRtEngine(plan, record, tensorrt_double, device=device or HostDevice(), **settings)


def draw(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *ROW), dtype=np.uint8)


def test_a_plan_and_its_record_are_called_by_what_they_are_for() -> None:
    plan = Path("1", PlanKey("sm_90", "tensorrt_rtx", "1.4.0.76").file)
    assert plan.name == "sm_90-tensorrt_rtx-1.4.0.76.plan"
    assert record_file(plan) == Path("1", "sm_90-tensorrt_rtx-1.4.0.76.plan.json")


def test_it_starts_and_ends_while_nobody_records(make_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    device = GuardedDevice()
    runtime = tensorrt_double.Runtime

    def started(logger: Any) -> tensorrt_double.Runtime:
        device.note("Runtime")
        return runtime(logger)

    monkeypatch.setattr(tensorrt_double, "Runtime", started)
    graph = make_graph()
    write_plan(graph)
    engine = build(graph, device)
    engine.run(draw(3))
    engine.close()
    assert device.unguarded == []
    assert device.depth == 0


def test_it_gives_features_where_the_plan_has_them(make_graph: MakeGraph) -> None:
    graph = add_features(make_graph())
    write_plan(graph)
    engine = build(graph)
    assert feature_dim(engine) == 3
    for n in (8, 1, 3):  # 3 runs as 4
        engine.run(draw(n, n))
        np.testing.assert_allclose(features_of(engine), features_in(graph, draw(n, n)), atol=1e-5)
    first = features_of(engine)
    kept = first.copy()
    engine.run(draw(3, 9))
    np.testing.assert_array_equal(first, kept)
    engine.close()


def test_a_plan_without_features_serves_without(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    engine = build(graph)
    assert feature_dim(engine) == 0
    with pytest.raises(EngineError, match="gives no features"):
        features_of(engine)
    engine.close()


def test_a_plan_whose_features_are_no_float32_rows_is_refused(make_graph: MakeGraph) -> None:
    graph = add_features(make_graph(), shape=(3, 1))
    write_plan(graph)
    with pytest.raises(PackageError, match=r"not float32 \[n, D\]"):
        build(graph)
    graph = add_features(make_graph(), TensorProto.UINT8)
    write_plan(graph)
    with pytest.raises(PackageError, match=r"not float32 \[n, D\]"):
        build(graph)


def test_a_plan_with_further_tensors_is_refused(make_graph: MakeGraph) -> None:
    graph = make_graph()
    model = onnx.load(graph)
    model.graph.output.append(onnx.helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n", 3]))
    onnx.save(model, graph)
    write_plan(graph)
    with pytest.raises(PackageError, match="has the tensors mean, probabilities, rows, not rows, probabilities and"):
        build(graph)


def test_a_plan_of_other_kinds_of_numbers_is_refused(make_graph: MakeGraph) -> None:
    graph = make_graph()
    model = onnx.load(graph)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, graph)
    write_plan(graph)
    with pytest.raises(PackageError, match=r"takes DataType.FLOAT rows .*, not uint8"):
        build(graph)
    graph = make_graph()
    model = onnx.load(graph)
    model.graph.node[-1].output[0] = "exact"
    model.graph.node.append(onnx.helper.make_node("Cast", ["exact"], ["probabilities"], to=TensorProto.UINT8))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, graph)
    write_plan(graph)
    with pytest.raises(PackageError, match=r"gives DataType.UINT8 .* and float32 \(5,\)"):
        build(graph)


def test_it_answers_as_the_graph_does_at_every_batch_size_and_each_time(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    plain = OnnxRuntimeEngine(Graph(graph, ROW, 5, "fp32"), threads=1, max_batch=8)
    device = HostDevice()
    engine = build(graph, device)
    assert isinstance(engine, StagingEngine)
    for seed, n in enumerate((1, 2, 3, 5, 8, 3, 1)):
        rows = draw(n, seed)
        if seed % 2:
            device.log.clear()
            engine.stage(rows)
            assert device.log == ["upload"]  # while the batch before runs
        np.testing.assert_allclose(engine.run(rows), plain.run(rows), atol=1e-6)
    recorded = {each for each in device.held if isinstance(each, tuple) and each[0] == "recorded"}
    assert len(recorded) == 4  # sizes 1, 2, 4 and 8
    for context in engine._contexts.values():
        assert context.streams == {engine._pipeline.stream}
    assert engine.empty_rows(3).shape == (3, *ROW)
    engine.close()
    assert not device.held


def test_it_says_what_it_is(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    engine = build(graph)
    assert (engine.info.name, engine.info.precision, engine.info.device) == ("tensorrt", "bf16", "cuda:0")
    assert engine.info.detail == "tensorrt 11.9.0.1, sm_90, the host's memory, CUDA graphs"
    assert engine.max_batch == 8  # the plan's, where settings allow more
    assert json.loads(engine.layers(tensorrt_double)) == {"Layers": ["fused"]}


def test_tensorrt_rtx_compiles_for_each_size_before_its_graph_is_recorded(make_graph: MakeGraph) -> None:
    graph = make_graph()
    rtx = PlanKey("sm_89", "tensorrt_rtx", tensorrt_double.__version__)
    write_plan(graph, rtx)
    plan, record = find_plan(graph, rtx)
    engine = TensorRtEngine(
        plan, record, tensorrt_double, row_shape=ROW, classes=5, max_batch=8, device=HostDevice(architecture="sm_89")
    )
    for context in engine._contexts.values():
        assert context.runtime_config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert engine.run(draw(2)).shape == (2, 5)


def test_settings_can_lower_the_largest_batch_of_a_plan(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    assert build(graph, max_batch=3).max_batch == 3


def test_a_missing_plan_is_refused_with_the_command_that_makes_it(make_graph: MakeGraph) -> None:
    graph = make_graph()
    with pytest.raises(EngineUnavailable) as refused:
        find_plan(graph, KEY)
    assert str(refused.value) == (
        f"no TensorRT plan for sm_90 and tensorrt 11.9.0.1 (there is none at all): "
        f"run hiera-export tensorrt {graph.parent}"
    )


@pytest.mark.parametrize(
    "other",
    [
        PlanKey("sm_80", "tensorrt", "11.9.0.1"),
        PlanKey("sm_90", "tensorrt", "11.8.0.1"),
        PlanKey("sm_90", "tensorrt_rtx", "11.9.0.1"),
    ],
)
def test_a_plan_for_another_gpu_release_or_flavour_is_named_and_never_loaded(
    make_graph: MakeGraph, other: PlanKey
) -> None:
    graph = make_graph()
    write_plan(graph, other)
    with pytest.raises(EngineUnavailable, match=f"there is {other.file}.*run hiera-export tensorrt"):
        find_plan(graph, KEY)


def test_all_plans_of_other_machines_are_named(make_graph: MakeGraph) -> None:
    graph = make_graph()
    for architecture in ("sm_89", "sm_120", "sm_80"):
        write_plan(graph, PlanKey(architecture, "tensorrt", "11.9.0.1"))
    with pytest.raises(EngineUnavailable) as refused:
        find_plan(graph, KEY)
    names = [f"{architecture}-tensorrt-11.9.0.1.plan" for architecture in ("sm_120", "sm_80", "sm_89")]
    assert f"(there are {', '.join(names)})" in str(refused.value)


def test_a_plan_under_a_false_name_is_refused_by_its_record(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph, key=KEY)
    other = PlanKey("sm_80", "tensorrt", "11.9.0.1")
    plan = graph.parent / KEY.file
    plan.rename(graph.parent / other.file)
    record_file(plan).rename(record_file(graph.parent / other.file))
    with pytest.raises(PackageError, match=r"its record is of sm_90.*--replace"):
        find_plan(graph, other)


def test_a_plan_of_another_graph_is_refused(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    graph.write_bytes(make_graph(seed=9).read_bytes())
    with pytest.raises(PackageError, match="was built from another"):
        find_plan(graph, KEY)


def test_weights_in_a_file_of_their_own_count_as_the_graph(make_graph: MakeGraph) -> None:
    graph = make_graph()
    weights = graph.with_name(graph.name + ".data")
    weights.write_bytes(b"weights")
    write_plan(graph)
    find_plan(graph, KEY)
    weights.write_bytes(b"other weights")
    with pytest.raises(PackageError, match="was built from another"):
        find_plan(graph, KEY)


def test_a_plan_that_was_changed_is_never_given_to_tensorrt(make_graph: MakeGraph) -> None:
    graph = make_graph()
    plan = write_plan(graph)
    plan.write_bytes(plan.read_bytes() + b"\0")
    with pytest.raises(PackageError, match="was changed after it was built"):
        find_plan(graph, KEY)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1, "check": null}'])
def test_a_record_that_cannot_be_read_is_refused(make_graph: MakeGraph, text: str) -> None:
    graph = make_graph()
    record_file(write_plan(graph)).write_text(text)
    with pytest.raises(PackageError, match="cannot be read as the record of a plan"):
        find_plan(graph, KEY)


def test_a_record_of_another_schema_or_none_at_all_is_refused(make_graph: MakeGraph) -> None:
    graph = make_graph()
    plan = write_plan(graph, schema_version=2)
    with pytest.raises(PackageError, match=r"as the record of a plan \(schema version 2, not 1\)"):
        find_plan(graph, KEY)
    record_file(plan).unlink()
    with pytest.raises(PackageError, match="cannot be read as the record of a plan"):
        find_plan(graph, KEY)


def test_a_record_is_read_as_it_was_written(make_graph: MakeGraph) -> None:
    graph = make_graph()
    plan = write_plan(graph, check=None)
    _, record = find_plan(graph, KEY)
    assert record.check is None
    write_plan(graph)
    _, record = find_plan(graph, KEY)
    assert record == PlanRecord(KEY, "bf16", (1, 2, 4, 8), graph_sources(graph), file_sha256(plan), "a card", MEASURED)


def test_what_tensorrt_cannot_read_is_refused_in_its_words(make_graph: MakeGraph) -> None:
    graph = make_graph()
    plan = write_plan(graph)
    plan.write_bytes(b"no plan")
    write_record = PlanRecord(KEY, "bf16", (1, 8), graph_sources(graph), file_sha256(plan), "", None)
    record_file(plan).write_text(write_record.to_json())
    with pytest.raises(PackageError, match="the magic tag does not match"):
        build(graph)


def test_a_plan_for_other_rows_or_classes_is_refused_before_anything_is_allocated(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    device = HostDevice()
    with pytest.raises(PackageError, match=r"not uint8 \(16, 16, 3\)"):
        build(graph, device, row_shape=(16, 16, 3))
    with pytest.raises(PackageError, match=r"float32 \(7,\)"):
        build(graph, device, classes=7)
    assert not device.held


def test_a_batch_that_tensorrt_refuses_or_fails_is_an_engine_error(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    engine = build(graph)
    engine._contexts[2].fails_with = "Cuda Runtime (an illegal memory access)"
    with pytest.raises(EngineError, match="illegal memory access"):
        engine.run(draw(2))
    engine._contexts[2].fails_with = "Cuda Runtime (out of memory)"
    with pytest.raises(EngineOutOfMemory):
        engine.run(draw(2))


def test_a_plan_that_takes_no_batch_of_a_size_is_not_begun_with(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph, batches=(1, 16))
    device = HostDevice()
    with pytest.raises(EngineError, match=r"takes no batch of 16 rows.*outside of the profile"):
        build(graph, device)
    assert not device.held


class Refusals:
    """Stand for the method of a context, or of the engine, that says no."""

    @staticmethod
    def create_execution_context(engine: Any, how: Any) -> None:
        engine.logger.log(tensorrt_double.Severity.ERROR, "no room for what it computes in")

    @staticmethod
    def set_optimization_profile_async(context: Any, profile: int, stream: int) -> bool:
        return False

    @staticmethod
    def set_tensor_address(context: Any, name: str, address: int) -> bool:
        return name != "probabilities"


@pytest.mark.parametrize(
    ("owner", "method", "kind", "said"),
    [
        ("CudaEngine", "create_execution_context", EngineOutOfMemory, "cuda:0 has no room for the plan .no room for"),
        ("ExecutionContext", "set_optimization_profile_async", EngineError, "takes no batch of 1 rows"),
        ("ExecutionContext", "set_tensor_address", EngineError, "does not take the address of probabilities"),
    ],
)
def test_what_tensorrt_says_no_to_is_not_begun_with(
    make_graph: MakeGraph,
    monkeypatch: pytest.MonkeyPatch,
    owner: str,
    method: str,
    kind: type[EngineError],
    said: str,
) -> None:
    graph = make_graph()
    write_plan(graph)
    monkeypatch.setattr(getattr(tensorrt_double, owner), method, getattr(Refusals, method))
    device = HostDevice()
    with pytest.raises(kind, match=said):
        build(graph, device)
    assert not device.held


def test_whatever_goes_wrong_at_the_beginning_nothing_is_kept(
    make_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make_graph()
    write_plan(graph)

    def fail(*_: object) -> None:
        raise TypeError("incompatible function arguments")  # as bindings of another release may say

    monkeypatch.setattr(tensorrt_double.CudaEngine, "create_execution_context", fail)
    device = HostDevice()
    with pytest.raises(TypeError):
        build(graph, device)
    assert not device.held


def test_the_device_is_chosen_before_a_plan_is_put_on_it_and_no_empty_memory_is_asked_for(
    make_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(HostDevice):
        used = False

        def use(self) -> None:
            self.used = True

        def allocate(self, nbytes: int) -> int:
            assert nbytes > 0  # CUDA gives no address for that
            return super().allocate(nbytes)

    graph = make_graph()
    write_plan(graph)
    device, deserialize = Strict(), tensorrt_double.Runtime.deserialize_cuda_engine

    def small(runtime: tensorrt_double.Runtime, plan: bytes) -> tensorrt_double.CudaEngine | None:
        assert device.used
        engine = deserialize(runtime, plan)
        assert engine is not None
        engine.device_memory_size_v2 = 0
        return engine

    monkeypatch.setattr(tensorrt_double.Runtime, "deserialize_cuda_engine", small)
    engine = build(graph, device)
    assert engine.run(draw(2)).shape == (2, 5)
    engine.close()
    assert not device.held


def test_it_ends_what_was_recorded_then_the_contexts_then_their_memory_and_keeps_no_plan(
    make_graph: MakeGraph,
) -> None:
    ended: list[object] = []

    class Noting(HostDevice):
        def end_recorded(self, recorded: int) -> None:
            ended.append("recorded")
            super().end_recorded(recorded)

        def free(self, address: int) -> None:
            ended.append(address)
            super().free(address)

    graph = make_graph()
    write_plan(graph, batches=(1, 2))
    engine = build(graph, Noting())
    for n in (1, 2):
        engine.run(draw(n))
    memory = engine._memory
    for context in engine._contexts.values():
        weakref.finalize(context, ended.append, "context")
    weakref.finalize(engine._engine, ended.append, "plan")
    del context
    engine.close()
    order = [each for each in ended if each in ("recorded", "context", memory, "plan")]
    assert order == ["recorded", "recorded", "context", "context", memory, "plan"]


def test_each_size_has_a_context_of_its_own_and_all_share_one_memory(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    engine = build(graph)
    assert len({id(context) for context in engine._contexts.values()}) == 4
    assert len({context.memory for context in engine._contexts.values()}) == 1


def test_each_size_runs_in_the_profile_that_is_for_it(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    engine = build(graph)
    assert {size: context.profile for size, context in engine._contexts.items()} == {1: 0, 2: 0, 4: 1, 8: 1}


def test_a_device_without_room_for_the_batches_is_named_as_that(make_graph: MakeGraph) -> None:
    graph = make_graph()
    write_plan(graph)
    device = HostDevice(room=100)
    with pytest.raises(EngineOutOfMemory):
        build(graph, device)
    assert not device.held
