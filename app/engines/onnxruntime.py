"""ONNX Runtime on the CPU: the engine that runs everywhere, and the yardstick for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from app.engines.base import FEATURES, PROBABILITIES, EngineInfo, Features, Graph, Probabilities, Rows
from app.errors import EngineError, EngineOutOfMemory, PackageError

CPU_PROVIDER = "CPUExecutionProvider"
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "bad_alloc", "bfcarena")


class OnnxRuntimeEngine:
    """A session over one graph, in the graph's own precision.

    Args:
        threads: of the intra-op pool.
        spinning: let idle threads burn their core for a quicker start of the next operator. Media workers need the
            cores.

    Raises:
        PackageError: the graph cannot be loaded, or is not what a package holds.
    """

    def __init__(self, graph: Graph, *, threads: int, max_batch: int, spinning: bool = False) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        self._session = open_session(graph.path, options, [CPU_PROVIDER])
        self._input = self._session.get_inputs()[0].name
        self.feature_dim = check_graph(graph, self._session)
        self._outputs = [PROBABILITIES, *([FEATURES] if self.feature_dim else [])]
        self._features: Features = np.empty((0, self.feature_dim), np.float32)
        self.info = EngineInfo(
            "onnxruntime", graph.precision, "cpu", f"ONNX Runtime {ort.__version__}, {CPU_PROVIDER}, {threads} threads"
        )
        self.row_shape = graph.row_shape
        self.classes = graph.classes
        self.max_batch = max_batch

    def empty_rows(self, n: int) -> Rows:
        return np.empty((n, *self.row_shape), np.uint8)

    def run(self, rows: Rows) -> Probabilities:
        with run_errors(len(rows)):
            probabilities, *features = self._session.run(self._outputs, {self._input: rows})
        if features:
            self._features = np.asarray(features[0], np.float32)
        return np.asarray(probabilities, np.float32)

    def features(self) -> Features:
        return self._features

    def close(self) -> None:
        # The session frees its arena when the last reference goes.
        del self._session


def open_session(graph: Path, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    """Raises PackageError where the graph cannot be loaded, EngineOutOfMemory where there is no room for it."""
    try:
        # Without its fallback, which runs everything on the CPU where a GPU fails, and prints why.
        return ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    except Exception as error:
        if _is_out_of_memory(error):
            raise EngineOutOfMemory(f"{graph}: ONNX Runtime has no memory for it: {error}") from error
        raise PackageError(f"{graph}: ONNX Runtime cannot load it ({error})") from error


@contextmanager
def run_errors(rows: int) -> Iterator[None]:
    """Turns what ONNX Runtime raises on a batch of `rows` into EngineOutOfMemory or EngineError."""
    try:
        yield
    except (
        RuntimeError,
        MemoryError,
        ort_errors.RuntimeException,
        ort_errors.Fail,
        ort_errors.EPFail,
        ort_errors.NotImplemented,
        ort_errors.InvalidArgument,
    ) as error:
        if _is_out_of_memory(error):
            raise EngineOutOfMemory(f"ONNX Runtime has no memory for {rows} rows: {error}") from error
        raise EngineError(f"ONNX Runtime failed on {rows} rows: {error}") from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(mark in str(error).lower() for mark in _OUT_OF_MEMORY)


def check_graph(graph: Graph, session: ort.InferenceSession) -> int:
    """The width of the session's `features`, 0 without any.

    Raises:
        PackageError: it does not take uint8 rows of the graph's shape, or gives no float `probabilities`.
    """
    inputs, outputs = session.get_inputs(), {output.name: output for output in session.get_outputs()}
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or tuple(inputs[0].shape[1:]) != graph.row_shape:
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise PackageError(
            f"{graph.path}: takes {found}, not one tensor of uint8 rows [n, {', '.join(map(str, graph.row_shape))}]"
        )
    if PROBABILITIES not in outputs or outputs[PROBABILITIES].type != "tensor(float)":
        raise PackageError(
            f"{graph.path}: has no float32 output named {PROBABILITIES} (it has {', '.join(outputs) or 'none'})"
        )
    features = outputs.get(FEATURES)
    plain = features is not None and features.type == "tensor(float)" and len(features.shape) == 2
    width = features.shape[1] if features is not None and plain else 0
    return width if isinstance(width, int) else 0
