"""How the GPU benchmark drives an engine, and what it gives a server to serve."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.engines.base import EngineInfo, Probabilities, Rows
from app.engines.noop import NoopEngine
from app.errors import EngineError, EngineOutOfMemory
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


def failing_from(monkeypatch: pytest.MonkeyPatch, size: int) -> Job:
    """A job of an engine that has no room from this batch size on, and does not even end well."""
    engine = Staging("cpu")

    def broken() -> None:
        raise EngineError("the card is gone")

    def seconds(engine: Staging, batch: int, seconds: float) -> float:
        if batch >= size:
            monkeypatch.setattr(engine, "close", broken)
            raise EngineOutOfMemory("no room\nfor it")
        return 1.0

    monkeypatch.setattr(gpu_contenders, "prepare", lambda job: None)
    monkeypatch.setattr(gpu_contenders, "open_contender", lambda job, package: engine)
    monkeypatch.setattr(gpu_contenders, "seconds_of_a_batch", seconds)
    monkeypatch.setattr(gpu_contenders, "median_seconds", lambda run, seconds, **bounds: 0.5)
    return Job("rates", "noop fp32", "tiny", "cpu", "nowhere", (1, 4, 8, 16), 0.1)


def test_a_batch_size_that_fails_ends_the_ladder_and_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = engine_rates(failing_from(monkeypatch, 8))
    assert measured["rates"] == {1: 1.0, 4: 4.0}
    assert measured["stopped"] == "batch 8: EngineOutOfMemory: no room for it"


def test_rates_of_which_nothing_was_measured_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineOutOfMemory):
        engine_rates(failing_from(monkeypatch, 1))


def test_a_server_is_given_one_package_of_many(make_package: Callable[..., Path]) -> None:
    make_package("other")
    everything = discover(make_package("one"))
    package = open_package(everything[0])
    with repository_of_one(package) as repository:
        (found,) = discover(repository)
        assert open_package(found).fingerprint == package.fingerprint
    assert [open_package(each).manifest.name for each in everything] == ["one", "other"]
