"""ONNX Runtime's engine for GPUs: its bindings and staging run for real, over the CPU's memory and provider."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from host_device import GuardedDevice, HostDevice
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from app.engines import onnxruntime_cuda
from app.engines.base import Graph, StagingEngine
from app.engines.onnxruntime import OnnxRuntimeEngine, open_session, run_errors
from app.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine, require_cuda_provider
from app.errors import EngineError, EngineOutOfMemory, EngineUnavailable, PackageError

MakeGraph = Callable[..., Path]
ROW = (8, 8, 3)


def build(graph: Path, device: HostDevice | None = None, max_batch: int = 8) -> OnnxRuntimeCudaEngine:
    return OnnxRuntimeCudaEngine(Graph(graph, ROW, 5, "fp32"), max_batch=max_batch, device=device or HostDevice())


def draw(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *ROW), dtype=np.uint8)


def test_it_says_what_the_cpu_engine_says_at_every_batch_size(make_graph: MakeGraph) -> None:
    graph = make_graph()
    plain = OnnxRuntimeEngine(Graph(graph, ROW, 5, "fp32"), threads=1, max_batch=8)
    engine = build(graph)
    for n in (1, 2, 3, 5, 8, 2):
        rows = draw(n, n)
        np.testing.assert_allclose(engine.run(rows), plain.run(rows), atol=1e-6)
    engine.close()
    plain.close()


def test_staged_rows_are_answered_like_others(make_graph: MakeGraph) -> None:
    device = HostDevice()
    engine = build(make_graph(), device)
    assert isinstance(engine, StagingEngine)
    rows = engine.empty_rows(3)
    rows[...] = draw(3)
    engine.stage(rows)
    staged = engine.run(rows)
    np.testing.assert_array_equal(staged, engine.run(rows.copy()))
    assert device.log.count("upload") == 2
    engine.close()


def test_it_gives_back_what_it_took_and_takes_nothing_of_a_wrong_graph(make_graph: MakeGraph) -> None:
    device = HostDevice()
    engine = build(make_graph(), device)
    assert device.held
    engine.close()
    assert not device.held
    with pytest.raises(PackageError, match="uint8 rows"):
        build(make_graph(row_shape=(4, 4, 3)), device)
    assert not device.held


def test_it_starts_and_ends_while_nobody_records(make_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    device = GuardedDevice()

    def opened(*arguments: Any) -> ort.InferenceSession:
        device.note("open_session")
        return open_session(*arguments)

    monkeypatch.setattr(onnxruntime_cuda, "open_session", opened)
    engine = build(make_graph(), device)
    engine.run(draw(3))
    engine.close()
    assert device.unguarded == []
    assert device.depth == 0


def test_a_device_without_room_is_named_as_that(make_graph: MakeGraph) -> None:
    with pytest.raises(EngineOutOfMemory):
        build(make_graph(), HostDevice(room=100))


@pytest.mark.parametrize("said", ["BFCArena: Available memory of 0 is smaller", "CUDA failure 2: out of memory"])
def test_a_session_that_has_no_room_is_named_as_that(
    make_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ort_errors.RuntimeException(said)

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    device = HostDevice()
    with pytest.raises(EngineOutOfMemory, match=said):
        build(make_graph(), device)
    assert not device.held


def test_onnxruntime_itself_never_falls_back_to_another_provider(make_graph: MakeGraph) -> None:
    engine = build(make_graph())
    assert not engine._session._enable_fallback  # it has no question for that
    engine.close()


@pytest.mark.parametrize("kind", ["EPFail", "NotImplemented", "Fail", "RuntimeException", "InvalidArgument"])
def test_whatever_a_run_fails_with_is_an_engine_s_error(kind: str) -> None:
    with pytest.raises(EngineError, match="a kernel failed"), run_errors(3):
        raise getattr(ort_errors, kind)("a kernel failed")


def test_its_description_names_the_device_and_the_provider_that_computes(make_graph: MakeGraph) -> None:
    engine = build(make_graph(), HostDevice(name="cuda:3"))
    assert engine.info.device == "cuda:3"
    assert "CPUExecutionProvider" in engine.info.detail
    engine.close()


def test_the_cpu_build_of_onnxruntime_is_told_from_the_gpu_one() -> None:
    with pytest.raises(EngineUnavailable, match=r"no CUDAExecutionProvider.*pip install 'hiera-serve\[gpu\]'"):
        require_cuda_provider()
