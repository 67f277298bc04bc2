"""OpenVINO: the fastest engine on x86, most of all where the CPU multiplies in bf16."""

from __future__ import annotations

import functools
import glob
import logging
import platform
from pathlib import Path

import numpy as np
import openvino as ov

from app.engines.base import (
    FEATURES,
    PROBABILITIES,
    EngineInfo,
    Features,
    Graph,
    Probabilities,
    Rows,
    other_precision,
)
from app.engines.cache import keep_compiled
from app.engines.cpus import machine_id
from app.errors import EngineError, EngineOutOfMemory, EngineUnavailable, PackageError

logger = logging.getLogger(__name__)

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}
_OUT_OF_MEMORY = ("could not allocate", "out of memory", "bad_alloc", "failed to allocate")


def cpu_precision(of_graph: str, wanted: str) -> str:
    """The precision that OpenVINO will compute a graph in.

    A bf16 graph is computed as it says where the CPU has instructions for it. Otherwise it is what is `wanted`, or for
    "auto" bf16 where the CPU has instructions for that.

    Raises:
        EngineUnavailable: the CPU has no instructions for what is wanted, or the graph would not be computed in it.
    """
    has = _capabilities()
    native = "bf16" if _CAPABILITIES["bf16"] in has else "fp32"
    if wanted == "auto":
        return native
    if _CAPABILITIES[wanted] not in has:
        raise EngineUnavailable(f"OpenVINO cannot compute in {wanted} on this CPU (it has {', '.join(has)})")
    if of_graph == native == "bf16" != wanted:
        raise other_precision("OpenVINO", "bf16 on this CPU", wanted)
    return wanted


