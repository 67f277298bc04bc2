"""ONNX Runtime on an NVIDIA GPU: its CUDA execution provider over memory, streams and staging of ours.

The pipeline records a CUDA graph for each batch size. ONNX Runtime could too, but its graphs belong to the thread that
ran first, and while it records no other thread of the process may allocate: another engine would fail to start.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from app.engines.base import FEATURES, PROBABILITIES, EngineInfo, Features, Graph, Probabilities, Rows, batch_ladder
from app.engines.device import Device
from app.engines.onnxruntime import CPU_PROVIDER, check_graph, open_session, run_errors
from app.engines.pipeline import Pipeline
from app.errors import EngineError, EngineOutOfMemory, EngineUnavailable, PackageError

logger = logging.getLogger(__name__)

CUDA_PROVIDER = "CUDAExecutionProvider"


def require_cuda_provider() -> None:
    """Raises EngineUnavailable where ONNX Runtime is the CPU's build, and says how to replace it."""
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise EngineUnavailable(
            f"this ONNX Runtime {ort.__version__} has no {CUDA_PROVIDER} (it has "
            f"{', '.join(sorted(ort.get_available_providers()))}): pip uninstall onnxruntime "
            "onnxruntime-gpu, which share a folder, then pip install 'hiera-serve[gpu]'"
        )
    ort.preload_dlls()  # CUDA's and cuDNN's libraries lie in wheels, where the linker does not look


class OnnxRuntimeCudaEngine:
    """A session over one graph on one GPU, in the graph's own precision; a `StagingEngine`.

    Args:
        device: where its work is queued.

    Raises:
        PackageError: the graph cannot be loaded, or is not what a package holds.
        EngineOutOfMemory: the device has no room for it.
    """

    def __init__(self, graph: Graph, *, max_batch: int, device: Device) -> None:
        self.row_shape = graph.row_shape
        self.classes = graph.classes
        self.max_batch = max_batch
        self._device = device
        self._shrink = False
        self._bindings: dict[int, Any] = {}
        with device.alone:
            self._pipeline = Pipeline(device, graph.row_shape, graph.classes, batch_ladder(max_batch))
            try:
                self._session, self._recordable = self._open(graph.path)
                self.feature_dim = check_graph(graph, self._session)
                self._features = self._pipeline.add_output(self.feature_dim) if self.feature_dim else None
            except BaseException:
                self._pipeline.close()
                raise
        self._input = self._session.get_inputs()[0].name
        provider = self._session.get_providers()[0]
        self.info = EngineInfo(
            "onnxruntime",
            graph.precision,
            device.name,
            f"ONNX Runtime {ort.__version__}, {provider}, {device.description}"
            + (", CUDA graphs" if self._recordable else ""),
        )

    def empty_rows(self, n: int) -> Rows:
        return self._pipeline.empty_rows(n)

    def stage(self, rows: Rows) -> None:
        self._pipeline.stage(rows)

    def run(self, rows: Rows) -> Probabilities:
        try:
            return self._pipeline.run(rows, self._enqueue, record=self._recordable)
        except EngineOutOfMemory:
            self._shrink = True
            raise

    def features(self) -> Features:
        if self._features is None:
            raise EngineError("the graph gives no features")
        return self._pipeline.fetch(self._features)

    def close(self) -> None:
        # The session first: its arena and its recorded graphs refer to the pipeline's stream and memory.
        with self._device.alone:
            self._bindings.clear()
            del self._session
            self._pipeline.close()

    def _open(self, graph: Path) -> tuple[ort.InferenceSession, bool]:
        """The session, and whether its runs can be recorded: where no node is left to the CPU."""
        if self._device.memory == "cpu":
            return open_session(graph, _options(), [CPU_PROVIDER]), True
        settings = {
            "device_id": str(self._device.index),
            "user_compute_stream": str(self._pipeline.stream),
            # The arena grows by what is asked for and not to the next power of two.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            # What is called fp32 is fp32.
            "use_tf32": "0",
        }
        cuda = (CUDA_PROVIDER, settings)
        options = _options()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = open_session(graph, options, [cuda])
            recordable = True
        except PackageError as error:
            logger.info("%s is run without CUDA graphs (%s)", graph.name, error)
            session = open_session(graph, _options(), [cuda, CPU_PROVIDER])
            recordable = False
        if CUDA_PROVIDER not in session.get_providers():  # ONNX Runtime goes on without it
            raise EngineUnavailable(
                f"ONNX Runtime {ort.__version__} cannot start CUDA: its log names the library that is missing; "
                "pip install 'hiera-serve[gpu]' brings CUDA's and cuDNN's"
            )
        return session, recordable

    def _enqueue(self, size: int) -> None:
        options = ort.RunOptions()
        # The pipeline waits for its stream; ONNX Runtime must not while it is recorded.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._shrink and not self._recordable:  # what is recorded has addresses in it
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"gpu:{self._device.index}")
            self._shrink = False
        with run_errors(size):
            self._session.run_with_iobinding(self._binding(size), options)

    def _binding(self, size: int) -> Any:
        """Where a batch of `size` is read and written: the same places each time."""
        if size not in self._bindings:
            binding = self._session.io_binding()
            where = (self._device.memory, self._device.index)
            binding.bind_input(self._input, *where, np.uint8, (size, *self.row_shape), self._pipeline.input)
            binding.bind_output(PROBABILITIES, *where, np.float32, (size, self.classes), self._pipeline.output)
            if self._features is not None:
                shape = (size, self.feature_dim)
                binding.bind_output(FEATURES, *where, np.float32, shape, self._features.address)
            self._bindings[size] = binding
        return self._bindings[size]


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Its second run of a size would take its memory anew, in one piece, and that is the one that is recorded.
    options.enable_mem_pattern = False
    # Its kernel takes mean and variance in the precision of the graph; LayerNorm's own takes them in float32.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
    return options
