"""The measured cost of batches: how far the ladder is climbed, which size is worth having, what is predicted."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
from serving_fakes import PATIENCE_S, Clock, FakeEngine, probabilities_of

from app.engines.base import Engine, Probabilities, Rows
from app.errors import EngineOutOfMemory, PackageError
from app.serving.curve import BatchCurve, CostModel, measure_curve, time_one_row, warm_up


class TimedEngine(FakeEngine):
    """Moves the clock by what a batch of its size is said to cost."""

    def __init__(self, clock: Clock, cost: Callable[[int], float], max_batch: int = 64) -> None:
        super().__init__(max_batch=max_batch)
        self.clock = clock
        self.cost = cost
        self.sizes: list[int] = []

    def run(self, rows: Rows) -> Probabilities:
        self.sizes.append(len(rows))
        self.clock.now += self.cost(len(rows))
        return super().run(rows)


def measure(cost: Callable[[int], float], max_batch: int = 64, budget_s: float = 1000.0) -> BatchCurve:
    clock = Clock()
    return measure_curve([TimedEngine(clock, cost, max_batch)], budget_s=budget_s, clock=clock)


def test_where_batching_gains_nothing_one_row_is_a_batch() -> None:
    curve = measure(lambda rows: 0.03 * rows)
    assert curve.useful_rows == 1
    assert curve.rows == (1, 2, 4)  # two sizes that gain nothing end the climb


def test_where_batches_cost_no_more_the_largest_is_worth_having() -> None:
    curve = measure(lambda rows: 0.01)
    assert curve.rows == (1, 2, 4, 8, 16, 32, 64)
    assert curve.useful_rows == 64
    assert curve.seconds[0] == pytest.approx(0.01)


def test_the_smallest_size_within_five_per_cent_of_the_best_is_chosen() -> None:
    seconds = {1: 1.0, 2: 1.0, 4: 4 / 3.9, 8: 8 / 4.0}
    curve = BatchCurve(tuple(seconds), tuple(seconds.values()))
    assert curve.useful_rows == 4


def test_one_slow_size_does_not_end_the_climb() -> None:
    slow_at_two = {1: 0.010, 2: 0.030, 4: 0.016, 8: 0.020}
    assert measure(lambda rows: slow_at_two[rows], max_batch=8).useful_rows == 8


def test_a_size_that_would_not_fit_the_budget_is_not_tried() -> None:
    curve = measure(lambda rows: 1.0 if rows == 1 else 0.9 * rows, budget_s=8.0)
    assert curve.rows == (1,)


def test_a_device_without_room_ends_the_climb() -> None:
    def cost(rows: int) -> float:
        if rows > 4:
            raise EngineOutOfMemory("no room")
        return 0.01

    assert measure(cost).rows == (1, 2, 4)


def test_a_device_without_room_for_a_single_row_is_no_use() -> None:
    def cost(rows: int) -> float:
        raise EngineOutOfMemory("no room")

    with pytest.raises(EngineOutOfMemory):
        measure(cost)


def test_sizes_that_gain_nothing_end_the_climb_in_a_row_alone() -> None:
    costs = {1: 0.010, 2: 0.030, 4: 0.016, 8: 0.040, 16: 0.048, 32: 0.12, 64: 0.30}
    assert measure(lambda rows: costs[rows]).rows == (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("seconds", "budget_s", "runs"),
    [(0.001, 100, 30), (0.02, 100, 5), (0.04, 100, 3), (1.0, 100, 3), (0.02, 0.03, 3)],
)
def test_a_quick_size_is_run_more_often_than_a_slow_one(seconds: float, budget_s: float, runs: int) -> None:
    clock = Clock()
    clock.now = 0.0  # small numbers add up exactly enough
    engine = TimedEngine(clock, lambda rows: seconds, max_batch=1)
    measure_curve([engine], budget_s=budget_s, clock=clock)
    assert len(engine.sizes) == 1 + runs  # the first one warms it up


def test_no_batch_is_believed_to_cost_nothing() -> None:
    assert 0 < measure(lambda rows: 0.0).seconds[0] < 1e-6


class Noted:
    """A sample of rows of one mark, which notes what it is asked about."""

    def __init__(self, wrong_from: int = 1000) -> None:
        self.checked: list[int] = []
        self._wrong_from = wrong_from

    def fill(self, batch: Rows) -> None:
        batch[...] = 5

    def check(self, engine: Engine, probabilities: Probabilities) -> None:
        np.testing.assert_array_equal(probabilities, probabilities_of([5] * len(probabilities)))
        self.checked.append(len(probabilities))
        if len(probabilities) >= self._wrong_from:
            raise PackageError("wrong")


def test_every_size_that_is_measured_or_warmed_up_is_checked() -> None:
    clock, sample = Clock(), Noted()
    engines = [TimedEngine(clock, lambda rows: 0.01, max_batch=4) for _ in range(2)]
    curve = measure_curve(engines, budget_s=100, sample=sample, clock=clock)
    assert sample.checked == [1, 1, 2, 2, 4, 4]
    assert {mark for engine in engines for batch in engine.batches for mark in batch} == {5}
    sample = Noted()
    warm_up(engines[0], curve, sample)
    assert sample.checked == [1, 2, 4]
    with pytest.raises(PackageError, match="wrong"):
        measure_curve(engines, budget_s=100, sample=Noted(wrong_from=2), clock=clock)
    with pytest.raises(PackageError, match="wrong"):
        warm_up(engines[0], curve, Noted(wrong_from=4))


def test_engines_that_serve_side_by_side_are_measured_while_all_run() -> None:
    together = threading.Barrier(3)
    engines = [FakeEngine(lambda marks: void(together.wait(PATIENCE_S)), max_batch=2) for _ in range(3)]
    assert measure_curve(engines, budget_s=100).rows == (1, 2)
    assert time_one_row(engines) > 0


def void(value: object) -> None:
    """For what is called and says something that nobody wants to know."""


def test_one_row_takes_as_long_as_the_quicker_of_two_runs() -> None:
    clock = Clock()
    costs = iter([0.5, 0.2])
    assert time_one_row([TimedEngine(clock, lambda rows: next(costs))], clock=clock) == pytest.approx(0.2)


def test_the_fastest_of_several_runs_counts() -> None:
    clock = Clock()
    disturbed = iter([9.0, 0.5, 0.02, 0.4] + [0.3] * 100)
    engine = TimedEngine(clock, lambda rows: next(disturbed), max_batch=1)
    assert measure_curve([engine], budget_s=100, clock=clock).seconds[0] == pytest.approx(0.02)


def test_warming_up_runs_the_sizes_that_will_be_used_and_no_others() -> None:
    engine = FakeEngine()
    warm_up(engine, BatchCurve((1, 2, 4, 8), (1.0, 1.0, 1.0, 2.0)))
    assert [len(batch) for batch in engine.batches] == [1, 2, 4]
    nothing_gained = BatchCurve((1, 2, 4), (0.01, 0.02, 0.04))
    for max_batch, sizes in ((8, [1, 2, 4]), (2, [1, 2])):  # a deep queue is taken in the larger ones
        engine = FakeEngine(max_batch=max_batch)
        warm_up(engine, nothing_gained)
        assert [len(batch) for batch in engine.batches] == sizes


def test_warming_up_ends_where_there_is_no_room_unless_that_is_a_single_row() -> None:
    def full_beyond(rows: int) -> FakeEngine:
        def run(marks: list[int]) -> None:
            if len(marks) > rows:
                raise EngineOutOfMemory("no room")

        return FakeEngine(run)

    engine = full_beyond(2)
    warm_up(engine, BatchCurve((1, 2, 4, 8), (1.0, 1.0, 1.0, 1.0)))
    assert [len(batch) for batch in engine.batches] == [1, 2, 4]
    with pytest.raises(EngineOutOfMemory):
        warm_up(full_beyond(0), BatchCurve((1, 2), (1.0, 1.0)))


def test_waiting_time_is_predicted_from_full_batches_and_the_rest() -> None:
    curve = BatchCurve((1, 2, 4), (0.010, 0.012, 0.016))
    assert curve.useful_rows == 4
    assert curve.batch_s(3) == pytest.approx(0.014)
    assert curve.predict_s(0) == 0
    assert curve.predict_s(9) == pytest.approx(2 * 0.016 + 0.010)
    assert curve.predict_s(2) == pytest.approx(0.012)
    assert curve.predict_s(-3) == curve.batch_s(-3) == 0
    assert BatchCurve((1, 5), (0.01, 0.05)).batch_s(2) == pytest.approx(0.02)
    assert curve.batch_s(8) == pytest.approx(0.032)


def test_what_is_observed_corrects_the_prediction_slowly_and_within_bounds() -> None:
    cost = CostModel(BatchCurve((1,), (0.01,)))
    for _ in range(500):
        cost.observe(1, 0.03)
    assert cost.predict_s(10) == pytest.approx(0.3, rel=0.01)
    cost.observe(1, 3600.0)
    assert cost.predict_s(1) < 0.04
    assert cost.batch_s(1) == cost.predict_s(1) == 0.01 * cost.correction
    for _ in range(500):
        cost.observe(1, 0.01)
    assert cost.predict_s(1) == pytest.approx(0.01, rel=0.01)
    for _ in range(1000):
        cost.observe(1, 1e-9)
    assert cost.correction == pytest.approx(1 / 16)
    cost.follow(3.0)
    assert cost.batch_s(1) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [((2,), (1.0,)), ((1, 1), (1.0, 1.0)), ((1,), ()), ((1,), (0.0,)), ((1,), (math.inf,)), ((), ())],
)
def test_a_curve_that_makes_no_sense_is_refused(rows: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="batch"):
        BatchCurve(rows, seconds)


@pytest.mark.parametrize(
    ("rows", "seconds", "useful", "deep"),
    [
        ((1, 2, 4), (0.03, 0.06, 0.121), 1, 4),  # nothing gained, nothing lost
        ((1, 2, 4, 8), (0.03, 0.06, 0.12, 0.24), 1, 4),  # eight would keep an urgent row waiting
        ((1, 2, 4), (0.03, 0.06, 0.2), 1, 2),  # four are slower each
        ((1, 2), (0.075, 0.15), 1, 2),
        ((1, 2), (2.0, 3.0), 2, 2),  # what is useful is taken however long it takes
    ],
)
def test_a_deep_queue_is_taken_in_the_largest_batches_that_cost_nothing(
    rows: tuple[int, ...], seconds: tuple[float, ...], useful: int, deep: int
) -> None:
    curve = BatchCurve(rows, seconds)
    assert (curve.useful_rows, curve.deep_rows) == (useful, deep)


@pytest.mark.parametrize(("waiting", "taken"), [(0, 0), (1, 0), (2, 1), (7, 2), (130, 64), (150, 64), (600, 128)])
def test_of_a_deep_queue_a_measured_size_is_taken_that_leaves_half(waiting: int, taken: int) -> None:
    sizes = (1, 2, 4, 8, 16, 32, 64, 128)
    curve = BatchCurve(sizes, tuple(0.001 * rows for rows in sizes))
    assert curve.deep_rows == 128
    assert curve.deep_rows_of(waiting, waiting) == taken
    assert curve.deep_rows_of(1000, taken) == taken
