"""ONNX Runtime on an NVIDIA GPU: its CUDA execution provider over memory, streams and staging of ours.

ONNX Runtime records a CUDA graph for each batch size by itself, under the annotation that a run carries.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from app.engines.base import EngineInfo, Probabilities, Rows
from app.engines.device import Device
from app.engines.onnxruntime import CPU_PROVIDER, check_graph, open_session, run_errors
from app.engines.pipeline import Pipeline, batch_ladder
from app.errors import EngineOutOfMemory, EngineUnavailable, PackageError

logger = logging.getLogger(__name__)

CUDA_PROVIDER = "CUDAExecutionProvider"
_NO_GRAPH = "-1"


def require_cuda_provider() -> None:
    """Raises EngineUnavailable where ONNX Runtime is the CPU's build, and says how to replace it."""
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise EngineUnavailable(
            f"this ONNX Runtime {ort.__version__} has no {CUDA_PROVIDER} (it has "
            f"{', '.join(sorted(ort.get_available_providers()))}): pip uninstall onnxruntime, then "
            "pip install 'hiera-serve[gpu]'"
        )
    ort.preload_dlls()  # CUDA's and cuDNN's libraries lie in wheels, where the linker does not look


class OnnxRuntimeCudaEngine:
    """A session over one graph on one GPU; a `StagingEngine`.

    Args:
        graph: an ONNX file whose one input is uint8 rows and one of whose outputs is `probabilities`.
        precision: what the graph computes in; ONNX Runtime keeps to it.
        device: where its work is queued.
        cuda_graphs: record each batch size, where the graph allows it.

    Raises:
        PackageError: the graph cannot be loaded, or is not what a package holds.
        EngineOutOfMemory: the device has no room for it.
    """

    def __init__(
        self,
        graph: Path,
        *,
        row_shape: tuple[int, ...],
        classes: int,
        precision: str,
        max_batch: int,
        device: Device,
        cuda_graphs: bool = True,
    ) -> None:
        self.row_shape = row_shape
        self.classes = classes
        self.max_batch = max_batch
        self._device = device
        self._shrink = False
        self._bindings: dict[int, Any] = {}
        self._pipeline = Pipeline(device, row_shape, classes, batch_ladder(max_batch))
        try:
            self._session, self._graphs = self._open(graph, cuda_graphs)
            check_graph(graph, self._session, row_shape)
        except BaseException:
            self._pipeline.close()
            raise
        self._input = self._session.get_inputs()[0].name
        provider = self._session.get_providers()[0]
        self.info = EngineInfo(
            "onnxruntime",
            precision,
            device.name,
            f"ONNX Runtime {ort.__version__}, {provider}, {device.description}"
            + (", CUDA graphs" if self._graphs else ""),
        )

    def empty_rows(self, n: int) -> Rows:
        return self._pipeline.empty_rows(n)

    def stage(self, rows: Rows) -> None:
        self._pipeline.stage(rows)

    def run(self, rows: Rows) -> Probabilities:
        try:
            return self._pipeline.run(rows, self._enqueue, record=False)
        except EngineOutOfMemory:
            self._shrink = True
            raise

    def close(self) -> None:
        # The session first: its arena and its recorded graphs refer to the pipeline's stream and memory.
        self._bindings.clear()
        del self._session
        self._pipeline.close()

    def _open(self, graph: Path, cuda_graphs: bool) -> tuple[ort.InferenceSession, bool]:
        options = ort.SessionOptions()
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        if self._device.memory == "cpu":
            return open_session(graph, options, [CPU_PROVIDER]), False
        if cuda_graphs:
            try:
                session = open_session(graph, options, self._providers(cuda_graphs=True))
                if CUDA_PROVIDER in session.get_providers():
                    return session, True
            except PackageError as error:
                # Nodes that stay on the CPU rule recording out; the graph may yet run.
                logger.info("%s is run without CUDA graphs (%s)", graph.name, error)
        session = open_session(graph, options, self._providers(cuda_graphs=False))
        if CUDA_PROVIDER not in session.get_providers():  # ONNX Runtime goes on without it
            raise EngineUnavailable(
                f"ONNX Runtime {ort.__version__} cannot start CUDA: its log names the library that is missing; "
                "pip install 'hiera-serve[gpu]' brings CUDA's and cuDNN's"
            )
        return session, False

    def _providers(self, *, cuda_graphs: bool) -> list[Any]:
        settings = {
            "device_id": str(self._device.index),
            "user_compute_stream": str(self._pipeline.stream),
            # The arena grows by what is asked for and not to the next power of two.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "enable_cuda_graph": "1" if cuda_graphs else "0",
            # What is called fp32 is fp32.
            "use_tf32": "0",
        }
        return [(CUDA_PROVIDER, settings), CPU_PROVIDER]

    def _enqueue(self, size: int) -> None:
        options = ort.RunOptions()
        # The pipeline waits for its stream; ONNX Runtime need not.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(size) if self._graphs else _NO_GRAPH)
        if self._shrink and not self._graphs:
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
            binding.bind_output("probabilities", *where, np.float32, (size, self.classes), self._pipeline.output)
            self._bindings[size] = binding
        return self._bindings[size]
