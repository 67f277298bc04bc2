"""Writes a model package, whole or not at all: traced, verified, hashed, and then renamed into the repository."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from app.engines.factory import installed_version
from app.repository.manifest import NAME, Accuracy, Manifest, Precision, Preprocessing, Sampling, Weights
from app.repository.store import GOLDEN, GRAPH, LABELS, MANIFEST, PackagePath, open_package, read_labels, sha256
from export.catalog import Variant
from export.errors import AlreadyThere, BuildRefused
from export.golden import golden_count
from export.hiera import Hiera
from export.parity import batch_sizes, measure_graph, reference
from export.to_onnx import OPSET, ServingGraph, export_graph
from export.triton import triton_config
from export.unfinished import in_progress, remove_abandoned

TRITON_CONFIG = "config.pbtxt"
_TOOLS = ("torch", "onnx", "onnxscript")


@dataclass(frozen=True)
class PackageSpec:
    """Everything that one package is made from."""

    variant: Variant
    name: str
    version: int
    description: str
    model: Hiera
    labels: tuple[str, ...]
    weights: Weights
    preprocessing: Preprocessing
    sampling: Sampling | None
    accuracy: tuple[Accuracy, ...]
    precision: Precision
    max_batch: int


def target_folder(output: Path, name: str, version: int) -> Path:
    return output / name / str(version)


def build_package(
    spec: PackageSpec, output: Path, *, replace: bool = False, say: Callable[[str], None] = print
) -> Path:
    """Trace, verify and write a package.

    Args:
        output: the model repository.
        replace: whether a package of the same name and version may be overwritten.
        say: told of each step.

    Returns:
        The version folder.

    Raises:
        BuildRefused: the name is taken, or its other versions have other labels.
        ParityFailed: the graph does not agree with torch. Nothing is left behind, whatever goes wrong.
    """

    def refuse() -> None:
        refuse_taken(output, spec.name, spec.version, replace=replace)
        _refuse_other_labels(spec.labels, output / spec.name, spec.version)

    refuse()
    output.mkdir(parents=True, exist_ok=True)
    remove_abandoned(output, f".{spec.name}.*.part")
    # Beside its destination, so that the rename stays on one file system; discovery passes over dotted names.
    staging = Path(tempfile.mkdtemp(prefix=f".{spec.name}.", suffix=".part", dir=output))
    try:
        with in_progress(staging):
            staging.chmod(0o755)
            folder = staging / str(spec.version)
            folder.mkdir()
            _write_package(spec, folder, say)
            open_package(PackagePath(spec.name, spec.version, folder))
            refuse()  # again: another build of the same name may have come first
            return _publish(staging, output / spec.name, spec.version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_taken(output: Path, name: str, version: int, *, replace: bool) -> None:
    """Raises BuildRefused early, before minutes are spent on a build that can't be kept: the name is taken, or none
    that a package may have, or its place can't be written to."""
    if not re.fullmatch(NAME, name):
        raise BuildRefused(
            f"{name!r} can't be the name of a package: letters, digits, _, - and . only, at most 128 of them"
        )
    folder = target_folder(output, name, version)
    for place in (folder.parent, output, *output.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                raise BuildRefused(f"{place} is no folder: pass another --output or --name")
            if not os.access(place, os.W_OK | os.X_OK):
                raise BuildRefused(f"{place} may not be written to by this user: pass another --output")
            break
    if os.path.lexists(folder) and not replace:
        raise AlreadyThere(f"{folder} exists: pass --version N for a new version, or --replace to overwrite this one")


def _refuse_other_labels(labels: tuple[str, ...], destination: Path, version: int) -> None:
    """The versions of a model share one labels file, as Triton's layout has it."""
    shared = destination / LABELS
    others = [path for path in destination.glob("*/") if path.name.isdigit() and int(path.name) != version]
    if others and shared.is_file() and read_labels(shared) != labels:
        raise BuildRefused(f"{destination} holds versions with other labels: pass another --name")


def _write_package(spec: PackageSpec, folder: Path, say: Callable[[str], None]) -> None:
    if spec.precision != "fp32":
        say(f"rounding weights to {spec.precision}")
    graph = ServingGraph(spec.model, spec.preprocessing, spec.precision)
    say(f"tracing {spec.variant.name} in {spec.precision} (opset {OPSET})")
    started = time.monotonic()
    written = export_graph(graph, folder / GRAPH)
    megabytes = sum(path.stat().st_size for path in written) / 1e6
    say(f"traced in {time.monotonic() - started:.0f} s: {megabytes:.1f} MB")

    config = spec.model.config
    row_shape = (*config.input_size, 3)
    batches = batch_sizes(spec.max_batch)
    golden = golden_count(row_shape)
    say(f"running torch over {max(golden, *batches)} rows")
    expected = reference(spec.model, spec.preprocessing, max(golden, *batches))
    np.savez_compressed(
        folder / GOLDEN,
        allow_pickle=False,
        rows=expected.rows[:golden],
        probabilities=expected.probabilities[:golden],
        logits=expected.logits[:golden],
    )

    say(f"verifying against torch at batch {', '.join(map(str, batches))}")
    parity = measure_graph(folder / GRAPH, spec.precision, expected, batches)
    labels = folder.parent / LABELS
    labels.write_text("".join(f"{label}\n" for label in spec.labels), encoding="utf-8")
    manifest = Manifest(
        name=spec.name,
        version=spec.version,
        task=spec.variant.task,
        variant=spec.variant.name,
        description=spec.description,
        demo=spec.variant.demo,
        num_classes=config.num_classes,
        feature_dim=config.feature_dim,
        parameters=sum(parameter.numel() for parameter in spec.model.parameters()),
        precision=spec.precision,
        preprocessing=spec.preprocessing,
        sampling=spec.sampling,
        weights=spec.weights,
        accuracy=spec.accuracy,
        parity=parity,
        files={**{path.name: sha256(path) for path in (*written, folder / GOLDEN)}, f"../{LABELS}": sha256(labels)},
        tools=tool_versions(),
    )
    write_manifest(manifest, folder)
    (folder.parent / TRITON_CONFIG).write_text(triton_config(manifest, spec.max_batch), encoding="utf-8")


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `model.json` in one piece."""
    partial = folder / f".{MANIFEST}.part"
    try:
        partial.write_text(manifest.to_json(), encoding="utf-8")
        os.replace(partial, folder / MANIFEST)
    finally:
        with suppress(OSError):  # where none may be written none can be removed, which the error above tells
            partial.unlink(missing_ok=True)


def tool_versions() -> dict[str, str]:
    """What made a package, for its manifest."""
    tools = {"python": platform.python_version(), "opset": str(OPSET)}
    for name in _TOOLS:
        tools[name] = metadata.version(name)
    return tools | {"onnxruntime": installed_version("onnxruntime")}  # of the CPU's build, or of the GPU's


def _publish(staging: Path, destination: Path, version: int) -> Path:
    """Rename the finished folders to where servers look."""
    folder = destination / str(version)
    if not destination.exists():
        staging.rename(destination)
        return folder
    replaced = staging / "replaced"
    if os.path.lexists(folder):  # a link that leads nowhere, too
        folder.rename(replaced)
    try:
        (staging / str(version)).rename(folder)
    except BaseException:  # an interrupt too: what is still in `staging` then is removed
        if os.path.lexists(replaced):
            replaced.rename(folder)
        raise
    for shared in (LABELS, TRITON_CONFIG):
        os.replace(staging / shared, destination / shared)
    return folder
