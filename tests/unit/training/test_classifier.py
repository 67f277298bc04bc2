"""`evaluate` measures the very packages that ship, as they are served."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app.engines.base import Graph
from app.engines.onnxruntime import OnnxRuntimeEngine
from export.hiera import create_model
from training import camera_motion, objects
from training.classifier import add_classifier_arguments, classifier_of

DEMOS = Path(__file__).resolve().parents[3] / "model_repo"


def parsed(name: str, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_classifier_arguments(parser, name)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("name", "shape"), [(objects.NAME, (3, 32, 32)), (camera_motion.NAME, (16, 3, 64, 64))], ids=["image", "video"]
)
def test_a_package_gets_its_rows_in_the_order_of_its_axes(name: str, shape: tuple[int, ...]) -> None:
    rows = torch.randint(0, 256, (33, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classify = classifier_of(parsed(name, "--package", str(DEMOS / name)), name, objects.normalise)
    served = np.moveaxis(rows.numpy(), -3, -1)
    graph = Graph(DEMOS / name / "1" / "model.onnx", served.shape[1:], 10, "fp32")
    engine = OnnxRuntimeEngine(graph, threads=1, max_batch=33)
    expected = engine.run(np.ascontiguousarray(served))
    np.testing.assert_allclose(classify(rows).numpy(), expected, atol=1e-5)


def test_weights_are_run_by_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model(objects.NAME).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    rows = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    classify = classifier_of(
        parsed(objects.NAME, "--weights", str(tmp_path / "weights.safetensors")), objects.NAME, objects.normalise
    )
    with torch.no_grad():
        expected = model(objects.normalise(rows)).softmax(dim=1)
    torch.testing.assert_close(classify(rows), expected)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no package in .*away"):
        classifier_of(parsed(objects.NAME, "--package", str(tmp_path / "away")), objects.NAME, objects.normalise)
