"""Graphs of models of any geometry, fresh and untrained, for tests of what engines make of their nodes."""

from __future__ import annotations

from pathlib import Path

from app.repository.manifest import Precision, Preprocessing
from export.hiera import Hiera, HieraConfig
from export.to_onnx import ServingGraph, export_graph


def write_fresh_graph(config: HieraConfig, precision: Precision, path: Path) -> Path:
    """Write `path`, and return it."""
    height, width = config.input_size[-2:]
    plain = Preprocessing(
        resize_short_side=height, height=height, width=width, interpolation="bicubic", mean=(0.5,) * 3, std=(1, 1, 1)
    )
    export_graph(ServingGraph(Hiera(config), plain, precision), path)
    return path
