"""Verifies a finished package: against torch where its weights can be had, else against its golden sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.errors import PackageError
from app.repository.manifest import Parity
from app.repository.store import GOLDEN, Package, sha256
from export.catalog import Variant, find_variant
from export.download import WeightsSource
from export.errors import CheckpointError
from export.hiera import Hiera
from export.package import write_manifest
from export.package_spec import load_weights, rebuild_random
from export.parity import LARGEST_BATCH, Reference, batch_sizes, measure_graph, reference


@dataclass(frozen=True)
class Verification:
    """What was measured, and against what in words. `not_recorded`: why the manifest could not take it."""

    parity: tuple[Parity, ...]
    against: str
    not_recorded: OSError | None = None


def verify_package(
    package: Package, weights: Path | None, max_batch: int | None, source: WeightsSource
) -> Verification:
    """Measure a package's agreement at batch 1, 2 and the largest, and write it into its manifest.

    Torch needs the weights: those given, those of the random seed in the manifest, or the official file if the cache
    has it with the digest in the manifest. Without any of them the golden sample stands for torch, and the manifest
    stays as it is.

    Raises:
        ParityFailed: over the tolerance of the package's precision, or the graph can't be run here.
        CheckpointError: the weights given are not those that the package was built from.
    """
    manifest = package.manifest
    batches = batch_sizes(max_batch or LARGEST_BATCH[manifest.task])
    found = torch_model(package, weights, source)
    if found is None:
        expected, against = _golden_reference(package, max(batches)), "the golden sample that torch left in it"
    else:
        model, against = found
        expected = reference(model, manifest.preprocessing, max(batches))
    parity = measure_graph(package.graph, manifest.precision, expected, batches)
    not_recorded = None
    if found is not None:
        try:
            write_manifest(manifest.model_copy(update={"parity": parity}), package.folder)
        except OSError as error:  # the repository is mounted to be read only
            not_recorded = error
    return Verification(parity, against, not_recorded)


def torch_model(package: Package, weights: Path | None, source: WeightsSource) -> tuple[Hiera, str] | None:
    """The model that a package was built from, and whence its weights; None where they cannot be had.

    Raises:
        CheckpointError: the weights given are not those that the package was built from.
        PackageError: the manifest is of another variant than the graph.
    """
    variant = find_variant(package.manifest.variant)
    recorded = package.manifest.weights
    if weights is not None and sha256(weights) != recorded.sha256:
        raise CheckpointError(f"{weights} is not the file that {package.folder} was built from ({recorded.source})")
    if weights is None and recorded.random_seed is not None:
        model = rebuild_random(variant, recorded.random_seed, package.manifest.num_classes)
        against = f"torch with the random weights of seed {recorded.random_seed}"
    else:
        path = weights or _cached(variant, recorded.sha256, source)
        if path is None:
            return None
        model, against = load_weights(variant, path), f"torch with {path.name}"
    if (*model.config.input_size, 3) != package.manifest.row_shape:
        raise PackageError(f"{package.folder}: the manifest says {variant.name}, which takes other rows than the graph")
    return model, against


def _cached(variant: Variant, digest: str | None, source: WeightsSource) -> Path | None:
    """The official file, if the cache has the one of that digest."""
    if variant.download is None:
        return None
    path = source.cache / variant.download.file
    return path if path.is_file() and sha256(path) == digest else None


def _golden_reference(package: Package, count: int) -> Reference:
    """The golden rows, over and over until there are `count`."""
    with np.load(package.folder / GOLDEN, allow_pickle=False) as arrays:
        logits = arrays["logits"]
    chosen = np.arange(count) % len(logits)
    return Reference(package.golden.rows[chosen], logits[chosen], package.golden.probabilities[chosen])