def _capabilities() -> list[str]:
    """What the CPU has instructions for."""
    return list(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def open_engines(
    graph: Graph,
    *,
    precision: str,
    threads: int,
    max_batch: int,
    count: int = 1,
    cache_dir: Path | None = None,
) -> list[OpenVinoEngine]:
    """Engines on the CPU that run side by side over one compiled model.

    Args:
        precision: what to compute in: "fp32", "bf16" or "fp16", as `cpu_precision` gives it.
        threads: cores to compute on, shared out among the engines.
        count: of engines. OpenVINO calls them streams.
        cache_dir: keeps the compiled model, which makes the next start several times quicker; None keeps nothing. One
            that fails (a disk that is full, or read-only by now) is done without.

    Raises:
        PackageError: the graph cannot be compiled, or is not what a package holds.
    """
    properties = {
        "PERFORMANCE_HINT": "LATENCY" if count == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(count),
        "INFERENCE_NUM_THREADS": str(threads),
        # Without the hint bf16 such a graph is computed as it says; with it, what it keeps in float32 would be lowered.
        "INFERENCE_PRECISION_HINT": "f32" if graph.precision == "bf16" else _PRECISIONS[precision],
        # Pinned threads would fight the media workers for their cores and not move away.
        "ENABLE_CPU_PINNING": "NO",
    }
    try:
        compiled = _compile_cached(graph, properties, cache_dir)
    except RuntimeError as error:
        raise PackageError(f"{graph.path}: OpenVINO cannot compile it ({error})") from error
    width = _check_graph(graph, compiled)
    each = max(1, threads // count)
    detail = f"OpenVINO {ov.__version__}, {each} thread{'s' if each > 1 else ''}, {platform.machine()}"
    info = EngineInfo("openvino", precision, "cpu", detail)
    return [OpenVinoEngine(compiled, info, graph.row_shape, graph.classes, width, max_batch) for _ in range(count)]


def _compile_cached(graph: Graph, properties: dict[str, str], cache_dir: Path | None) -> ov.CompiledModel:
    if cache_dir is None:
        return _compile(graph, properties)
    try:
        identity = _identity(graph, properties)
        return keep_compiled(cache_dir, identity, lambda folder: _compile(graph, properties, folder))
    except RuntimeError as error:
        compiled = _compile(graph, properties)  # raises again if it was not the cache
        logger.warning("OpenVINO does without its cache in %s (%s)", cache_dir, str(error).strip())
        return compiled


def _identity(graph: Graph, properties: dict[str, str]) -> str:
    """What OpenVINO's files are for. Of the graph it looks at the path, the size and the time itself, which a package
    that is made anew may share with the one before it."""
    files = sorted(graph.path.parent.glob(f"{glob.escape(graph.path.name)}*"))
    sizes = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return repr((graph.fingerprint, sizes, sorted(properties.items()), ov.__version__, machine_id()))


@functools.cache
def _core() -> ov.Core:
    """Kept as long as the process: a core gives the thread that makes it another stack for signals, and takes that away
    when its last model goes, on whatever thread. The next signal would end the process there."""
    return ov.Core()


def _compile(graph: Graph, properties: dict[str, str], cache_dir: Path | None = None) -> ov.CompiledModel:
    if cache_dir is not None:
        properties = properties | {"CACHE_DIR": str(cache_dir)}
    # By its path: a graph that is compiled already is not read again. Its other outputs cost nothing, and with them
    # OpenVINO leaves the last norm and the logits in float32 (docs/parity.md, close calls).
    return _core().compile_model(graph.path, "CPU", properties)


class OpenVinoEngine:
    """One inference request of a compiled model. `open_engines` makes it."""

    def __init__(
        self,
        compiled: ov.CompiledModel,
        info: EngineInfo,
        row_shape: tuple[int, ...],
        classes: int,
        feature_dim: int,
        max_batch: int,
    ) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self.info = info
        self.row_shape = row_shape
        self.classes = classes
        self.feature_dim = feature_dim
        self.max_batch = max_batch

    def empty_rows(self, n: int) -> Rows:
        return np.empty((n, *self.row_shape), np.uint8)

    def run(self, rows: Rows) -> Probabilities:
        try:
            # Zero copy: the tensor lies over the rows' own memory, which OpenVINO wants writeable though it only reads.
            rows = rows if rows.flags.writeable else rows.copy()
            self._request.set_input_tensor(ov.Tensor(rows, shared_memory=True))
            self._request.infer()
            return np.array(self._request.get_tensor(PROBABILITIES).data, np.float32)
        except RuntimeError as error:
            text = str(error)
            if any(mark in text.lower() for mark in _OUT_OF_MEMORY):
                raise EngineOutOfMemory(f"OpenVINO has no memory for {len(rows)} rows: {text}") from error
            raise EngineError(f"OpenVINO failed on {len(rows)} rows: {text}") from error

    def features(self) -> Features:
        try:
            return np.array(self._request.get_tensor(FEATURES).data, np.float32)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO has no features of the last batch: {error}") from error

    def twin(self) -> OpenVinoEngine:
        return OpenVinoEngine(self._compiled, self.info, self.row_shape, self.classes, self.feature_dim, self.max_batch)

    def close(self) -> None:
        # Memory goes with the last reference; the request first, it refers to the compiled model.
        del self._request
        del self._compiled


def _check_graph(graph: Graph, compiled: ov.CompiledModel) -> int:
    """The width of the model's `features`, 0 without any.

    Raises:
        PackageError: it does not take uint8 rows of the graph's shape, or gives no probabilities.
    """
    shapes = [(each.get_element_type(), [str(axis) for axis in each.get_partial_shape()]) for each in compiled.inputs]
    if len(shapes) != 1 or shapes[0][0] != ov.Type.u8 or shapes[0][1][1:] != [str(size) for size in graph.row_shape]:
        raise PackageError(
            f"{graph.path}: takes {shapes}, not one tensor of uint8 rows [n, {', '.join(map(str, graph.row_shape))}]"
        )
    outputs = {name: each for each in compiled.outputs for name in each.names}
    if PROBABILITIES not in outputs:
        raise PackageError(f"{graph.path}: has no output named {PROBABILITIES}")
    features = outputs.get(FEATURES)
    if features is None or features.get_element_type() != ov.Type.f32:
        return 0
    shape = features.get_partial_shape()
    return shape[1].get_length() if len(shape) == 2 and shape[1].is_static else 0
