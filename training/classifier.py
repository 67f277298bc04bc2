"""What `evaluate` measures: the package that ships, run by an engine that serves it; or weights, run by torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from app.engines.factory import EngineOptions
from app.repository.store import discover, latest, open_package
from export.agreement import open_engine
from export.checkpoints import load_classifier, read_checkpoint
from export.hiera import CONFIGS, Hiera, create_model

REPOSITORY = Path("model_repo")
_BATCH = 50

# uint8 rows [N, 3, H, W] or [N, T, 3, H, W] to probabilities, float32 [N, classes].
Classifier = Callable[[Tensor], Tensor]


def add_classifier_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """`--weights`, `--package` and `--engine`, for `classifier_of`."""
    group = parser.add_argument_group("what `evaluate` measures")
    group.add_argument("--package", type=Path, default=REPOSITORY / name, help="the package (the one that ships)")
    group.add_argument("--engine", default="onnxruntime", choices=("onnxruntime", "openvino"), help="that runs it")
    group.add_argument("--weights", type=Path, help="a safetensors file of `train`, run by torch, instead of a package")


def classifier_of(options: argparse.Namespace, name: str, normalise: Callable[[Tensor], Tensor]) -> Classifier:
    """The package or the weights that `options` name; `normalise` makes torch's inputs of rows.

    Raises:
        SystemExit: there is no such package, or it is of other rows or classes.
        CheckpointError: the weights cannot be read, or are of another model.
        EngineUnavailable, PackageError: the package or its engine is no good.
    """
    if options.weights is not None:
        model = create_model(name)
        load_weights(model, name, options.weights)
        return torch_classifier(model, normalise)
    return _of_package(options.package, options.engine, name)


def load_weights(model: Hiera, name: str, weights: Path) -> None:
    """Give the variant `name` the weights of a file, in place.

    Raises:
        CheckpointError: they cannot be read, or do not fit.
    """
    load_classifier(model, read_checkpoint(weights, CONFIGS[name]), weights.name)


def torch_classifier(model: torch.nn.Module, normalise: Callable[[Tensor], Tensor]) -> Classifier:
    """A model in torch; `normalise` makes its inputs of rows."""
    model.eval()

    @torch.no_grad()
    def classify(rows: Tensor) -> Tensor:
        return torch.cat([model(normalise(part)).softmax(dim=1) for part in torch.split(rows, _BATCH)])

    return classify


def _of_package(folder: Path, engine_name: str, name: str) -> Classifier:
    found = [path for path in latest(discover(folder.parent)) if path.name == folder.name] if folder.is_dir() else []
    if not found:
        raise SystemExit(f"there is no package in {folder}; name one with --package, or weights with --weights")
    package, config = open_package(found[0]), CONFIGS[name]
    if (package.manifest.row_shape, package.manifest.num_classes) != ((*config.input_size, 3), config.num_classes):
        raise SystemExit(f"{folder} is of other rows or classes than {name}: name a package of it with --package")
    options = EngineOptions(name="openvino" if engine_name == "openvino" else "onnxruntime", device="cpu")
    engine = open_engine(package, options)

    def classify(rows: Tensor) -> Tensor:
        parts = torch.split(rows.movedim(-3, -1), engine.max_batch)  # [N, …, 3, H, W] -> [N, …, H, W, 3]
        return torch.cat([torch.from_numpy(engine.run(part.contiguous().numpy())) for part in parts])

    return classify
