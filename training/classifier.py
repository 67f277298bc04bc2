"""What `evaluate` measures: the package that ships, run by an engine that serves it; or weights, run by torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from app.engines.factory import EngineOptions
from app.repository.store import discover, latest, open_package
from export.agreement import open_engine
from export.hiera import create_model

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
        SystemExit: there is no such package.
    """
    if options.weights is not None:
        model = create_model(name)
        model.load_state_dict(load_file(options.weights))
        return torch_classifier(model, normalise)
    return _of_package(options.package, options.engine)


def torch_classifier(model: torch.nn.Module, normalise: Callable[[Tensor], Tensor]) -> Classifier:
    """A model in torch; `normalise` makes its inputs of rows."""
    model.eval()

    @torch.no_grad()
    def classify(rows: Tensor) -> Tensor:
        return torch.cat([model(normalise(part)).softmax(dim=1) for part in torch.split(rows, _BATCH)])

    return classify


def _of_package(folder: Path, engine_name: str) -> Classifier:
    found = [path for path in latest(discover(folder.parent)) if path.name == folder.name]
    if not found:
        raise SystemExit(f"there is no package in {folder}; name one with --package, or weights with --weights")
    options = EngineOptions(name="openvino" if engine_name == "openvino" else "onnxruntime", device="cpu")
    engine = open_engine(open_package(found[0]), options)

    def classify(rows: Tensor) -> Tensor:
        parts = torch.split(rows.movedim(-3, -1), engine.max_batch)  # [N, …, 3, H, W] -> [N, …, H, W, 3]
        return torch.cat([torch.from_numpy(engine.run(part.contiguous().numpy())) for part in parts])

    return classify
