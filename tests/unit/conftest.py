"""What the unit tests of several packages share: real ONNX graphs and packages, small enough to make on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.engines.base import Graph
from app.engines.factory import EngineOptions
from app.engines.onnxruntime import OnnxRuntimeEngine
from app.repository.manifest import Manifest, Preprocessing, Sampling, Weights
from app.repository.store import sha256
from app.serving.deployment import ServingOptions
from app.serving.registry import ModelRegistry

MakeGraph = Callable[..., Path]
MakePackage = Callable[..., Path]
MakeRegistry = Callable[..., ModelRegistry]


def write_graph(path: Path, row_shape: tuple[int, ...] = (8, 8, 3), classes: int = 5, seed: int = 0) -> Path:
    """Mean colour of each row, a linear layer, softmax: uint8 [n, *row_shape] -> probabilities, logits [n, classes]."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(3, classes)).astype(np.float32) * 4
    axes = np.arange(1, len(row_shape), dtype=np.int64)
    nodes = [
        helper.make_node("Cast", ["rows"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    constants: dict[str, NDArray[Any]] = {"scale": np.array(255, np.float32), "axes": axes, "weight": weight}
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, ["n", *row_shape])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", classes])
            for name in ("probabilities", "logits")
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture
def make_graph(tmp_path: Path) -> MakeGraph:
    """`make_graph(row_shape=…, classes=…, seed=…)` writes a small real ONNX graph and gives its path."""
    made = 0

    def make(row_shape: tuple[int, ...] = (8, 8, 3), classes: int = 5, seed: int = 0) -> Path:
        nonlocal made
        made += 1
        return write_graph(tmp_path / f"graph{made}.onnx", row_shape, classes, seed)

    return make


def spread_rows(n: int, row_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """uint8 [n, *row_shape], each row of one colour: saturated ones, so that their classes are well apart."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], np.uint8)
    rows = np.empty((n, *row_shape), np.uint8)
    for index in range(n):
        rows[index] = colours[index % len(colours)]
    return rows


@pytest.fixture
def make_package(tmp_path: Path) -> MakePackage:
    """`make_package(name, version, task=…, demo=…, …)` writes a real package below `tmp_path / "repo"`."""
    root = tmp_path / "repo"
    root.mkdir()

    def make(
        name: str,
        version: int = 1,
        *,
        task: str = "image",
        classes: int = 5,
        seed: int = 0,
        demo: bool = False,
        random_seed: int | None = None,
        wrong_golden: bool = False,
    ) -> Path:
        row_shape = (8, 8, 3) if task == "image" else (4, 8, 8, 3)
        folder = root / name / str(version)
        folder.mkdir(parents=True)
        graph = write_graph(folder / "model.onnx", row_shape, classes, seed)
        (folder.parent / "labels.txt").write_text("".join(f"class {index}\n" for index in range(classes)))
        rows = spread_rows(4, row_shape)
        engine = OnnxRuntimeEngine(Graph(graph, row_shape, classes, "fp32"), threads=1, max_batch=8)
        probabilities = engine.run(rows)
        engine.close()
        if wrong_golden:
            probabilities = np.roll(probabilities, 1, axis=1)
        np.savez(folder / "golden.npz", rows=rows, probabilities=probabilities)
        files = ("model.onnx", "golden.npz", "../labels.txt")
        manifest = Manifest(
            name=name,
            version=version,
            task="video" if task == "video" else "image",
            variant="mean_colour",
            description="the mean colour of a row, for tests",
            demo=demo,
            num_classes=classes,
            feature_dim=3,
            parameters=3 * classes,
            precision="fp32",
            preprocessing=Preprocessing(
                resize_short_side=9, height=8, width=8, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
            ),
            sampling=Sampling(frames=4) if task == "video" else None,
            weights=Weights(source="a test", random_seed=random_seed, licence="none", commercial_use=True),
            files={file: sha256(folder / file) for file in files},
            tools={},
        )
        (folder / "model.json").write_text(manifest.to_json())
        return root

    return make


@pytest.fixture
def make_registry(tmp_path: Path) -> Iterator[MakeRegistry]:
    """`make_registry(**more)` gives a registry of the packages that `make_package` has written; all are closed."""
    made: list[ModelRegistry] = []
    given: dict[str, Any] = {
        "engine_options": EngineOptions(name="onnxruntime", threads=1, max_batch=4),
        "options": ServingOptions(warmup_budget_s=0.05),
    }

    def make(root: Path = tmp_path / "repo", **more: Any) -> ModelRegistry:
        registry = ModelRegistry(root, **(given | more))
        made.append(registry)
        return registry

    yield make
    for registry in made:
        registry.close(60.0)
