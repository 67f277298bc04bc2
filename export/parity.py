"""Parity: runs a package's graph beside the torch model and measures how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from app.repository.manifest import Parity, Precision, Preprocessing
from export.errors import ParityFailed
from export.golden import render_rows
from export.hiera import Hiera
from export.to_onnx import OUTPUTS, ROWS

Array = NDArray[np.float32]
# Of the ladder that a server warms up: one row alone, the smallest batch, and these.
LARGEST_BATCH = {"image": 32, "video": 8}


@dataclass(frozen=True)
class Tolerance:
    """The largest difference that passes, in logits and in probabilities."""

    logits: float
    probability: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(logits=1e-3, probability=1e-4),
    "fp16": Tolerance(logits=0.1, probability=0.02),
    "bf16": Tolerance(logits=0.8, probability=0.15),
}


@dataclass(frozen=True)
class Reference:
    """What torch says in fp32 of a series of rows."""

    rows: NDArray[np.uint8]  # [n, *row_shape]
    logits: Array  # [n, classes]
    probabilities: Array  # [n, classes]


class GraphRunner(Protocol):
    """Runs an ONNX graph: uint8 rows [n, …] to probabilities, logits [n, classes] and features [n, D]."""

    def __call__(self, rows: NDArray[np.uint8]) -> tuple[Array, Array, Array]: ...


def normalise(rows: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """uint8 [n, H, W, 3] or [n, T, H, W, 3] to what the torch model takes, float32 [n, 3, …].

    It stands apart from the normalisation inside the graph on purpose, so that the one checks the other.
    """
    x = torch.from_numpy(rows).to(torch.float32) / 255.0
    x = (x - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    return x.movedim(-1, 1).contiguous()


def reference(model: Hiera, preprocessing: Preprocessing, count: int) -> Reference:
    """Run torch over the first `count` rendered rows, one at a time, which bounds the memory."""
    rows = render_rows((*model.config.input_size, 3), count)
    with torch.inference_mode():
        model.eval()
        bar = tqdm(rows, desc="torch", unit="row", leave=False, disable=None)  # silent where no one watches
        logits = torch.cat([model(normalise(row[None], preprocessing)) for row in bar])
        return Reference(rows, logits.numpy(), logits.softmax(dim=1).numpy())


def open_graph(path: Path, precision: Precision) -> GraphRunner:
    """The graph on this machine's CPU: ONNX Runtime, or OpenVINO for bf16, which ONNX Runtime's CPU kernels lack."""
    return _open_openvino(path) if precision == "bf16" else _open_onnxruntime(path)


def batch_sizes(largest: int) -> list[int]:
    """Where parity is measured: one row, two, and the largest batch."""
    return sorted({1, min(2, largest), largest})


def measure_graph(graph: Path, precision: Precision, expected: Reference, batches: list[int]) -> tuple[Parity, ...]:
    """Open a graph, measure it at each batch size and check what was measured.

    Raises:
        ParityFailed: over the tolerance at one of them, or the graph cannot be loaded.
    """
    try:
        run = open_graph(graph, precision)
    except ParityFailed:
        raise
    except Exception as error:  # the runtimes have no base of their own for what they raise
        raise ParityFailed(f"{graph} cannot be loaded here ({error}); build the package again") from error
    measured = []
    for batch in batches:
        measured.append(measure(run, expected, batch))
        check_parity(measured[-1], precision)
    return tuple(measured)


def measure(run: GraphRunner, expected: Reference, batch: int) -> Parity:
    """Compare the graph with torch over the first rows, in one batch."""
    rows = expected.rows[:batch]
    if len(rows) < batch:
        raise ValueError(f"{len(rows)} rows are too few for a batch of {batch}")
    probabilities, logits, _ = run(rows)
    return Parity(
        batch=batch,
        max_abs_logits=_largest_difference(logits, expected.logits[:batch]),
        max_abs_probability=_largest_difference(probabilities, expected.probabilities[:batch]),
        top1_agreement=_top_agreement(logits, expected.logits[:batch], 1),
        top5_agreement=_top_agreement(logits, expected.logits[:batch], 5),
    )


def check_parity(parity: Parity, precision: Precision) -> None:
    """Raises ParityFailed where a difference is over the tolerance of the precision."""
    tolerance = TOLERANCES[precision]
    # Written so that a difference that is not a number fails.
    if parity.max_abs_logits <= tolerance.logits and parity.max_abs_probability <= tolerance.probability:
        return
    raise ParityFailed(
        f"at batch {parity.batch} the graph differs from torch by {parity.max_abs_logits:.2g} in the logits and "
        f"{parity.max_abs_probability:.2g} in the probabilities, where {precision} may differ by {tolerance.logits:g} "
        f"and {tolerance.probability:g} (top-1 agreement {parity.top1_agreement:.0%})"
    )


def _largest_difference(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        raise ParityFailed(f"the graph answers {ours.shape} where torch answers {theirs.shape}")
    return float(np.abs(ours.astype(np.float64) - theirs).max())


def _top_agreement(ours: Array, theirs: Array, k: int) -> float:
    """The part of the rows whose k likeliest classes are the same set."""
    k = min(k, ours.shape[1])
    tops = [np.sort(np.argsort(-logits, axis=1, kind="stable")[:, :k], axis=1) for logits in (ours, theirs)]
    return float((tops[0] == tops[1]).all(axis=1).mean())


def _open_onnxruntime(path: Path) -> GraphRunner:
    options = ort.SessionOptions()
    # One large allocation pattern after another would otherwise be kept for each batch size.
    options.enable_mem_pattern = False
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(rows: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
        probabilities, logits, features = session.run(list(OUTPUTS), {ROWS: rows})
        return probabilities, logits, features

    return run


def _open_openvino(path: Path) -> GraphRunner:
    try:
        import openvino
    except ImportError as error:
        raise ParityFailed(
            "a bf16 graph is verified with OpenVINO, which is not installed: pip install openvino"
        ) from error
    # Nothing in lower precision than the graph says, as it is served.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", hints)

    def run(rows: NDArray[np.uint8]) -> tuple[Array, Array, Array]:
        answer = compiled({ROWS: rows})
        probabilities, logits, features = (np.array(answer[name]) for name in OUTPUTS)
        return probabilities, logits, features

    return run
