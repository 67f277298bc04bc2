"""The gate before service: an engine that disagrees with the reference about the golden rows is not served.

Two distances are taken, because either alone can be blind. A model that was never trained gives every class nearly the
same probability, and any graph comes close to that in absolute terms; a confident one puts all but a millionth on one
class, and the logarithms of the rest are noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.engines.base import Engine, Probabilities, Rows
from app.engines.close_calls import CloseCalls
from app.errors import EngineError, PackageError
from app.repository.manifest import Precision
from app.repository.store import Golden

# Each row of a softmax sums to one but for rounding: bf16 keeps 8 bits, and a thousand classes average most of it out.
_SUM_TOLERANCE = 0.02
# Probabilities below this carry no information after a softmax in reduced precision.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from the fp32 reference.

    Attributes:
        probability: largest absolute difference of a probability.
        log_ratio: root mean square difference of a row's centred log-probabilities, over theirs in the reference.
    """

    probability: float
    log_ratio: float


# Measured over trained and untrained packages, images and video, as (probability, log_ratio): fp32 on another engine
# (1e-6, 2e-6), the order of its sums; bf16 on OpenVINO (0.02, 0.03), 8 bits where fp32 has 24; fp16 has 11. Swapped
# colour channels give a log_ratio of 0.24 at the least. The margins are for other kernels and for models that hardly
# tell their classes apart: rounding weighs more there (0.07 in bf16 for one whose logits all but coincide).
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(probability=1e-3, log_ratio=5e-3),
    "fp16": Tolerance(probability=0.02, log_ratio=0.03),
    "bf16": Tolerance(probability=0.08, log_ratio=0.10),
}

# bf16 on OpenVINO moved the two likeliest classes' log-probabilities against each other by at most 0.09 over 10,000
# photos and 0.29 over 4,000 rendered clips, in the trained packages, where golden rows deviate by 0.01; with random
# weights by 0.25 and 0.43, where those deviate by 0.05 and 0.07.
_LEAST_MARGIN = 0.3
_DEVIATIONS = 6


@dataclass(frozen=True)
class GoldenReport:
    """What the check measured, over all rows: the largest differences, and `max_log_deviation`, which is the root mean
    square of a row's in centred log-probabilities."""

    max_abs_probability: float
    max_log_ratio: float
    max_log_deviation: float
    top1_agreement: float

    @property
    def margin(self) -> float:
        """How far apart an engine must say that two log-probabilities are to be right about which one is larger."""
        return max(_LEAST_MARGIN, _DEVIATIONS * self.max_log_deviation)


def check_golden(engine: Engine, golden: Golden, graph_precision: Precision) -> GoldenReport:
    """Run the golden rows, in the largest batches that the engine takes and the first row also by itself.

    The looser tolerance of the engine's precision and the graph's applies. The top class must agree wherever the
    reference's lead is larger than the tolerance can turn around.

    Raises:
        PackageError: out of tolerance; the message gives the figures.
        EngineError: a batch failed.
    """
    batches = [(golden.rows[:1], golden.probabilities[:1])]
    if engine.max_batch > 1 and len(golden.rows) > 1:
        batches += [
            (golden.rows[at : at + engine.max_batch], golden.probabilities[at : at + engine.max_batch])
            for at in range(0, len(golden.rows), engine.max_batch)
        ]
    else:
        batches += [(golden.rows[at : at + 1], golden.probabilities[at : at + 1]) for at in range(1, len(golden.rows))]
    actual = np.concatenate([run_checked(engine, np.ascontiguousarray(rows)) for rows, _ in batches])
    expected = np.concatenate([probabilities for _, probabilities in batches])
    return _judge(engine, actual, expected, graph_precision)


