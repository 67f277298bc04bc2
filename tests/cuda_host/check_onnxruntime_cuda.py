"""ONNX Runtime's engine for GPUs over its own CUDA provider, without a GPU (`run.sh`): all but kernels runs for real.

What is seen: that every node has a CUDA kernel that takes it, which kernels those are, that each batch size is recorded
once and replayed, and that memory is given back. What is not seen: a number that is right, and any speed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from fresh_graph import write_fresh_graph
from host_device import HostDevice

from app.engines.base import Graph
from app.engines.onnxruntime_cuda import CUDA_PROVIDER, OnnxRuntimeCudaEngine
from app.errors import EngineOutOfMemory
from app.repository.manifest import Precision
from export.hiera import CONFIGS, HieraConfig

RUNTIME = ctypes.CDLL("libcudart.so.13")
GIB = 1 << 30
CLASSES = 10
MAX_BATCH = 8
# Each architecture, each width of a head (96, 56, 72, 64) and each precision.
CASES: tuple[tuple[str, Precision], ...] = (
    ("hiera_base_224", "fp16"),
    ("hiera_base_224", "bf16"),
    ("hiera_base_224", "fp32"),
    ("hiera_base_plus_224", "fp16"),
    ("hiera_large_224", "fp16"),
    ("hiera_huge_224", "fp16"),
    ("hiera_small_abswin_256", "fp16"),
    ("hiera_base_16x224", "bf16"),
)


class StandIn:
    """The library in place of the CUDA runtime, by its own few functions."""

    def __init__(self) -> None:
        self._library = RUNTIME
        self._library.stand_in_journal.restype = ctypes.c_char_p
        self._library.stand_in_held.restype = ctypes.c_size_t
        self._library.stand_in_limit.argtypes = [ctypes.c_size_t]

    def forget(self) -> None:
        self._library.stand_in_forget()

    def limit(self, nbytes: int) -> None:
        self._library.stand_in_limit(nbytes)

    def record_slowly(self, ms: int) -> None:
        self._library.stand_in_record_slowly(ms)

    @property
    def held(self) -> int:
        return int(self._library.stand_in_held())

    @property
    def journal(self) -> list[str]:
        """Lines of `cudart.c`'s journal since the last `forget`."""
        text: bytes = self._library.stand_in_journal()
        return text.decode().splitlines()

    def recorded(self) -> list[list[str]]:
        """What was recorded into each CUDA graph."""
        graphs: list[list[str]] = []
        current: list[str] | None = None
        for line in self.journal:
            if line == "begin":
                current = []
                graphs.append(current)
            elif line == "end":
                current = None
            elif current is not None:
                current.append(line)
        return graphs


class CudaHostDevice(HostDevice):
    """Memory of the host under the name by which ONNX Runtime puts things onto a GPU; records as `CudaDevice` does."""

    memory = "cuda"
    _thread_local = 1

    def record(self, work: Callable[[], None], stream: int) -> int:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        RUNTIME.cudaStreamBeginCapture(ctypes.c_void_p(stream), self._thread_local)
        try:
            work()
        finally:
            RUNTIME.cudaStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        RUNTIME.cudaGraphInstantiate(ctypes.byref(executable), graph, ctypes.c_uint64(0))
        return super().record(lambda: RUNTIME.cudaGraphLaunch(executable, ctypes.c_void_p(stream)), stream)


@pytest.fixture
def stand_in() -> StandIn:
    """As it is at the start of a process, whatever an earlier test asked of it."""
    library = StandIn()
    library.limit(80 * GIB)
    library.record_slowly(0)
    library.forget()
    return library


def few_blocks(name: str) -> HieraConfig:
    """A variant with as many blocks as show every kind of block."""
    return dataclasses.replace(CONFIGS[name], stages=(1, 2, 2, 1), num_classes=CLASSES)


def graph_of(config: HieraConfig, precision: Precision, folder: Path) -> Path:
    return write_fresh_graph(config, precision, folder / "model.onnx")


def engine_of(graph: Path, config: HieraConfig, precision: Precision) -> OnnxRuntimeCudaEngine:
    whole = Graph(graph, (*config.input_size, 3), CLASSES, precision)
    return OnnxRuntimeCudaEngine(whole, max_batch=MAX_BATCH, device=CudaHostDevice())


def run(engine: OnnxRuntimeCudaEngine, batch: int) -> None:
    assert engine.run(np.zeros((batch, *engine.row_shape), np.uint8)).shape == (batch, CLASSES)


def kernels(lines: list[str]) -> Counter[str]:
    """Names of kernels as C++ writes them, without their arguments, and of library functions; how often each."""
    names = [line.split(" ", 1)[1] for line in lines if line.startswith(("launch ", "library "))]
    readable = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return Counter(line.split("(")[0] for line in readable.splitlines())


def count(found: Counter[str], pattern: str) -> int:
    return sum(number for name, number in found.items() if re.search(pattern, name))


