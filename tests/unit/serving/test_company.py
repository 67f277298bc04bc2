"""Which engine a batch runs on when several share the cores."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from serving_fakes import (
    PATIENCE_S,
    Clock,
    FeaturesEngine,
    Gate,
    Listener,
    classes_of,
    deliver_here,
    fake_features,
    flat_curve,
    rows_of,
)

from app.errors import EngineError
from app.serving.batcher import Batcher
from app.serving.company import Company
from app.serving.curve import CostModel
from app.serving.instance import Instance
from app.serving.observer import SilentObserver
from app.serving.submission import Terms


class Streams:
    """Two instances, each with a stream of its own, and the engine that has all cores."""

    def __init__(self) -> None:
        self.gate, self.clock = Gate(), Clock()
        self.whole, self.streams = FeaturesEngine(self.gate), [FeaturesEngine(self.gate) for _ in range(2)]
        self.company = Company(self.whole)
        self.batcher = Batcher(max_rows=100, deliver=deliver_here, predict_s=lambda rows: 0.0)
        self.cost = CostModel(flat_curve(1))
        self.instances = [
            Instance(
                "model",
                stream,
                self.batcher,
                self.cost,
                SilentObserver(),
                prove=lambda engine: None,
                company=self.company,
                clock=self.clock,
            )
            for stream in self.streams
        ]
        for instance in self.instances:
            instance.start()

    def submit(self, mark: int, *, with_features: bool = False) -> Listener:
        listener = Listener()
        self.batcher.submit(rows_of(mark), Terms(math.inf, with_features=with_features), listener)
        return listener

    @property
    def streamed(self) -> list[list[int]]:
        return sorted(batch for stream in self.streams for batch in stream.batches)

    def close(self) -> None:
        self.gate.open()
        for instance in self.instances:
            instance.stop()
        assert all(instance.join(PATIENCE_S) for instance in self.instances)
        self.company.close()


@pytest.fixture
def streams() -> Iterator[Streams]:
    streams = Streams()
    yield streams
    streams.close()


def test_a_row_that_comes_alone_has_all_cores(streams: Streams) -> None:
    streams.gate.open()
    assert [classes_of(streams.submit(mark).inference()) for mark in (1, 2, 3)] == [[1], [2], [3]]
    assert streams.whole.batches == [[1], [2], [3]]
    assert streams.streamed == []


def test_a_row_that_comes_beside_another_has_a_stream(streams: Streams) -> None:
    first = streams.submit(1)
    streams.gate.wait_entered()
    second = streams.submit(2)
    streams.gate.wait_entered()
    streams.gate.open()
    assert [classes_of(each.inference()) for each in (first, second)] == [[1], [2]]
    assert (streams.whole.batches, streams.streamed) == ([[1]], [[2]])


def test_features_are_those_of_the_engine_that_ran_the_batch(streams: Streams) -> None:
    first = streams.submit(1, with_features=True)
    streams.gate.wait_entered()  # on the whole
    second = streams.submit(2, with_features=True)
    streams.gate.wait_entered()  # on a stream
    streams.gate.open()
    np.testing.assert_array_equal(first.inference().features, fake_features([1]))
    np.testing.assert_array_equal(second.inference().features, fake_features([2]))
    assert streams.whole.fetched == [[1]]
    assert sorted(stream.fetched for stream in streams.streams) == [[], [[2]]]


def test_under_load_only_streams_work(streams: Streams) -> None:
    listeners = [streams.submit(1)]
    streams.gate.wait_entered()  # on the whole
    listeners += [streams.submit(mark) for mark in (2, 3, 4, 5)]
    streams.gate.wait_entered()  # on a stream; three more wait
    streams.gate.open()
    for listener in listeners:
        listener.inference()
    # The last of them may come alone again.
    assert streams.whole.batches in ([[1]], [[1], [5]])
    assert streams.streamed[:3] == [[2], [3], [4]]


def test_only_what_streams_do_corrects_their_curve(streams: Streams) -> None:
    streams.gate.open()
    streams.submit(1).inference()
    assert streams.cost.correction == 1.0


@pytest.mark.parametrize(("curves", "left"), [(0.5, 1.0), (2.0, 2.0), (9.0, 4.0)])
def test_what_a_busy_time_has_left_in_the_correction_fades_by_what_runs_alone(
    streams: Streams, curves: float, left: float
) -> None:
    def take_its_time(marks: list[int]) -> None:
        streams.clock.now += curves * streams.cost.curve.batch_s(len(marks))

    streams.whole.before_run = take_its_time
    streams.cost.follow(4.0)
    for _ in range(400):
        streams.submit(1).inference()
    assert streams.cost.correction == pytest.approx(left, rel=0.01)
    assert streams.streamed == []


def test_the_whole_is_lent_to_a_batch_that_leaves_nothing_waiting_and_to_nobody_once_it_is_closed() -> None:
    whole, stream = FeaturesEngine(), FeaturesEngine()
    company = Company(whole)
    with company.engine_for(stream, waiting=1) as engine:
        assert engine is stream
    for _ in range(2):  # it is free again after each
        with company.engine_for(stream, waiting=0) as engine:
            assert engine is whole
    company.close()
    assert whole.closed.is_set()
    whole.closed.clear()
    with company.engine_for(stream, waiting=0) as engine:
        assert engine is stream
    company.close()
    assert not whole.closed.is_set(), "closed twice"


def test_a_whole_that_fails_is_not_used_again_and_its_rows_are_answered() -> None:
    streams = Streams()
    streams.gate.open()

    def fail(marks: list[int]) -> None:
        raise EngineError("broken")

    streams.whole.before_run = fail
    assert [classes_of(streams.submit(mark).inference()) for mark in (1, 2)] == [[1], [2]]
    assert (streams.whole.batches, streams.streamed) == ([[1]], [[1], [2]])
    assert streams.whole.closed.is_set()
    streams.close()


def test_a_whole_that_hangs_is_left_alone() -> None:
    streams = Streams()
    stuck = streams.submit(1)
    streams.gate.wait_entered()
    streams.company.close()
    assert not streams.whole.closed.is_set()
    streams.close()
    assert classes_of(stuck.inference()) == [1]
