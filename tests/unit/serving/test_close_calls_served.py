"""Close calls in front of a real batcher and engine thread: answered rightly, and counted."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from serving_fakes import (
    CLASSES,
    PATIENCE_S,
    FakeEngine,
    Gate,
    Listener,
    classes_of,
    deliver_here,
    flat_curve,
    marks_of,
    probabilities_of,
    rows_of,
)

from app.engines.base import Engine, Probabilities, Rows
from app.engines.close_calls import CloseCalls
from app.errors import EngineError
from app.serving.batcher import Batcher
from app.serving.curve import CostModel
from app.serving.instance import Instance
from app.serving.observer import SilentObserver
from app.serving.submission import Terms

UNSURE = 50  # from this mark on the quick engine prefers the class before the right one, and by very little


class Unsure(FakeEngine):
    def run(self, rows: Rows) -> Probabilities:
        answers = super().run(rows)
        for at, mark in enumerate(marks_of(rows)):
            if mark >= UNSURE:
                answers[at] = 0.05
                answers[at, (mark - 1) % CLASSES] = 0.38
                answers[at, mark % CLASSES] = 0.37
        return answers


class Exact(FakeEngine):
    def run(self, rows: Rows) -> Probabilities:
        super().run(rows)
        return probabilities_of(marks_of(rows))

    def twin(self) -> Exact:
        return Exact()


class Counted(SilentObserver):
    def __init__(self) -> None:
        self.again: list[int] = []

    def close_calls(self, model: str, rows: int) -> None:
        assert model == "model"
        self.again.append(rows)


class Surer(Exact):
    """Like the quick engine, and a little surer, so that its answers can be told apart."""

    def run(self, rows: Rows) -> Probabilities:
        return surer(super().run(rows))


def surer(probabilities: Probabilities) -> Probabilities:
    squares = probabilities**2
    answer: Probabilities = squares / squares.sum(axis=1, keepdims=True)
    return answer


@pytest.fixture
def views() -> Iterator[Views]:
    views = Views()
    yield views
    views.instance.stop()
    assert views.instance.join(PATIENCE_S)


class Views:
    """An engine in front of which no single row is a close call, in batches of at most `useful` rows."""

    def __init__(self, useful: int = 8) -> None:
        self.quick, self.exact, self.observer = FakeEngine(), Surer(), Counted()
        self.batcher = Batcher(max_rows=100, deliver=deliver_here, predict_s=lambda rows: 0.0)
        self.instance = self.start(CloseCalls(self.quick, self.exact, 0.2), useful)

    def start(self, engine: Engine, useful: int) -> Instance:
        cost = CostModel(flat_curve(useful))
        instance = Instance("model", engine, self.batcher, cost, self.observer, prove=lambda engine: None)
        instance.start()
        return instance

    def answers(self, *marks: int, averaged: bool = True) -> Probabilities:
        self.batcher.submit(rows_of(*marks), Terms(math.inf, averaged=averaged), listener := Listener())
        inference = listener.inference()
        assert listener.released.wait(PATIENCE_S)
        assert listener.releases == 1
        assert 0 <= inference.queue_s <= inference.inference_s + inference.queue_s < PATIENCE_S
        return inference.probabilities


def test_views_whose_mean_is_a_close_call_are_all_answered_exactly(views: Views) -> None:
    np.testing.assert_array_equal(views.answers(1, 2), surer(probabilities_of([1, 2])))
    assert (views.quick.batches, views.exact.batches) == ([[1, 2]], [[1], [2]])
    assert views.observer.again == [2]


def test_views_that_agree_are_answered_by_what_is_quick(views: Views) -> None:
    np.testing.assert_array_equal(views.answers(1, 2, 1), probabilities_of([1, 2, 1]))
    assert views.exact.batches == []


def test_rows_that_stand_for_themselves_have_no_mean(views: Views) -> None:
    np.testing.assert_array_equal(views.answers(1, 2, averaged=False), probabilities_of([1, 2]))
    assert views.exact.batches == []


def test_views_in_several_batches_are_decided_together() -> None:
    views = Views(useful=2)
    np.testing.assert_array_equal(views.answers(1, 2, 3, 4, 5), surer(probabilities_of([1, 2, 3, 4, 5])))
    assert [len(batch) for batch in views.quick.batches] == [2, 2, 1]
    assert views.exact.batches == [[1], [2], [3], [4], [5]]
    views.instance.stop()
    assert views.instance.join(PATIENCE_S)


def test_an_engine_that_cannot_decide_better_is_not_asked_again() -> None:
    batcher = Batcher(max_rows=100, deliver=deliver_here, predict_s=lambda rows: 0.0)
    engine = FakeEngine()
    instance = Instance("model", engine, batcher, CostModel(flat_curve(8)), SilentObserver(), prove=lambda engine: None)
    instance.start()
    batcher.submit(rows_of(1, 2), Terms(math.inf, averaged=True), listener := Listener())
    assert classes_of(listener.inference()) == [1, 2]
    instance.stop()
    assert instance.join(PATIENCE_S)
    assert engine.batches == [[1, 2]]


@pytest.mark.parametrize("fails", [False, True])
def test_rows_that_are_run_again_get_the_exact_answer_and_are_counted_unless_it_fails(fails: bool) -> None:
    def before_run(marks: list[int]) -> None:
        if fails:
            raise EngineError("no luck")

    gate = Gate()
    quick, exact, observer = Unsure(gate), Exact(before_run), Counted()
    batcher = Batcher(max_rows=100, deliver=deliver_here, predict_s=lambda rows: 0.0)
    engine = CloseCalls(quick, exact, 0.2)
    instance = Instance("model", engine, batcher, CostModel(flat_curve(8)), observer, prove=lambda engine: None)
    instance.start()
    listeners = [Listener() for _ in range(5)]
    marks = [1, UNSURE + 1, 2, UNSURE + 2, 3]
    batcher.submit(rows_of(0), Terms(math.inf), first := Listener())
    gate.wait_entered()
    for mark, listener in zip(marks, listeners, strict=True):
        batcher.submit(rows_of(mark), Terms(math.inf), listener)
    gate.open()
    assert classes_of(first.inference()) == [0]
    for mark, listener in zip(marks, listeners, strict=True):
        if fails and mark >= UNSURE:
            assert "no luck" in str(listener.error())
        else:
            assert classes_of(listener.inference()) == [mark % CLASSES]
    instance.stop()
    assert instance.join(PATIENCE_S)
    batcher.close()
    assert quick.batches[:2] == [[0], marks]
    assert observer.again == ([] if fails else [2])
    assert quick.closed.is_set()
    assert exact.closed.is_set()
