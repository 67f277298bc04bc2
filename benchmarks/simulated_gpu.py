"""The server around an engine that only waits, as long as a GPU would compute: to see what the host does meanwhile.

    python -m benchmarks.simulated_gpu run          # as `hiera-serve run`, with HIERA_ENGINE=noop

Batches form, are gathered ahead and go through the same threads as in front of a GPU. A batch takes
`SIMULATED_BATCH_MS` (20), whatever its size.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

from app import cli
from app.engines import factory
from app.engines.base import Probabilities, Rows
from app.engines.noop import NoopEngine


class SimulatedGpu(NoopEngine):
    """Answers as the no-op engine does, late. It says that it is no CPU, so that batches are gathered ahead."""

    def __init__(self, row_shape: tuple[int, ...], classes: int, max_batch: int) -> None:
        super().__init__(row_shape, classes, max_batch)
        self.info = replace(self.info, device="simulated")
        self._batch_s = float(os.environ.get("SIMULATED_BATCH_MS", "20")) / 1000

    def run(self, rows: Rows) -> Probabilities:
        until_s = time.perf_counter() + self._batch_s
        probabilities = super().run(rows)
        time.sleep(max(0.0, until_s - time.perf_counter()))  # without the interpreter, as a GPU's
        return probabilities


if __name__ == "__main__":
    vars(factory)["NoopEngine"] = SimulatedGpu  # where the factory looks it up
    sys.exit(cli.main())
