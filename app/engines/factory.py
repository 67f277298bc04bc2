"""Which engines can be had here, and how each is built from a package's graph."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from app.engines import gpu
from app.engines.base import Engine, Graph, other_precision
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
        precision: what to compute in; "auto" is the fastest that the device is made for. Where a CPU lowers a package
            to bf16 so, `app.serving.proven` has close calls decided in fp32.
        threads: CPU threads of one engine; 0 means the cores that are really available, control group quotas included.
        device: "auto", "cpu", "cuda", "cuda:N", or several GPUs as "cuda:0,cuda:1", of which `placements` makes one
            each; "auto" is the first GPU for the engines that can use it.
        cache_dir: where compiled models and measured costs are kept; None keeps nothing.
        max_batch: the most rows in one batch.
    """

    name: EngineName = "auto"
    precision: EnginePrecision = "auto"
    threads: int = 0
    device: str = "auto"
    cache_dir: Path | None = None
    max_batch: int = 32


def placements(options: EngineOptions) -> list[EngineOptions]:
    """The same options for each device alone, as the other functions here want them."""
    return [replace(options, device=device) for device in options.device.split(",")]


def candidates(options: EngineOptions) -> list[str]:
    """Names of the engines to try, the one expected to be fastest first.

    Raises:
        EngineUnavailable: the engine that was asked for cannot be had, or "auto" finds none; the message says what is
            missing and how to come by it.
    """
    if options.name == "noop":
        return ["noop"]
    on_gpu = options.device.startswith("cuda")
    wanted = [name for name in _DISTRIBUTIONS if not (on_gpu and name == "openvino")]
    if options.name != "auto":
        wanted = [options.name]
    if wanted[0] not in _DISTRIBUTIONS:
        raise EngineUnavailable(f"this release has no engine named {options.name}")
    found: list[str] = []
    faults: list[str] = []
    for name in wanted:
        missing = gpu.missing(name, options.device)
        faults += [fault for fault in missing if fault not in faults]
        if not missing:
            found.append(name)
    if not found:
        what = f"HIERA_ENGINE={options.name}, HIERA_ENGINE_DEVICE={options.device}"
        raise EngineUnavailable(f"{what}: {'; '.join(faults)}")
    return found


def create_engine(name: str, graph: Graph, options: EngineOptions) -> Engine:
    """Load a graph into one engine.

    Args:
        name: one of `candidates(options)`.

    Raises:
        EngineUnavailable: not installed, or it cannot do what `options` ask for.
        PackageError: the engine cannot load the graph.
    """
    match name:
        case "noop":
            return NoopEngine(graph.row_shape, graph.classes, options.max_batch)
        case "openvino":
            return create_streams(name, graph, options, 1)[0]
        case "onnxruntime":
            return _onnxruntime(graph, options)
        case "tensorrt":
            _refuse_other_precision("TensorRT", graph, options)
            return gpu.build_tensorrt(graph, max_batch=options.max_batch, device=options.device)
    raise EngineUnavailable(f"this release has no engine named {name}")


def create_streams(name: str, graph: Graph, options: EngineOptions, count: int) -> list[Engine]:
    """Load a graph into `count` engines that run side by side and share the threads and the weights of one.

    Under load they do more together than one engine on all cores: its threads wait for each other after every layer,
    and a core that is taken away for a moment stops them all. Errors as in `create_engine`; raises EngineUnavailable
    where the library cannot do this (`can_stream`).
    """
    if not can_stream(name):
        raise EngineUnavailable(f"{name} has no engines that share a model")
    # Imported here: each engine's library takes a while to load and may not be installed.
    from app.engines.openvino import cpu_precision, open_engines

    return list(
        open_engines(
            graph,
            precision=cpu_precision(graph.precision, options.precision),
            threads=engine_threads(options),
            max_batch=options.max_batch,
            count=count,
            cache_dir=options.cache_dir / "openvino" if options.cache_dir else None,
        )
    )


def can_stream(name: str) -> bool:
    """Whether `create_streams` knows the engine."""
    return name == "openvino"


def engine_identity(name: str, graph: Path, options: EngineOptions) -> str:
    """What a measurement of an engine is valid for beside this CPU: its library, and on a GPU that and its plans."""
    return f"{name} {installed_version(name)} {gpu.gpu_identity(name, graph, options.device)}".rstrip()


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


def _onnxruntime(graph: Graph, options: EngineOptions) -> Engine:
    _refuse_other_precision("ONNX Runtime", graph, options)
    if gpu.runs_on_gpu("onnxruntime", options.device):
        return gpu.build_onnxruntime(graph, max_batch=options.max_batch, device=options.device)
    from app.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(graph, threads=engine_threads(options), max_batch=options.max_batch)


def _refuse_other_precision(engine: str, graph: Graph, options: EngineOptions) -> None:
    if options.precision not in ("auto", graph.precision):
        raise other_precision(engine, graph.precision, options.precision)


# Fastest expected first; "auto" tries those that can be had in this order.
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
}