def test_this_is_the_cuda_build_of_onnxruntime() -> None:
    assert CUDA_PROVIDER in ort.get_available_providers()


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_batch_is_one_recorded_graph_of_fused_kernels(
    name: str, precision: Precision, tmp_path: Path, stand_in: StandIn
) -> None:
    config = few_blocks(name)
    engine = engine_of(graph_of(config, precision, tmp_path), config, precision)
    assert engine.info.detail.endswith(", CUDA graphs")
    assert CUDA_PROVIDER in engine.info.detail
    stand_in.forget()
    run(engine, 4)
    (graph,) = stand_in.recorded()
    streams = {line for line in stand_in.journal if line.startswith("stream")}
    assert len(streams) == 1, "cuBLAS and cuDNN must work on the stream that is recorded, and on no other"
    assert not [line for line in stand_in.journal if line.startswith("forbidden")]
    assert not [line for line in graph if line.startswith(("copy", "host"))], "nothing may go by way of the host"

    found = kernels(graph)
    blocks, pooled = sum(config.stages), len(config.stages) - 1
    fused = r"AttentionKernel<float" if precision == "fp32" else r"flash_fwd_(splitkv_)?kernel"
    assert count(found, fused) == blocks
    assert count(found, "(?i)softmax") == 1, "attention's own softmax must be in its kernel"
    number = {"fp16": "__half", "bf16": "BFloat16", "fp32": "float"}[precision]
    assert count(found, rf"cuApplyLayerNorm<[\w:]*{number}, float, ") == 2 * blocks + (precision == "fp32")
    assert count(found, "LayerNorm") == 2 * blocks + 1
    shortcuts = 0 if config.expand_by_pooling else pooled
    assert count(found, "(?i)^cublas.*gemm") == 6 * blocks + shortcuts + 1
    assert count(found, "BiasGelu") == blocks
    assert count(found, "Transpose") == 2, "rows for the convolution, and what comes out of it"
    assert count(found, "Gather") == 1
    assert not count(found, "Split|Slice|Memcpy")
    engine.close()


def test_each_size_is_recorded_once_and_replayed_whatever_comes_between(tmp_path: Path, stand_in: StandIn) -> None:
    config = few_blocks("hiera_base_224")
    engine = engine_of(graph_of(config, "fp16", tmp_path), config, "fp16")
    stand_in.forget()
    for batch in (1, 2, 3, 8, 1, 4, 5, 8, 2):  # 3 runs as 4, 5 as 8
        run(engine, batch)
    assert len(stand_in.recorded()) == 4
    assert stand_in.journal.count("replay") == 9
    stand_in.forget()
    with ThreadPoolExecutor(1) as another_thread:  # as an engine's own, after it was measured
        for batch in (8, 1):
            another_thread.submit(run, engine, batch).result()
    assert stand_in.journal == ["replay"] * 2
    engine.close()


def test_two_engines_on_one_device_keep_apart_and_give_all_memory_back(tmp_path: Path, stand_in: StandIn) -> None:
    config = few_blocks("hiera_base_224")
    graph = graph_of(config, "fp16", tmp_path)
    before = stand_in.held
    engines = [engine_of(graph, config, "fp16") for _ in range(2)]
    for engine in engines:
        run(engine, 4)
    one = (stand_in.held - before) / 2
    assert one > graph.stat().st_size
    engines[0].close()
    run(engines[1], 4)
    assert stand_in.held - before < 1.5 * one
    engines[1].close()
    assert stand_in.held - before < 0.1 * one


def test_another_engine_starts_and_runs_while_one_records(tmp_path: Path, stand_in: StandIn) -> None:
    config = few_blocks("hiera_base_224")
    graph = graph_of(config, "fp16", tmp_path)
    engine = engine_of(graph, config, "fp16")
    stand_in.forget()
    stand_in.record_slowly(100)

    def run_all_sizes() -> None:
        for batch in (1, 2, 4, 8):
            run(engine, batch)

    with ThreadPoolExecutor(2) as pool:
        recording = pool.submit(run_all_sizes)
        while "begin" not in stand_in.journal:
            assert not recording.done()
        another = pool.submit(engine_of, graph, config, "fp16").result()
        run(another, 2)
        recording.result()
        pool.submit(another.close)
        run(engine, 8)
    assert not [line for line in stand_in.journal if line.startswith("forbidden")]
    assert len(stand_in.recorded()) == 5
    engine.close()


def test_a_batch_without_room_is_told_as_that_and_smaller_ones_go_on(tmp_path: Path, stand_in: StandIn) -> None:
    config = few_blocks("hiera_base_224")
    engine = engine_of(graph_of(config, "fp16", tmp_path), config, "fp16")
    run(engine, 1)
    stand_in.limit(stand_in.held + (16 << 20))
    with pytest.raises(EngineOutOfMemory):
        run(engine, 8)
    run(engine, 1)
    stand_in.limit(80 * GIB)
    stand_in.forget()
    run(engine, 8)
    assert len(stand_in.recorded()) == 1
    assert not [line for line in stand_in.journal if line.startswith("forbidden")]
    engine.close()


def test_features_are_recorded_with_their_batch_and_fetched_without_another_run(
    tmp_path: Path, stand_in: StandIn
) -> None:
    config = few_blocks("hiera_base_224")
    engine = engine_of(graph_of(config, "fp16", tmp_path), config, "fp16")
    assert engine.feature_dim == 768
    for batch in (4, 3):  # 3 runs as 4
        run(engine, batch)
        stand_in.forget()
        assert engine.features().shape == (batch, 768)
        assert stand_in.journal == []
    engine.close()
