# mypy: ignore-errors
"""This project's own server over the same packages, asked over HTTP for the probabilities of a row."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from app.repository.store import Package

READY_WITHIN_S = 180


@contextmanager
def own_server(python: str, repository: Path, port: int) -> Iterator[str]:
    """Its address, once it is ready. It computes with ONNX Runtime, as Triton does.

    Args:
        python: an interpreter with this project's serving dependencies.
    """
    settings = {"HIERA_PORT": str(port), "HIERA_HOST": "127.0.0.1", "HIERA_MODEL_REPOSITORY": str(repository)}
    settings |= {"HIERA_ENGINE": "onnxruntime", "HIERA_ENGINE_CACHE_FOLDER": "none", "HIERA_WARMUP_BUDGET_SECONDS": "1"}
    settings |= {"HIERA_GRPC_PORT": "0"}
    with tempfile.TemporaryFile() as log:
        command = [python, "-m", "app.cli", "run"]
        server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(address, server)
            yield address
        finally:
            server.terminate()
            server.wait(60)


def wait_until_ready(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("this project's own server does not get ready")


def classify_row(address: str, package: Package, row: np.ndarray) -> np.ndarray:
    """The probabilities [classes] of one image row, which is sent as a PNG that decodes and crops to it exactly."""
    manifest = package.manifest
    answer = urllib.request.urlopen(
        urllib.request.Request(
            f"{address}/classify/image?model={manifest.name}&top_k={manifest.num_classes}",
            data=png_around(row, manifest.preprocessing.resize_short_side),
            headers={"content-type": "image/png"},
        ),
        timeout=60,
    )
    probabilities = np.full(manifest.num_classes, np.nan)
    for each in json.load(answer)["predictions"]:
        probabilities[each["class_id"]] = each["probability"]
    return probabilities


def png_around(row: np.ndarray, side: int) -> bytes:
    """A square picture of `side` pixels, which is not resized, with the row [height, width, 3] as its centre crop."""
    picture = np.zeros((side, side, 3), np.uint8)
    top, left = (side - row.shape[0]) // 2, (side - row.shape[1]) // 2
    picture[top : top + row.shape[0], left : left + row.shape[1]] = row
    target = io.BytesIO()
    Image.fromarray(picture).save(target, "png")
    return target.getvalue()
