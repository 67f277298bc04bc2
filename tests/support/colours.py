"""Small real files of plain colours, and a real model package whose answers to them can be foretold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
from feature_graph import add_features
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from app.repository.manifest import Manifest, Preprocessing, Sampling, Weights
from app.repository.store import sha256

Colour = tuple[int, int, int]
RED: Colour = (220, 20, 20)
GREEN: Colour = (20, 200, 20)
BLUE: Colour = (20, 20, 220)


def image_of(colour: Colour = RED, size: tuple[int, int] = (64, 48), form: str = "JPEG") -> bytes:
    """A picture of one colour, as the bytes of a file."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def video_of(*colours: Colour, seconds_each: float = 1.0, rate: int = 30, size: tuple[int, int] = (64, 48)) -> bytes:
    """An H.264 MP4 that shows one colour after the other."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for colour in colours or (RED,):
            picture = np.full((size[1], size[0], 3), colour, np.uint8)
            for _ in range(round(seconds_each * rate)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_colour_package(
    root: Path,
    name: str,
    *,
    task: str = "image",
    version: int = 1,
    demo: bool = False,
    random_seed: int | None = None,
    sharpness: float = 8.0,
    ballast_bytes: int = 0,
    features: bool = False,
) -> Path:
    """A real package whose model names the strongest of red, green and blue: its answers can be foretold. `sharpness`
    scales the logits, so that two versions can be told apart by their probabilities; `ballast_bytes` of weights are
    multiplied by zero and added, so that it weighs something; with `features` it gives the mean colour, too."""
    row_shape = (8, 8, 3) if task == "image" else (4, 8, 8, 3)
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    weight = np.eye(3, dtype=np.float32) * np.float32(sharpness)
    _write_graph(folder / "model.onnx", row_shape, weight, ballast_bytes)
    if features:
        add_features(folder / "model.onnx")
    (folder.parent / "labels.txt").write_text("red\ngreen\nblue\n")
    rows = np.stack([np.full(row_shape, colour, np.uint8) for colour in (RED, GREEN, BLUE)])
    logits = (rows.reshape(3, -1, 3).mean(axis=1) / 255) @ weight
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)
    np.savez(folder / "golden.npz", rows=rows, probabilities=probabilities)
    manifest = Manifest(
        name=name,
        version=version,
        task="video" if task == "video" else "image",
        variant="mean_colour",
        description="names the strongest colour, for tests",
        demo=demo,
        num_classes=3,
        feature_dim=3,
        parameters=9,
        precision="fp32",
        preprocessing=Preprocessing(
            resize_short_side=9, height=8, width=8, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
        ),
        sampling=Sampling(frames=4, stride=4) if task == "video" else None,
        weights=Weights(source="a test", random_seed=random_seed, licence="none", commercial_use=True),
        files={file: sha256(folder / file) for file in ("model.onnx", "golden.npz", "../labels.txt")},
        tools={},
    )
    (folder / "model.json").write_text(manifest.to_json())
    return folder


def _write_graph(path: Path, row_shape: tuple[int, ...], weight: NDArray[np.float32], ballast_bytes: int) -> None:
    width = max(1, ballast_bytes // 24)
    constants: dict[str, NDArray[Any]] = {
        "up": np.ones((3, width), np.float32),
        "down": np.zeros((width, 3), np.float32),
        "scale": np.array(255, np.float32),
        "axes": np.arange(1, len(row_shape), dtype=np.int64),
        "weight": weight,
    }
    nodes = [
        helper.make_node("Cast", ["rows"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["colours"]),
        helper.make_node("MatMul", ["mean", "up"], ["wide"]),
        helper.make_node("MatMul", ["wide", "down"], ["nothing"]),
        helper.make_node("Add", ["colours", "nothing"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("probabilities", "logits")]
    rows = helper.make_tensor_value_info("rows", TensorProto.UINT8, ["n", *row_shape])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "mean_colour", [rows], outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
