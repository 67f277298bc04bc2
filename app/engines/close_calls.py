"""A quick engine whose close calls an exact one decides.

bf16 has 8 bits. Where the two likeliest classes of a row are closer than its rounding can turn around, it may name the
other one; such rows are few, and running those alone a second time in fp32 costs little beside running all in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from app.engines.base import Engine, Features, Probabilities, Rows, SharedEngine, feature_dim, features_of


class CloseCalls:
    """An engine that names the class which its exact engine would name, at little more than the quick one's cost.

    A row that is run again is answered by the exact engine as a whole, with all its probabilities.

    Args:
        quick: runs every row. Owned, as `exact` is.
        exact: runs the rows that are close calls, one by one: on a CPU a batch gains little, and some engines prepare
            each batch size anew.
        margin: a row is a close call where its two likeliest classes' log-probabilities differ by less.

    Attributes:
        info: the quick engine's, and in `detail` what happens to close calls.
        again: how many rows of the last batch were run again.
    """

    def __init__(self, quick: Engine, exact: SharedEngine, margin: float) -> None:
        self.quick = quick
        self.exact = exact
        self.margin = margin
        self.info = replace(quick.info, detail=f"{quick.info.detail}; close calls again in {exact.info.precision}")
        self.row_shape = quick.row_shape
        self.classes = quick.classes
        self.feature_dim = min(feature_dim(quick), feature_dim(exact))
        self.max_batch = quick.max_batch
        self.again = 0
        self._rows = 0  # of the last batch
        self._exact_features: dict[int, Features] = {}  # of its close calls, [D]

    def beside(self, quick: Engine) -> CloseCalls:
        """The same for another quick engine of the model. The two share the exact one's weights, and take turns."""
        return CloseCalls(quick, self.exact.twin(), self.margin)

    def empty_rows(self, n: int) -> Rows:
        return self.quick.empty_rows(n)

    def run(self, rows: Rows) -> Probabilities:
        self._begin(rows)
        probabilities = self.quick.run(rows)
        self._decide(rows, probabilities, close_rows(probabilities, self.margin))
        return probabilities

    def run_exact(self, rows: Rows) -> Probabilities:
        """`run`, with every row answered by the exact engine."""
        self._begin(rows)
        probabilities = np.empty((len(rows), self.classes), np.float32)
        self._decide(rows, probabilities, range(len(rows)))
        return probabilities

    def _begin(self, rows: Rows) -> None:
        self.again, self._rows = 0, len(rows)
        self._exact_features.clear()

    def _decide(self, rows: Rows, probabilities: Probabilities, close: Collection[int]) -> None:
        for at in close:
            probabilities[at] = self.exact.run(rows[at : at + 1])[0]
            if self.feature_dim:
                self._exact_features[int(at)] = features_of(self.exact)[0]
        self.again = len(close)

    def features(self) -> Features:
        if len(self._exact_features) < self._rows:
            features = features_of(self.quick)
        else:  # perhaps the quick engine did not even see them
            features = np.empty((self._rows, self.feature_dim), np.float32)
        for at, exact in self._exact_features.items():
            features[at] = exact
        return features

    def close(self) -> None:
        self.quick.close()
        self.exact.close()


def first_look(engine: Engine) -> Engine:
    """What runs every row of an engine's batches, whose cost depends on the number of rows alone."""
    return engine.quick if isinstance(engine, CloseCalls) else engine


def close_rows(probabilities: Probabilities, margin: float) -> list[int]:
    """Which rows of float32 [n, classes] are close calls: their two likeliest classes' log-probabilities differ by less
    than `margin`. What is no number is none."""
    if probabilities.shape[1] < 2:
        return []
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    close: list[int] = np.flatnonzero(first < second * math.exp(margin)).tolist()
    return close