class GoldenSample:
    """The golden rows over and over, in batches of any size; a `Sample` for sizes that `check_golden` does not run."""

    def __init__(self, golden: Golden, graph_precision: Precision) -> None:
        self._golden = golden
        self._precision = graph_precision

    def fill(self, batch: Rows) -> None:
        np.take(self._golden.rows, self._which(len(batch)), axis=0, out=batch)

    def check(self, engine: Engine, probabilities: Probabilities) -> None:
        """Raises PackageError where the engine is out of tolerance; the message gives the size and the figures."""
        expected = self._golden.probabilities[self._which(len(probabilities))]
        try:
            _check_distribution(engine, probabilities, len(expected))
            _judge(engine, probabilities, expected, self._precision)
        except (EngineError, PackageError) as error:
            raise PackageError(f"in a batch of {len(probabilities)}, {error}") from error

    def _which(self, size: int) -> NDArray[np.intp]:
        return np.arange(size) % len(self._golden.rows)


def _judge(engine: Engine, actual: Probabilities, expected: Probabilities, graph_precision: Precision) -> GoldenReport:
    """How far an engine is from the reference. Raises PackageError where that is out of tolerance."""
    tolerance = max((TOLERANCES[engine.info.precision], TOLERANCES[graph_precision]), key=lambda t: t.log_ratio)
    report = compare(actual, expected, tolerance)
    if (
        report.max_abs_probability > tolerance.probability
        or report.max_log_ratio > tolerance.log_ratio
        or report.top1_agreement < 1.0
    ):
        raise PackageError(
            f"{engine.info.name} ({engine.info.precision}) disagrees with the reference on the golden rows: "
            f"probabilities by up to {report.max_abs_probability:.2g} (allowed {tolerance.probability:g}), "
            f"log-probabilities by {report.max_log_ratio:.2g} of their spread (allowed {tolerance.log_ratio:g}), "
            f"top-1 agreement {report.top1_agreement:.0%}"
        )
    return report


def compare(actual: Probabilities, expected: Probabilities, tolerance: Tolerance) -> GoldenReport:
    """Distances between two float32 [n, classes]. Where the two best classes are within rounding, either is right."""
    log_actual, log_expected = _centred_log(actual), _centred_log(expected)
    spread = np.sqrt(np.mean(log_expected**2, axis=1))
    distance = np.sqrt(np.mean((log_actual - log_expected) ** 2, axis=1))
    ratio = distance / np.maximum(spread, 1e-6)
    best = expected.argmax(axis=1)
    chosen = actual.argmax(axis=1)
    at = np.arange(len(expected))
    lead = log_expected[at, best] - log_expected[at, chosen]  # 0 where the same class is chosen
    agrees = lead <= 4 * tolerance.log_ratio * spread
    return GoldenReport(
        max_abs_probability=float(np.abs(actual - expected).max()),
        max_log_ratio=float(ratio.max()),
        max_log_deviation=float(distance.max()),
        top1_agreement=float(np.mean(agrees)),
    )


def run_checked(engine: Engine, rows: Rows, *, exact: bool = False) -> Probabilities:
    """`engine.run`, believed only when the result is a probability distribution for each row: float32 [n, classes].
    With `exact` all rows are answered as close calls are.

    Raises:
        EngineError: the batch failed, or gave NaN, infinities, the wrong shape or rows that don't sum to one.
    """
    probabilities = engine.run_exact(rows) if exact and isinstance(engine, CloseCalls) else engine.run(rows)
    _check_distribution(engine, probabilities, len(rows))
    return probabilities


def _check_distribution(engine: Engine, probabilities: Probabilities, rows: int) -> None:
    """Raises EngineError unless these are one probability distribution for each of so many rows."""
    if probabilities.shape != (rows, engine.classes):
        raise EngineError(f"the engine gave {probabilities.shape} for {rows} rows of {engine.classes} classes")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    # Written so that NaN fails too: it compares false with everything.
    if not (np.all(np.abs(sums - 1.0) <= _SUM_TOLERANCE) and probabilities.min() >= 0.0):
        raise EngineError(
            "the engine gave something that is no probability distribution (NaN, infinite, or not summing to one)"
        )


def _centred_log(probabilities: Probabilities) -> NDArray[np.float64]:
    logs = np.log(np.maximum(probabilities.astype(np.float64), _FLOOR))
    centred: NDArray[np.float64] = logs - logs.mean(axis=1, keepdims=True)
    return centred
