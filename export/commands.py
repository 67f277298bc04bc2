"""What each `hiera-export` command does with its parsed options. `list` and `inspect` need no torch."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from app.errors import PackageError
from app.repository.manifest import Parity
from app.repository.store import MANIFEST, Package, PackagePath, discover, latest, open_package
from export.catalog import VARIANTS, Variant, find_variant
from export.errors import BuildRefused
from export.graph_shapes import check_outputs


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_build(options: Namespace) -> int:
    variants = [find_variant(name) for name in dict.fromkeys(options.variants)]
    single = {"--weights": options.weights, "--labels": options.labels, "--name": options.name}
    given = [flag for flag, value in single.items() if value is not None]
    if len(variants) > 1 and given:
        raise BuildRefused(f"{' and '.join(given)} go with one variant, but {len(variants)} are named")
    from export.download import source_from_environment
    from export.package import build_package, refuse_taken
    from export.package_spec import BuildRequest, make_spec, refuse_contradictions

    source = source_from_environment(os.environ)
    requests = [
        BuildRequest(
            variant=variant,
            weights=options.weights,
            random_seed=options.random_weights,
            labels=options.labels,
            precision=options.precision,
            name=options.name,
            version=options.version,
            max_batch=options.max_batch,
            resize_short_side=options.resize_short_side,
            sampling=options.sampling,
            frame_stride=options.frame_stride,
            target_fps=options.target_fps,
            licence=options.licence,
            commercial_use=options.commercial_use,
        )
        for variant in variants
    ]
    for request in requests:  # all, before minutes are spent on the first
        refuse_contradictions(request)
        refuse_taken(options.output, request.package_name, options.version, replace=options.replace)
    for request in requests:
        variant = request.variant
        started = time.monotonic()
        size = f"{variant.parameters / 1e6:.1f} M parameters, {variant.gmacs:g} GMACs a row"
        _say(f"== {variant.name}: {variant.title}, {size}")
        spec = make_spec(request, source, _say)
        folder = build_package(spec, options.output, replace=options.replace, say=_say)
        manifest = open_package(PackagePath(spec.name, spec.version, folder)).manifest
        _say("\n".join(_parity_lines(manifest.parity)))
        _say(f"done in {time.monotonic() - started:.0f} s")
        print(folder)
    return 0


def run_list(_: Namespace) -> int:
    header = ("variant", "task", "classes", "params M", "GMACs", "licence of the weights", "published top-1")
    rows = [header, *(_row(variant) for variant in VARIANTS.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nCC-BY-NC-4.0 forbids commercial use. Demo models are packaged in the source's model_repo/.")
    print("Accuracies are published ones: one centre crop for images, 5 clips x 3 crops for video.")
    return 0


def _row(variant: Variant) -> tuple[str, ...]:
    accuracy = ", ".join(f"{item.top1:g} {item.dataset}" for item in variant.accuracy) or "demo: see its manifest"
    return (
        variant.name,
        variant.task,
        str(variant.num_classes),
        f"{variant.parameters / 1e6:.2f}",
        f"{variant.gmacs:.4g}",
        variant.licence.name,
        accuracy,
    )


def run_verify(options: Namespace) -> int:
    package = open_package(_package_path(options.package))
    manifest = package.manifest
    if options.rows is not None:
        return _run_agreement(options, package)
    of_rows = {
        "--engine": options.engine,
        "--engine-precision": options.engine_precision,
        "--engine-device": options.engine_device,
    }
    given = [flag for flag, value in of_rows.items() if value != "auto"]
    if given:
        raise BuildRefused(f"{given[0]} goes with --rows: without that the graph alone is measured")
    from export.download import source_from_environment
    from export.verify import verify_package

    result = verify_package(package, options.weights, options.max_batch, source_from_environment(os.environ))
    print(f"{manifest.name} version {manifest.version} agrees with {result.against}:")
    print("\n".join(_parity_lines(result.parity)))
    if result.not_recorded is not None:
        raise BuildRefused(f"this could not be written into the manifest ({result.not_recorded})")
    return 0


def _run_agreement(options: Namespace, package: Package) -> int:
    from app.engines.factory import EngineOptions
    from export.agreement import check_agreement, measure_agreement, open_engine, rows_to_compare, torch_judge
    from export.download import source_from_environment
    from export.verify import torch_model

    manifest = package.manifest
    rows = rows_to_compare(options.rows, package)
    found = torch_model(package, options.weights, source_from_environment(os.environ))
    if found is None:
        raise BuildRefused(f"--rows compares with torch, which needs the weights: pass --weights ({manifest.name})")
    model, against = found
    batch = options.max_batch or (16 if manifest.task == "image" else 2)
    engine = open_engine(
        package,
        EngineOptions(
            name=options.engine, precision=options.engine_precision, device=options.engine_device, max_batch=batch
        ),
    )
    try:
        agreement = measure_agreement(engine, torch_judge(model, package), rows, batch)
    finally:
        engine.close()
    print(f"{manifest.name} version {manifest.version}, {manifest.precision}, on {agreement.engine}")
    print(f"against {against} in fp32, over {agreement.rows} rows:")
    print(
        f"  top-1 agreement {agreement.top1:.2%}; where they differ, torch led by {agreement.largest_lead:.2g} at most"
    )
    print(
        f"  largest difference of a probability {agreement.max_probability:.2g}, "
        f"of a row {agreement.mean_probability:.2g} on average"
    )
    if agreement.features is not None:
        print(f"  features: a cosine of {agreement.features:.6f} at least")
    check_agreement(agreement, package, engine.info.precision)
    return 0


def run_tensorrt(options: Namespace) -> int:
    package = open_package(_package_path(options.package))
    from export.tensorrt_plan import PlanRequest, build_plan

    request = PlanRequest(
        device=f"cuda:{options.device}",
        target=options.target,
        flavour=options.flavour,
        max_batch=options.max_batch,
        timing_cache=options.timing_cache,
        unfused_attention=options.unfused_attention,
        replace=options.replace,
    )
    started = time.monotonic()
    plan = build_plan(package, request, _say)
    _say(f"done in {time.monotonic() - started:.0f} s: {plan.stat().st_size / 1e6:.1f} MB")
    print(plan)
    return 0


def run_inspect(options: Namespace) -> int:
    package = open_package(_package_path(options.package))
    try:
        check_outputs(package)
    except ModuleNotFoundError:
        _say("onnx is not installed: the manifest was not compared with the graph")
    manifest = package.manifest
    if options.json:
        print(json.dumps(manifest.model_dump(mode="json"), indent=2))
        return 0
    weights, crop = manifest.weights, manifest.preprocessing
    sampling = manifest.sampling
    facts = {
        "name": f"{manifest.name}, version {manifest.version}",
        "description": manifest.description,
        "variant": f"{manifest.variant} ({manifest.task}), {manifest.parameters / 1e6:.2f} M parameters",
        "precision": manifest.precision,
        "rows": f"uint8 [batch, {', '.join(map(str, manifest.row_shape))}]",
        "resize": f"short side {crop.resize_short_side}, {crop.interpolation}, centre crop {crop.height}x{crop.width}",
        "sampling": ""
        if sampling is None
        else f"{sampling.frames} frames, {sampling.mode}, stride {sampling.stride} "
        f"at {sampling.target_fps:g} per second",
        "outputs": ", ".join(manifest.outputs),
        "classes": f"{manifest.num_classes}: {', '.join(package.labels[:3])} …",
        "weights": f"{weights.source}; {weights.licence}, commercial use: {'yes' if weights.commercial_use else 'no'}",
        "accuracy": "; ".join(f"{item.top1:g}% on {item.dataset} ({item.how})" for item in manifest.accuracy)
        or "not known",
        "files": ", ".join(f"{name} (sha256 {digest[:12]}…, as built)" for name, digest in manifest.files.items()),
        "made with": ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
    }
    for title, text in facts.items():
        if text:
            print(f"{title:<12} {text}")
    print("\n".join(_parity_lines(manifest.parity)))
    return 0


def _parity_lines(parity: tuple[Parity, ...]) -> list[str]:
    return [
        f"  batch {item.batch:>3}: largest difference {item.max_abs_logits:.2g} in logits, "
        f"{item.max_abs_probability:.2g} in probabilities; "
        f"top-1 agreement {item.top1_agreement:.1%}, top-5 {item.top5_agreement:.1%}"
        for item in parity
    ]


def _package_path(path: Path) -> PackagePath:
    """A version folder, or a model's folder, which stands for its highest version.

    Raises:
        PackageError: there is none.
    """
    path = Path(os.path.realpath(path))  # which takes a link that leads to itself for a file
    if not path.is_dir():
        raise PackageError(f"{path}: no such package; give <repository>/<name> or <repository>/<name>/<version>")
    # A model may be called 2024, too.
    holds_versions = not (path / MANIFEST).is_file() and any(_is_number(each.name) for each in path.iterdir())
    if _is_number(path.name) and not holds_versions:
        return PackagePath(path.parent.name, int(path.name), path)
    found = [package for package in latest(discover(path.parent)) if package.name == path.name]
    if not found:
        raise PackageError(f"{path}: holds no package; give <repository>/<name> or <repository>/<name>/<version>")
    return found[0]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()
