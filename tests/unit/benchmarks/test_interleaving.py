"""In which order the rounds of a comparison run, and what is kept of one that fails."""

import contextlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.errors import Unavailable
from app.load.generator import Samples, Workload
from benchmarks import rounds
from benchmarks.contenders import Contender
from benchmarks.rounds import Load, Measured, interleave, throughputs

LOADS = [Load(1, 2.0, 0.5), Load(16, 4.0, 0.5)]
Compare = Callable[..., dict[str, Measured]]


@pytest.fixture
def started() -> list[str]:
    """The contenders by the order of their starts."""
    return []


@pytest.fixture
def compare(started: list[str], monkeypatch: pytest.MonkeyPatch) -> Compare:
    """`compare(failing)`: three rounds of a, b and c. In the second, those named in `failing` fail with so many
    connections (0: when they are started)."""
    asked: dict[str, int] = {}

    @contextlib.contextmanager
    def start(contender: Contender) -> Iterator[SimpleNamespace]:
        started.append(contender.name)
        if asked.get(contender.name) == 0 and started.count(contender.name) == 2:
            raise Unavailable("did not start")
        yield SimpleNamespace(ready_s=1.5, url="http://127.0.0.1:8000")

    def run_isolated(workload: Workload, progress: object) -> Samples:
        now = started[-1]
        if asked.get(now) == workload.connections and started.count(now) == 2:
            raise Unavailable("went away")
        answered = round(workload.seconds) * workload.connections
        times = array("d", [0.01] * answered)
        return Samples(array("h", [200] * answered), times, times, [b""] * answered, seconds=workload.seconds)

    monkeypatch.setattr(Contender, "start", start)
    monkeypatch.setattr(rounds, "run_isolated", run_isolated)

    def call(
        failing: dict[str, int] | None = None, between: Callable[[int], None] | None = None
    ) -> dict[str, Measured]:
        asked.update(failing or {})
        contenders = [Contender(name, (), lambda target, file: b"x", "/") for name in "abc"]
        return interleave(contenders, LOADS, Path("photo.jpg"), 3, between)

    return call


def test_the_order_rotates_so_that_nobody_is_always_first(compare: Compare, started: list[str]) -> None:
    between: list[tuple[int, int]] = []
    measured = compare(between=lambda number: between.append((number, len(started))))
    assert ["".join(started[at : at + 3]) for at in (0, 3, 6)] == ["abc", "bca", "cab"]
    assert between == [(0, 0), (1, 3), (2, 6)]
    assert [throughputs(measured[name], 16) for name in "abc"] == [[16.0] * 3] * 3
    assert measured["a"].ready_s == [1.5] * 3


@pytest.mark.parametrize(("fails_at", "alone", "crowded"), [(0, None, None), (1, None, None), (16, 1.0, None)])
def test_a_round_that_fails_leaves_a_gap_in_its_place_and_the_others_go_on(
    compare: Compare, fails_at: int, alone: float | None, crowded: float | None
) -> None:
    measured = compare({"b": fails_at})
    assert throughputs(measured["b"], 1) == [1.0, alone, 1.0]
    assert throughputs(measured["b"], 16) == [16.0, crowded, 16.0]
    assert measured["b"].faults == ["did not start" if fails_at == 0 else "went away"]
    assert [throughputs(measured[name], 16) for name in "ac"] == [[16.0] * 3] * 2
    assert [measured[name].faults for name in "ac"] == [[], []]
