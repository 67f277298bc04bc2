"""How many engines share the cores under load, over engines whose speed and opinion are steered."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving_fakes import FakeEngine

from app.engines.base import Engine, Probabilities
from app.engines.factory import EngineOptions
from app.errors import PackageError
from app.repository.store import Package, discover, open_package
from app.serving import proven, selection
from app.serving.curve import GreyRows
from app.serving.measured import MeasuredStore
from app.serving.proven import build_streams
from app.serving.selection import select_engine

MakePackage = Callable[..., Path]


@pytest.fixture
def package(make_package: MakePackage) -> Package:
    return open_package(discover(make_package("colours"))[0])


Steer = Callable[[dict[int, float]], list[int]]


class Steered(FakeEngine):
    """An engine that takes so many seconds, alone or beside others."""

    def __init__(self, seconds: float) -> None:
        super().__init__(lambda marks: time.sleep(seconds), max_batch=1)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Steer:
    """Makes the only engine one that can stream: seconds of a row by the number of streams, 1 is the engine itself."""

    def steer(seconds: dict[int, float]) -> list[int]:
        tried: list[int] = []

        def create_many(*args: object) -> list[Engine]:
            count = args[-1]
            assert isinstance(count, int)
            tried.append(count)
            return [Steered(seconds[count]) for _ in range(count)]

        monkeypatch.setattr(proven, "create_engine", lambda *args: Steered(seconds[1]))
        monkeypatch.setattr(proven, "create_streams", create_many)
        monkeypatch.setattr(proven, "prove", lambda engine, package: None)
        monkeypatch.setattr(selection, "sample_of", lambda package, engine: GreyRows())
        return tried

    return steer


STREAMING = EngineOptions(name="openvino", precision="fp32", threads=8, max_batch=1)


@pytest.mark.parametrize(
    ("seconds", "wanted", "tried", "taken"),
    [
        ({1: 0.02, 2: 0.05}, 0, [2], 0),  # they do less
        ({1: 0.02, 2: 0.035, 4: 0.1}, 0, [2, 4], 2),  # two do more, four less
        ({1: 0.02, 2: 0.03, 4: 0.04, 8: 0.06}, 0, [2, 4, 8], 8),
        ({1: 0.02}, 1, [], 0),  # forbidden
        ({1: 0.02, 3: 0.2}, 3, [3], 3),  # asked for
    ],
)
def test_as_many_streams_are_taken_as_do_most(
    package: Package,
    streams: Steer,
    tmp_path: Path,
    seconds: dict[int, float],
    wanted: int,
    tried: list[int],
    taken: int,
) -> None:
    attempts = streams(seconds)
    for _ in range(2):  # measured, and as kept
        selected = select_engine(package, STREAMING, MeasuredStore(tmp_path), budget_s=1, streams=wanted)
        assert len(selected.streams) == taken
        assert selected.curve.seconds[0] == pytest.approx(seconds[taken or 1], rel=0.5)
        assert attempts == tried
        tried = tried + [taken] * (taken > 0)


@pytest.mark.parametrize(
    "seconds", [{1: 0.02, 2: 0.3}, {1: 0.02, 2: 0.03, 4: 0.3}, {1: 0.02, 2: 0.03, 4: 0.04, 8: 0.3}]
)
def test_streams_that_are_not_taken_are_closed(
    package: Package, streams: Steer, seconds: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams(seconds)
    create_many: Callable[..., list[Engine]] = vars(proven)["create_streams"]
    made: list[Engine] = []

    def note(*args: Any) -> list[Engine]:
        new = create_many(*args)
        made.extend(new)
        return new

    monkeypatch.setattr(proven, "create_streams", note)
    selected = select_engine(package, STREAMING, MeasuredStore(None), budget_s=1, streams=0)
    assert len(made) == sum(seconds) - 1
    assert [each for each in made if isinstance(each, Steered) and not each.closed.is_set()] == selected.streams
    assert isinstance(selected.engine, Steered)
    assert not selected.engine.closed.is_set()


def test_streams_that_cannot_be_built_leave_the_engine_alone(
    package: Package, streams: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams({1: 0.01})

    def fail(*args: object) -> list[Engine]:
        raise PackageError("no memory")

    monkeypatch.setattr(proven, "create_streams", fail)
    selected = select_engine(package, STREAMING, MeasuredStore(None), budget_s=1, streams=0)
    assert selected.streams == []


def doubt_streams(monkeypatch: pytest.MonkeyPatch) -> list[Steered]:
    """The streams that are made from now on, which pass the golden check and are wrong at batches of some size."""
    made: list[Steered] = []

    class Doubts(GreyRows):
        def check(self, engine: Engine, probabilities: Probabilities) -> None:
            if engine in made:
                raise PackageError("disagrees with the reference")

    def create_many(*args: object) -> list[Steered]:
        count = args[-1]
        assert isinstance(count, int)
        new = [Steered(0.01) for _ in range(count)]
        made.extend(new)
        return new

    monkeypatch.setattr(proven, "create_streams", create_many)
    monkeypatch.setattr(selection, "sample_of", lambda package, engine: Doubts())
    return made


def test_streams_that_are_wrong_at_a_batch_size_are_closed_and_leave_the_engine_alone(
    package: Package, streams: Steer, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams({1: 0.01, 2: 0.01})
    made = doubt_streams(monkeypatch)
    selected = select_engine(package, STREAMING, MeasuredStore(None), budget_s=1, streams=0)
    assert selected.streams == []
    assert [each.closed.is_set() for each in made] == [True, True]


def test_kept_streams_that_are_wrong_at_a_batch_size_do_not_serve(
    package: Package, streams: Steer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams({1: 0.01, 2: 0.01})
    store = MeasuredStore(tmp_path)
    assert len(select_engine(package, STREAMING, store, budget_s=1, streams=2).streams) == 2
    made = doubt_streams(monkeypatch)
    assert select_engine(package, STREAMING, store, budget_s=1, streams=2).streams == []
    assert [each.closed.is_set() for each in made] == [True] * 4  # the kept ones, and those that were measured again


def test_a_stream_that_fails_the_golden_check_takes_the_others_with_it(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Steered(0.0) for _ in range(3)]

    def prove(engine: Engine, package: Package) -> None:
        if engine is made[1]:
            raise PackageError("disagrees with the reference")

    monkeypatch.setattr(proven, "create_streams", lambda *args: made)
    monkeypatch.setattr(proven, "prove", prove)
    with pytest.raises(PackageError, match="disagrees"):
        build_streams(package, "openvino", STREAMING, 3)
    assert [each.closed.is_set() for each in made] == [True] * 3
