"""Builds TensorRT plans for a package: strongly typed, checked against the golden sample, kept beside the graph.

It needs TensorRT, cuda-bindings and onnx, and no torch: it runs where the plan will. The graph carries the precision.
In fp16 and bf16 every attention must get a fused kernel, or the build fails: TensorRT takes it apart only where that is
allowed. In fp32 there are no such kernels.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import onnx

from app.caches import cache_folder
from app.engines.base import FEATURES, PROBABILITIES, batch_ladder
from app.engines.cuda import CudaDevice
from app.engines.plans import PlanCheck, PlanKey, PlanRecord, file_sha256, graph_sources, record_file
from app.engines.tensorrt import ROWS, TensorRtEngine
from app.engines.trt import FLAVOURS, INSTALL, Flavour, first_error, installed_flavours, load_bindings, make_logger
from app.errors import EngineUnavailable
from app.repository.store import Package
from app.serving.golden import check_golden
from export.errors import AlreadyThere, BuildRefused

LARGEST_BATCH = {"image": 64, "video": 8}
# Batches up to this one have an optimisation profile of their own.
_FEW_ROWS = 4


@dataclass(frozen=True)
class PlanRequest:
    """What to build.

    Attributes:
        device: the GPU to build on and for, "cuda:0".
        target: a GPU architecture to build for without a GPU ("sm_89"); tensorrt_rtx alone can, and nothing is checked.
        flavour: which TensorRT; None is the first that is installed.
        max_batch: rows of the largest batch; None is 64 images or 8 clips.
        timing_cache: keeps what was timed for the next build; None is `default_timing_cache`.
        unfused_attention: allow attention to be taken apart in fp16 and bf16 too.
        replace: overwrite a plan that is there.
    """

    device: str = "cuda:0"
    target: str | None = None
    flavour: Flavour | None = None
    max_batch: int | None = None
    timing_cache: Path | None = None
    unfused_attention: bool = False
    replace: bool = False


def build_plan(package: Package, request: PlanRequest, say: Callable[[str], None]) -> Path:
    """Build, check and store a plan; the builder's log, if it said anything, lies beside it, built or not.

    Returns:
        The plan's file.

    Raises:
        EngineUnavailable: TensorRT, the driver or the GPU is missing.
        BuildRefused: TensorRT cannot build it.
        AlreadyThere: a plan is there.
        PackageError: the plan disagrees with the golden sample; it is not kept.
    """
    flavour = request.flavour or _first_flavour()
    trt = load_bindings(flavour)
    device = None if request.target else CudaDevice(request.device)
    architecture = request.target or (device.architecture if device else "")
    if request.target and flavour != "tensorrt_rtx":
        raise BuildRefused("tensorrt builds on the GPU itself; --target goes with --flavour tensorrt_rtx")
    key = PlanKey(architecture, flavour, str(trt.__version__))
    plan = package.folder / key.file
    if plan.exists() and not request.replace:
        raise AlreadyThere(f"{plan} exists: pass --replace to overwrite it")
    lines: list[str] = []
    batches = batch_ladder(request.max_batch or LARGEST_BATCH[package.manifest.task])
    say(f"building {key.file}, batches of 1 to {batches[-1]}; the largest models take many minutes")
    try:
        serialized = _build(package, trt, key, profile_batches(batches), request, device, lines)
    finally:
        if lines:
            plan.with_name(plan.name + ".log").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial = plan.with_name(f".{plan.name}.part")
    try:
        partial.write_bytes(serialized)
        record = PlanRecord(
            key=key,
            precision=package.manifest.precision,
            batches=batches,
            sources=graph_sources(package.graph),
            sha256=file_sha256(partial),
            gpu=device.description if device else "",
            check=None,
        )
        if device is not None:
            record = _checked(package, partial, record, trt, device, say)
        record_file(plan).write_text(record.to_json(), encoding="utf-8")
        partial.replace(plan)
    finally:
        partial.unlink(missing_ok=True)
    return plan


def default_timing_cache(key: PlanKey) -> Path:
    """Where timings are kept between builds: they hold for one GPU architecture and one TensorRT."""
    return cache_folder() / "tensorrt" / f"{key.architecture}-{key.flavour}-{key.version}.timing"


def profile_batches(batches: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """The smallest batch, the one that kernels are chosen for, and the largest, of each optimisation profile.

    What is best for a full batch is slow for one row, which is what a server at rest is asked for.
    """
    largest = batches[-1]
    if largest <= _FEW_ROWS:
        return [(1, 1, largest)]
    return [(1, 1, _FEW_ROWS), (_FEW_ROWS + 1, largest, largest)]


def graph_for_tensorrt(path: Path) -> bytes:
    """The serialized graph as TensorRT (11.4, and tensorrt_rtx 1.7) takes it, with the same answers.

    It refuses two things that are better as they are elsewhere. It reorders no uint8 tensor, so rows become numbers
    before channels come first. And it knows no `softmax_precision`: its fused kernels keep the softmax in float32 by
    themselves, and the golden check looks at the result. Weights in a file of their own stay there and are not read.
    """
    model = onnx.load(path, load_external_data=False)
    nodes = model.graph.node
    if [node.op_type for node in nodes[:2]] == ["Transpose", "Cast"]:
        transpose, cast_node = copy.deepcopy(nodes[0]), copy.deepcopy(nodes[1])
        (rows,), (between,), (channels_first,) = transpose.input, transpose.output, cast_node.output
        cast_node.input[0], cast_node.output[0] = rows, between
        transpose.input[0], transpose.output[0] = between, channels_first
        nodes[0].CopyFrom(cast_node)
        nodes[1].CopyFrom(transpose)
        del model.graph.value_info[:]  # what is known of the tensor between them holds no more
    for node in nodes:
        if node.op_type == "Attention":
            kept = [attribute for attribute in node.attribute if attribute.name != "softmax_precision"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return cast("bytes", model.SerializeToString())


def parse_network(trt: Any, builder: Any, logger: Any, package: Package, lines: list[str], *, decompose: bool) -> Any:
    """The package's graph as a TensorRT network that gives probabilities and features.

    Args:
        decompose: whether attention may be taken apart where there is no fused kernel.

    Raises:
        BuildRefused: TensorRT's parser refuses the graph.
    """
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # The path leads the parser to weights in a file of their own.
    if not parser.parse(graph_for_tensorrt(package.graph), str(package.graph)):
        faults = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise BuildRefused(
            f"TensorRT's parser refuses the graph: {faults or first_error(lines)}. If an earlier release built the "
            "package, build it again"
        )
    for output in [network.get_output(index) for index in range(network.num_outputs)]:
        if output.name not in (PROBABILITIES, FEATURES):
            network.unmark_output(output)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # as the bindings want it: they give the base class
            layer.attention.decomposable = decompose
    return network


def _build(
    package: Package,
    trt: Any,
    key: PlanKey,
    profiles: list[tuple[int, int, int]],
    request: PlanRequest,
    device: CudaDevice | None,
    lines: list[str],
) -> Any:
    """The serialized plan."""
    if device is not None:
        device.use()
    logger = make_logger(trt, lines)
    builder = trt.Builder(logger)
    fp32 = package.manifest.precision == "fp32"
    network = parse_network(trt, builder, logger, package, lines, decompose=fp32 or request.unfused_attention)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # what is called fp32 is fp32
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the layers can be looked at
    if key.flavour == "tensorrt_rtx":
        _aim(trt, config, key.architecture)
    for batches in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(ROWS, *((batch, *package.manifest.row_shape) for batch in batches))
        config.add_optimization_profile(profile)
    kept = request.timing_cache or default_timing_cache(key)
    timed = key.flavour == "tensorrt"  # tensorrt_rtx times nothing at the build
    if timed:
        config.set_timing_cache(config.create_timing_cache(kept.read_bytes() if kept.is_file() else b""), False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildRefused(f"TensorRT cannot build it: {first_error(lines)}")
    if timed:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.part")
        partial.write_bytes(config.get_timing_cache().serialize())
        partial.replace(kept)
    return serialized


def _aim(trt: Any, config: Any, architecture: str) -> None:
    """tensorrt_rtx compiles for the architectures that it is told."""
    name = architecture.upper().replace("_", "")
    if not hasattr(trt.ComputeCapability, name):
        known = [each.lower().replace("sm", "sm_") for each in dir(trt.ComputeCapability) if each.startswith("SM")]
        raise BuildRefused(
            f"tensorrt_rtx {trt.__version__} does not build for {architecture}, only for {', '.join(sorted(known))}; "
            "for data-centre GPUs install tensorrt-cu13"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)


def _checked(
    package: Package, plan: Path, record: PlanRecord, trt: Any, device: CudaDevice, say: Callable[[str], None]
) -> PlanRecord:
    """The record with what the golden check measured; raises PackageError out of tolerance."""
    manifest = package.manifest
    engine = TensorRtEngine(
        plan,
        record,
        trt,
        row_shape=manifest.row_shape,
        classes=manifest.num_classes,
        max_batch=record.batches[-1],
        device=device,
    )
    try:
        report = check_golden(engine, package.golden, manifest.precision)
        layers = package.folder / f"{record.key.file}.layers.json"
        layers.write_text(engine.layers(trt), encoding="utf-8")
    finally:
        engine.close()
    say(
        f"agrees with the golden sample: probabilities within {report.max_abs_probability:.2g}, log-probabilities "
        f"within {report.max_log_ratio:.2g} of their spread; what it runs is in {layers.name}"
    )
    check = PlanCheck(report.max_abs_probability, report.max_log_ratio, report.top1_agreement)
    return replace(record, check=check)


def _first_flavour() -> Flavour:
    flavours = installed_flavours()
    if not flavours:
        raise EngineUnavailable(f"neither {' nor '.join(FLAVOURS)} is installed: {INSTALL}")
    return flavours[0]
