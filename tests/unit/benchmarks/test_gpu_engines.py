"""How the GPU benchmark drives an engine, and what it gives a server to serve."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.engines.base import EngineInfo, Probabilities, Rows
from app.engines.noop import NoopEngine
from app.repository.store import discover, open_package
from benchmarks.gpu_contenders import seconds_of_a_batch
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


def test_a_server_is_given_one_package_of_many(make_package: Callable[..., Path]) -> None:
    make_package("other")
    everything = discover(make_package("one"))
    package = open_package(everything[0])
    with repository_of_one(package) as repository:
        (found,) = discover(repository)
        assert open_package(found).fingerprint == package.fingerprint
    assert [open_package(each).manifest.name for each in everything] == ["one", "other"]
