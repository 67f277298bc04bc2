# mypy: ignore-errors
# (runs in the peers' own environments, whose packages the project's type checker does not see)
"""What every peer shares: the textbook preprocessing, the same model on the same engine, and the answer.

PEER_ENGINE is noop, onnxruntime or openvino; PEER_PRECISION fp32 or bf16 (OpenVINO); PEER_GRAPH a package's ONNX file.
With `noop` the preprocessing ends in the normalised float32 tensor that a model as exported by a user takes; the graph
of a package takes uint8 rows and normalises by itself, which spares the peers that work.
"""

import io
import os

import numpy as np
from PIL import Image

ENGINE = os.environ.get("PEER_ENGINE", "noop")
PRECISION = os.environ.get("PEER_PRECISION", "fp32")
GRAPH = os.environ.get("PEER_GRAPH", "")
PORT = int(os.environ.get("PORT", "8000"))
MAX_BATCH = int(os.environ.get("PEER_MAX_BATCH", "8"))

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def preprocess(data: bytes) -> np.ndarray:
    """RGB, short side to 256, centre crop 224: as the evaluation of every ImageNet model does it with Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)))
    if ENGINE != "noop":
        return pixels
    return ((pixels.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def load_model():
    """A function from a batch to probabilities [n, classes]; it may be called from several threads."""
    if ENGINE == "noop":
        return lambda batch: np.full((len(batch), 1000), 1e-3, np.float32)
    if ENGINE == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(GRAPH, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda batch: session.run(["probabilities"], {name: batch})[0]
    import openvino

    model = openvino.compile_model(
        GRAPH,
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if PRECISION == "bf16" else "f32"},
    )
    return lambda batch: model.infer_new_request({0: batch})["probabilities"]


def answer(probabilities: np.ndarray) -> dict:
    best = np.argsort(probabilities)[::-1][:5]
    return {"predictions": [{"class_id": int(i), "probability": float(probabilities[i])} for i in best]}
