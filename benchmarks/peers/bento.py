# mypy: ignore-errors
"""BentoML, with its adaptive batching: `bentoml serve benchmarks.peers.bento:Hiera`."""

from pathlib import Path

import bentoml
import numpy as np

from benchmarks.peers.model import ENGINE, MAX_BATCH, answer, load_model, preprocess


@bentoml.service(workers=2 if ENGINE == "noop" else 1, traffic={"timeout": 60})
class Hiera:
    def __init__(self):
        self.model = load_model()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=30_000)
    def classify(self, files: list[Path]) -> list[dict]:
        rows = np.stack([preprocess(file.read_bytes()) for file in files])
        return [answer(row) for row in self.model(rows)]
