"""Close calls in front of a real batcher and engine thread: answered rightly, and counted."""

from __future__ import annotations

import math

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

from app.engines.base import Probabilities, Rows
from app.engines.close_calls import CloseCalls
from app.errors import EngineError
from app.serving.batcher import Batcher
from app.serving.curve import CostModel
from app.serving.instance import Instance
from app.serving.observer import SilentObserver

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
    batcher.submit(rows_of(0), math.inf, first := Listener())
    gate.wait_entered()
    for mark, listener in zip(marks, listeners, strict=True):
        batcher.submit(rows_of(mark), math.inf, listener)
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
