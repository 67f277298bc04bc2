"""An engine that answers without running the model, to measure the server alone. Its answers mean nothing."""

from __future__ import annotations

import numpy as np

from app.engines.base import EngineInfo, Probabilities, Rows


class NoopEngine:
    """Names a class by a checksum of a few pixels, so that the same row always gets the same answer."""

    def __init__(self, row_shape: tuple[int, ...], classes: int, max_batch: int) -> None:
        self.info = EngineInfo("noop", "fp32", "cpu", "NO MODEL IS RUN: the answers mean nothing")
        self.row_shape = row_shape
        self.classes = classes
        self.max_batch = max_batch
        # A spread of pixels: touching every byte would cost what is to be left out.
        self._step = max(1, int(np.prod(row_shape)) // 64)

    def empty_rows(self, n: int) -> Rows:
        return np.empty((n, *self.row_shape), np.uint8)

    def run(self, rows: Rows) -> Probabilities:
        n = len(rows)
        checksum = rows.reshape(n, -1)[:, :: self._step].sum(axis=1, dtype=np.int64)
        probabilities = np.full((n, self.classes), 0.5 / self.classes, np.float32)
        probabilities[np.arange(n), checksum % self.classes] += np.float32(0.5)
        return probabilities

    def close(self) -> None:
        """Nothing is held."""
