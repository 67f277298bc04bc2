"""What an engine is: something that turns a batch of rows into probabilities, and says what it is.

An engine runs one batch at a time and knows nothing of requests, queues or threads. `app.serving.instance` owns it and
calls it from one thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from app.errors import EngineError, EngineUnavailable

Rows = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Features = NDArray[np.float32]

PROBABILITIES, FEATURES = "probabilities", "features"  # what a graph's outputs are called


@dataclass(frozen=True)
class Graph:
    """A package's graph, as engines load it.

    Attributes:
        path: ONNX, uint8 rows [n, *row_shape] in, float32 `probabilities` [n, classes] out, and perhaps `features`
            [n, D], what the classifier reads.
        precision: what its weights are in: "fp32", "fp16" or "bf16".
        fingerprint: of its content, for what is kept beyond a run; "" where only the file itself tells.
    """

    path: Path
    row_shape: tuple[int, ...]
    classes: int
    precision: str
    fingerprint: str = ""


@dataclass(frozen=True)
class EngineInfo:
    """What `/models`, the metrics and every answer say about an engine.

    `name` is the word that settings use ("onnxruntime", "openvino", "tensorrt", "noop"); `precision` is what it really
    computes in ("fp32", "bf16", "fp16"); `device` is "cpu" or "cuda:0"; `detail` is free text (threads, versions).
    """

    name: str
    precision: str
    device: str
    detail: str = ""


class Engine(Protocol):
    """A loaded model on a device.

    Attributes:
        info: what it is.
        row_shape: the shape of one row, (H, W, 3) or (T, H, W, 3).
        classes: the number of classes.
        max_batch: the most rows that one `run` takes.
    """

    info: EngineInfo
    row_shape: tuple[int, ...]
    classes: int
    max_batch: int

    def empty_rows(self, n: int) -> Rows:
        """An uninitialised uint8 array [n, *row_shape] in memory that the device reads quickly (pinned, aligned)."""
        ...

    def run(self, rows: Rows) -> Probabilities:
        """Classify a batch.

        Args:
            rows: uint8 [n, *row_shape], 1 <= n <= max_batch, C-contiguous.

        Returns:
            float32 [n, classes], each row summing to one; the caller owns it.

        Raises:
            EngineOutOfMemory: the device has no room for n rows; fewer may fit.
            EngineError: the batch failed.
        """
        ...

    def close(self) -> None:
        """Give the memory back. No `run` follows."""
        ...


def batch_ladder(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, … and `max_batch` itself: the sizes that are measured, and that a device is run at."""
    sizes = {1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch}
    return tuple(sorted(sizes | {max_batch}))


@runtime_checkable
class StagingEngine(Engine, Protocol):
    """An engine that copies the next batch to its device while it runs another."""

    def stage(self, rows: Rows) -> None:
        """Begin to copy what a later `run` will be given, from another thread than that of `run`.

        The rows must stay as they are until that `run` is done. It is a hint: `run` copies what was not staged, and
        says what went wrong with what was.
        """
        ...


@runtime_checkable
class SharedEngine(Engine, Protocol):
    """An engine that others can share the model of."""

    def twin(self) -> SharedEngine:
        """Another engine over the same model, for another thread; closed by itself. Their batches take turns."""
        ...


@runtime_checkable
class FeatureEngine(Engine, Protocol):
    """An engine that can also say what the classifier read: the pooled, normalised features of each row.

    Attributes:
        feature_dim: D; 0 where its graph has none.
    """

    feature_dim: int

    def features(self) -> Features:
        """Of the rows of the last `run` that went well, from its thread: float32 [n, D]; the caller owns it.

        Raises:
            EngineError: they could not be fetched.
        """
        ...


def feature_dim(engine: Engine) -> int:
    """Width of the features that an engine gives; 0 where it gives none."""
    return engine.feature_dim if isinstance(engine, FeatureEngine) else 0


def features_of(engine: Engine) -> Features:
    """What the classifier read in an engine's last run, float32 [n, D]. Raises EngineError where it gives none."""
    if not feature_dim(engine):
        raise EngineError(f"{engine.info.name} gives no features of this model")
    return cast(FeatureEngine, engine).features()


def other_precision(engine: str, computed_in: str, wanted: str) -> EngineUnavailable:
    """What an engine that computes in the graph's own precision says where another is wanted."""
    return EngineUnavailable(
        f"{engine} computes in the graph's own {computed_in}; for {wanted}, build the package with "
        f"hiera-export build --precision {wanted}"
    )
