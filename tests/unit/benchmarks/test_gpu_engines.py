"""How the GPU benchmark drives an engine, and what it gives a server to serve."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.engines.base import EngineInfo, Probabilities, Rows
from app.engines.noop import NoopEngine
from app.repository.store import discover, open_package
from benchmarks import gpu_contenders
from benchmarks.gpu_contenders import engine_rates, seconds_of_a_batch
from benchmarks.gpu_jobs import Job
from benchmarks.gpu_packages import repository_of_one


class Staging(NoopEngine):
    """Knows which rows were staged, and asserts that a batch that is run is staged, and one more."""

    def __init__(self, device: str) -> None:
        super().__init__((2, 2, 3), 5, 8)
        self.info = EngineInfo("noop", "fp32", device)
        self.staged: list[int] = []
        self.ahead: list[int] = []

    def stage(self, rows: Rows) -> None:
        assert rows.ctypes.data not in self.staged, "its buffer may still be read"
        self.staged.append(rows.ctypes.data)

    def run(self, rows: Rows) -> Probabilities:
        if rows.ctypes.data in self.staged:
            self.staged.remove(rows.ctypes.data)
            self.ahead.append(len(self.staged))
        return np.zeros((len(rows), self.classes), np.float32)


def test_the_next_batch_is_staged_while_one_runs() -> None:
    engine = Staging("cuda:0")
    assert seconds_of_a_batch(engine, 4, 0.01) > 0
    *ahead, last = engine.ahead
    assert set(ahead) == {1}
    assert last == 0
    assert engine.staged == []  # it would keep its place in the engine


def test_nothing_is_staged_for_a_cpu() -> None:
    engine = Staging("cpu")
    assert seconds_of_a_batch(engine, 4, 0.01) > 0
    assert engine.ahead == []


def test_rates_are_rows_by_the_time_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Staging("cpu")
    monkeypatch.setattr(gpu_contenders, "prepare", lambda job: None)
    monkeypatch.setattr(gpu_contenders, "open_contender", lambda job, package: engine)
    monkeypatch.setattr(gpu_contenders, "seconds_of_a_batch", lambda engine, batch, seconds: 0.25 * (1 + batch))
    monkeypatch.setattr(gpu_contenders, "median_seconds", lambda run, seconds, **bounds: 0.5)
    measured = engine_rates(Job("rates", "noop fp32", "tiny", "cpu", "nowhere", (1, 4), 0.1))
    assert measured == {"rates": {1: 2.0, 4: 3.2}, "one_row_ms": 500.0, "detail": engine.info.detail}


def test_a_server_is_given_one_package_of_many(make_package: Callable[..., Path]) -> None:
    make_package("other")
    everything = discover(make_package("one"))
    package = open_package(everything[0])
    with repository_of_one(package) as repository:
        (found,) = discover(repository)
        assert open_package(found).fingerprint == package.fingerprint
    assert [open_package(each).manifest.name for each in everything] == ["one", "other"]
