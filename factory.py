"""Which engines can be had here, and how each is built from a package's graph."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.engines.base import Engine
from app.engines.cpus import available_cpus
from app.engines.noop import NoopEngine
from app.errors import EngineUnavailable

EngineName = Literal["auto", "onnxruntime", "openvino", "noop", "tensorrt"]
EnginePrecision = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class EngineOptions:
    """What settings say about engines.

    Attributes:
        name: an engine, or "auto" for the fastest that passes the golden check.
        precision: what to compute in; "auto" is the fastest that the device is made for.
        threads: CPU threads of one engine; 0 means the cores that are really available, control group quotas included.
        device: "auto", "cpu", "cuda" or "cuda:N".
        cache_dir: where compiled models and measured costs are kept; None keeps nothing.
        max_batch: the most rows in one batch.
    """

    name: EngineName = "auto"
    precision: EnginePrecision = "auto"
    threads: int = 0
    device: str = "auto"
    cache_dir: Path | None = None
    max_batch: int = 32


def candidates(options: EngineOptions) -> list[str]:
    """Names of the engines to try, the one expected to be fastest first.

    Raises:
        EngineUnavailable: the engine that was asked for is not installed, or "auto" finds none.
    """
    if options.name == "noop":
        return ["noop"]
    wanted = list(_BUILDERS) if options.name == "auto" else [options.name]
    on_gpu = options.device.startswith("cuda")
    found = [
        name
        for name in wanted
        if name in _BUILDERS
        and importlib.util.find_spec(_MODULES[name]) is not None
        and not (on_gpu and name == "openvino")
    ]
    if not found:
        raise EngineUnavailable(
            f"no engine {options.name} for the device {options.device}: install one of {', '.join(_MODULES.values())}"
            if options.name == "auto" or options.name in _BUILDERS
            else f"this release has no engine named {options.name}"
        )
    return found


def create_engine(
    name: str, graph: Path, row_shape: tuple[int, ...], classes: int, precision_of_graph: str, options: EngineOptions
) -> Engine:
    """Load `graph` into one engine.

    Args:
        name: one of `candidates(options)`.
        graph: ONNX, uint8 rows [n, *row_shape] in, float32 `probabilities` [n, classes] out.
        precision_of_graph: what the graph's weights are in: "fp32", "fp16" or "bf16".

    Raises:
        EngineUnavailable: not installed, or it cannot do what `options` ask for.
        PackageError: the engine cannot load the graph.
    """
    if name == "noop":
        return NoopEngine(row_shape, classes, options.max_batch)
    builder = _BUILDERS.get(name)
    if builder is None:
        raise EngineUnavailable(f"this release has no engine named {name}")
    return builder(graph, row_shape, classes, precision_of_graph, options)


def create_streams(
    name: str,
    graph: Path,
    row_shape: tuple[int, ...],
    classes: int,
    precision_of_graph: str,
    options: EngineOptions,
    count: int,
) -> list[Engine]:
    """Load `graph` into `count` engines that run side by side and share the threads and the weights of one.

    Under load they do more together than one engine on all cores: its threads wait for each other after every layer,
    and a core that is taken away for a moment stops them all. Arguments and errors as in `create_engine`; raises
    EngineUnavailable where the library cannot do this (`can_stream`).
    """
    if not can_stream(name):
        raise EngineUnavailable(f"{name} has no engines that share a model")
    return list(_openvino_streams(graph, row_shape, classes, options, count))


def can_stream(name: str) -> bool:
    """Whether `create_streams` knows the engine."""
    return name == "openvino"


def installed_version(name: str) -> str:
    """The version of an engine's library, "" where it has none: measurements are not valid for another version."""
    for distribution in _DISTRIBUTIONS.get(name, ()):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def engine_threads(options: EngineOptions) -> int:
    """CPU threads of one engine, or of all streams together."""
    return options.threads or available_cpus()


def _openvino(
    graph: Path, row_shape: tuple[int, ...], classes: int, precision_of_graph: str, options: EngineOptions
) -> Engine:
    return _openvino_streams(graph, row_shape, classes, options, 1)[0]


def _openvino_streams(
    graph: Path, row_shape: tuple[int, ...], classes: int, options: EngineOptions, count: int
) -> Sequence[Engine]:
    # Imported here: each engine's library takes a while to load and may not be installed.
    from app.engines.openvino import cpu_precision, open_engines

    return open_engines(
        graph,
        row_shape=row_shape,
        classes=classes,
        precision=cpu_precision(options.precision),
        threads=engine_threads(options),
        max_batch=options.max_batch,
        count=count,
        cache_dir=options.cache_dir / "openvino" if options.cache_dir else None,
    )


def _onnxruntime(
    graph: Path, row_shape: tuple[int, ...], classes: int, precision_of_graph: str, options: EngineOptions
) -> Engine:
    from app.engines.onnxruntime import OnnxRuntimeEngine

    if options.precision not in ("auto", precision_of_graph):
        raise EngineUnavailable(
            f"ONNX Runtime computes in the graph's own {precision_of_graph}; for {options.precision}, build the "
            f"package with hiera-export build --precision {options.precision}"
        )
    return OnnxRuntimeEngine(
        graph,
        row_shape=row_shape,
        classes=classes,
        precision=precision_of_graph,
        threads=engine_threads(options),
        max_batch=options.max_batch,
        device="cpu" if options.device == "auto" else options.device,
    )


_Builder = Callable[[Path, tuple[int, ...], int, str, EngineOptions], Engine]
# Fastest expected first; "auto" tries them in this order.
_BUILDERS: dict[str, _Builder] = {"openvino": _openvino, "onnxruntime": _onnxruntime}
_MODULES = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
_DISTRIBUTIONS = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
