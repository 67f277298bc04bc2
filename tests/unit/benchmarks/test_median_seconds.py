"""How a benchmark times what it runs, by a clock that only the runs move."""

from types import SimpleNamespace

import pytest

from benchmarks import results
from benchmarks.results import median_seconds


class Runs:
    """Take the given times, one after the other."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.now_s = 0.0
        self.done = 0

    def __call__(self) -> None:
        self.now_s += self.seconds[self.done]
        self.done += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    time = SimpleNamespace(perf_counter=lambda: 0.0)
    monkeypatch.setattr(results, "time", time)
    return time


def test_one_slow_run_among_others_does_not_count(clock: SimpleNamespace) -> None:
    run = Runs(0.0, 1.0, 3.0, 100.0)
    clock.perf_counter = lambda: run.now_s
    assert median_seconds(run, 0.0) == 3.0


def test_what_warms_up_does_not_count(clock: SimpleNamespace) -> None:
    run = Runs(50.0, 60.0, 70.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    clock.perf_counter = lambda: run.now_s
    assert median_seconds(run, 0.0, least=5, warming=3) == 3.0
    assert run.done == 8


def test_it_lasts_as_long_as_was_asked_and_as_few_runs_as_allowed(clock: SimpleNamespace) -> None:
    run = Runs(*[1.0] * 30)
    clock.perf_counter = lambda: run.now_s
    median_seconds(run, 10.0, least=3, warming=1)
    assert run.done == 11
    median_seconds(run, 1.0, least=3, warming=0)
    assert run.done == 14
