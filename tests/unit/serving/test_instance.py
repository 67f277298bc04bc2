"""An engine's thread: batches, halves, ceilings, death. The batcher and the thread are real, the engine is steered."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from serving_fakes import (
    PATIENCE_S,
    FakeEngine,
    FeaturesEngine,
    Gate,
    Listener,
    classes_of,
    deliver_here,
    fake_features,
    flat_curve,
    probabilities_of,
    rows_of,
)

from app.engines.base import Engine, Features, Probabilities, Rows
from app.errors import EngineError, EngineOutOfMemory, PackageError
from app.serving.batcher import Batcher
from app.serving.curve import BatchCurve, CostModel
from app.serving.instance import Instance
from app.serving.observer import SilentObserver
from app.serving.submission import Slice, Terms

FAR = math.inf


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(max_rows=1000, deliver=deliver_here, predict_s=lambda rows: 0.0)
    yield batcher
    batcher.close()


Start = Callable[..., Instance]


@pytest.fixture
def start(batcher: Batcher) -> Iterator[Start]:
    started: list[Instance] = []

    def start(engine: Engine, *, useful: int = 8, prove: Callable[[Engine], object] = lambda engine: None) -> Instance:
        instance = Instance("model", engine, batcher, CostModel(flat_curve(useful)), SilentObserver(), prove=prove)
        instance.start()
        started.append(instance)
        return instance

    yield start
    for instance in started:
        instance.stop()
    for instance in started:
        assert instance.join(PATIENCE_S)


def submit(batcher: Batcher, *marks: int, with_features: bool = False) -> Listener:
    listener = Listener()
    batcher.submit(rows_of(*marks), Terms(FAR, with_features=with_features), listener)
    return listener


def fill_behind_gate(batcher: Batcher, gate: Gate, *marks: int) -> list[Listener]:
    """Stop the engine in a run of its own, then queue one request for each mark, so that they form one batch."""
    first = submit(batcher, 100)
    gate.wait_entered()
    listeners = [submit(batcher, mark) for mark in marks]
    gate.open()
    first.settled.wait(PATIENCE_S)
    return listeners


def test_one_request_alone_runs_at_once(batcher: Batcher, start: Start) -> None:
    engine = FakeEngine()
    start(engine)
    listener = submit(batcher, 3)
    inference = listener.inference()
    assert classes_of(inference) == [3]
    assert (engine.batches, inference.batch_rows) == ([[3]], 1)


def test_the_next_batch_fills_while_one_runs(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    engine = FakeEngine(gate)
    start(engine)
    listeners = fill_behind_gate(batcher, gate, 1, 2, 3, 4, 5)
    assert [classes_of(each.inference()) for each in listeners] == [[1], [2], [3], [4], [5]]
    assert engine.batches == [[100], [1, 2, 3, 4, 5]]
    assert listeners[0].inference().batch_rows == 5


def test_no_batch_is_larger_than_the_useful_size(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    engine = FakeEngine(gate)
    start(engine, useful=2)
    for listener in fill_behind_gate(batcher, gate, 1, 2, 3):
        listener.inference()
    assert engine.batches == [[100], [1, 2], [3]]


def features_of_each(listeners: list[Listener]) -> list[list[int] | None]:
    """The marks of the rows that each was given the features of; None who was given none."""
    found: list[list[int] | None] = []
    for listener in listeners:
        features = listener.inference().features
        if features is None:
            found.append(None)
        else:
            marks = [int(mark) for mark in features[:, 0]]
            np.testing.assert_array_equal(features, fake_features(marks))
            found.append(marks)
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_features_are_fetched_once_for_a_batch_and_come_to_those_who_asked(
    batcher: Batcher, start: Start, device: str
) -> None:
    gate = Gate()
    engine = FeaturesEngine(gate, device=device)
    start(engine)
    first = submit(batcher, 100)
    gate.wait_entered()
    asks = [False, True, True, False]
    listeners = [submit(batcher, 2 * at, 2 * at + 1, with_features=wanted) for at, wanted in enumerate(asks)]
    gate.open()
    assert features_of_each([first, *listeners]) == [None, None, [2, 3], [4, 5], None]
    assert engine.fetched == [list(range(8))]


def test_features_that_nobody_asks_for_are_not_fetched(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    engine = FeaturesEngine(gate)
    start(engine)
    assert features_of_each(fill_behind_gate(batcher, gate, 1, 2, 3)) == [None] * 3
    assert engine.batches == [[100], [1, 2, 3]]
    assert engine.fetched == []


def test_the_features_of_a_request_larger_than_a_batch_come_whole(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    engine = FeaturesEngine(gate)
    start(engine, useful=2)
    listeners = [submit(batcher, 100)]
    gate.wait_entered()
    listeners += [submit(batcher, 1), submit(batcher, 2, 3, 4, 5, with_features=True), submit(batcher, 6, 7)]
    gate.open()
    assert features_of_each(listeners) == [None, None, [2, 3, 4, 5], None]
    assert engine.fetched == [[1, 2], [3, 4], [5, 6]]  # and not of the batch without a row of it


def test_a_batch_that_is_run_again_by_halves_brings_the_features_of_each_half(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    engine = FeaturesEngine(gated(gate, poison(4)))
    start(engine)
    first = submit(batcher, 100)
    gate.wait_entered()
    cut = submit(batcher, 0, 1, 2, 3, 9, with_features=True)  # by the halves' border, 4 and 4
    poisoned, neighbour = submit(batcher, 4, with_features=True), submit(batcher, 5, 6)
    gate.open()
    assert features_of_each([first, cut, neighbour]) == [None, [0, 1, 2, 3, 9], None]
    assert "cannot be digested" in str(poisoned.error())
    assert engine.fetched == [[0, 1, 2, 3], [9]]


@pytest.mark.parametrize("knows", [False, True])
def test_features_that_cannot_be_had_fail_only_the_requests_that_asked(
    batcher: Batcher, start: Start, knows: bool
) -> None:
    class Forgetful(FeaturesEngine):
        def features(self) -> Features:
            raise EngineError("it gives no features any more")

    gate = Gate()
    start(Forgetful(gate) if knows else FakeEngine(gate))
    first = submit(batcher, 100)
    gate.wait_entered()
    neighbour, asks, other = submit(batcher, 1), submit(batcher, 2, with_features=True), submit(batcher, 3)
    gate.open()
    assert "gives no features" in str(asks.error())
    assert [classes_of(each.inference()) for each in (first, neighbour, other)] == [[2], [1], [3]]


def poison(*bad: int) -> Callable[[list[int]], None]:
    def run(marks: list[int]) -> None:
        if set(marks) & set(bad):
            raise EngineError("a row that cannot be digested")

    return run


def gated(gate: Gate, then: Callable[[list[int]], None]) -> Callable[[list[int]], None]:
    def run(marks: list[int]) -> None:
        gate(marks)
        then(marks)

    return run


def test_only_the_row_to_blame_fails(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    engine = FakeEngine(gated(gate, poison(4)))
    start(engine)
    listeners = fill_behind_gate(batcher, gate, 0, 1, 2, 3, 4, 5, 6)
    for mark, listener in enumerate(listeners):
        if mark == 4:
            assert isinstance(listener.error(), EngineError)
        else:
            assert classes_of(listener.inference()) == [mark]
    assert len(engine.batches) <= 2 + 2 * 3  # the gate's, the batch, and two runs a level


def test_a_view_that_cannot_be_digested_fails_its_request_and_not_the_neighbours(
    batcher: Batcher, start: Start
) -> None:
    gate = Gate()
    start(FakeEngine(gated(gate, poison(12))))
    first = submit(batcher, 100)
    gate.wait_entered()
    neighbour, poisoned, other = submit(batcher, 1), submit(batcher, 10, 11, 12), submit(batcher, 2, 3)
    gate.open()
    assert classes_of(neighbour.inference()) == [1]
    assert isinstance(poisoned.error(), EngineError)
    assert classes_of(other.inference()) == [2, 3]
    first.inference()
    assert poisoned.released.wait(PATIENCE_S)
    assert poisoned.releases == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 3.0])
def test_what_is_no_probability_is_a_failure_and_not_an_answer(batcher: Batcher, start: Start, value: float) -> None:
    class Wrong(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            probabilities = super().run(rows)
            probabilities[0, 0] = value
            return probabilities

    start(Wrong())
    assert "no probability distribution" in str(submit(batcher, 1).error())


def test_the_wrong_number_of_rows_is_a_failure(batcher: Batcher, start: Start) -> None:
    class Short(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            return probabilities_of([1, 2])

    start(Short())
    assert isinstance(submit(batcher, 1).error(), EngineError)


def test_an_unexpected_exception_of_an_engine_is_an_engine_error(batcher: Batcher, start: Start) -> None:
    def run(marks: list[int]) -> None:
        raise KeyError("inside of some library")

    start(FakeEngine(run))
    assert isinstance(submit(batcher, 1).error(), EngineError)


def test_an_engine_out_of_memory_lowers_the_ceiling_and_lives_on(batcher: Batcher, start: Start) -> None:
    def run(marks: list[int]) -> None:
        if len(marks) > 2:
            raise EngineOutOfMemory("no room")

    gate = Gate()
    engine = FakeEngine(gated(gate, run))
    instance = start(engine)
    listeners = fill_behind_gate(batcher, gate, 0, 1, 2, 3, 4, 5, 6)
    assert [classes_of(each.inference())[0] for each in listeners] == list(range(7))
    assert instance.max_batch <= 2
    seen = len(engine.batches)
    assert classes_of(submit(batcher, 1, 2, 3, 4, 5).inference()) == [1, 2, 3, 4, 5]
    assert max(len(batch) for batch in engine.batches[seen:]) <= 2


def test_a_single_row_that_has_no_room_fails_and_says_nothing_of_larger_batches(batcher: Batcher, start: Start) -> None:
    def run(marks: list[int]) -> None:
        if marks == [1]:
            raise EngineOutOfMemory("no room at all")

    engine = FakeEngine(run)
    instance = start(engine)
    assert isinstance(submit(batcher, 1).error(), EngineOutOfMemory)
    assert instance.max_batch == 8
    assert classes_of(submit(batcher, *range(8)).inference()) == [0, 1, 2, 3, 4, 5, 6, 0]
    assert engine.batches[1:] == [list(range(8))]


def test_a_ceiling_that_a_passing_want_of_memory_has_lowered_rises_again(batcher: Batcher, start: Start) -> None:
    short = True

    def run(marks: list[int]) -> None:
        if short and len(marks) > 2:
            raise EngineOutOfMemory("another process has it for a moment")

    engine = FakeEngine(run)
    instance = start(engine)
    submit(batcher, *range(8)).inference()
    assert instance.max_batch == 2
    short = False
    submit(batcher, *[1] * 400).inference()
    assert instance.max_batch == 2
    for _ in range(300):  # they are smaller than the ceiling allows, and say nothing of it
        submit(batcher, 1).inference()
    assert instance.max_batch == 2
    for _ in range(10):
        submit(batcher, *[1] * 400).inference()
    assert instance.max_batch == 8
    assert {len(batch) for batch in engine.batches[-50:]} == {8}


def test_a_retry_leaves_out_what_nobody_waits_for_any_more(batcher: Batcher, start: Start) -> None:
    gate, failing = Gate(), Gate()

    def run(marks: list[int]) -> None:
        gate(marks)
        if len(marks) == 4:
            failing(marks)
            raise EngineError("once")

    engine = FakeEngine(run)
    start(engine)
    first = submit(batcher, 100)
    gate.wait_entered()
    listeners = [Listener() for _ in range(4)]
    submissions = [batcher.submit(rows_of(mark), Terms(FAR), each) for mark, each in enumerate(listeners)]
    gate.open()
    failing.wait_entered()
    assert [batcher.cancel(each) for each in submissions[2:]] == [False, False]
    failing.open()
    assert [classes_of(each.inference()) for each in listeners[:2]] == [[0], [1]]
    assert all(each.released.wait(PATIENCE_S) for each in listeners)
    assert engine.batches == [[100], [0, 1, 2, 3], [0, 1]]
    first.inference()


def test_an_engine_that_answers_nothing_right_any_more_ends_and_says_why(batcher: Batcher, start: Start) -> None:
    def prove(engine: Engine) -> None:
        raise PackageError("disagrees with the golden sample")

    engine = FakeEngine(poison(1))
    instance = start(engine, prove=prove)
    for _ in range(3):
        submit(batcher, 1).error()
    assert instance.join(PATIENCE_S)
    assert engine.closed.is_set()
    assert "golden" in (instance.failure or "")


def test_a_proof_that_hangs_can_be_seen(batcher: Batcher, start: Start) -> None:
    proving, go_on = threading.Event(), threading.Event()

    def prove(engine: Engine) -> None:
        proving.set()
        assert go_on.wait(PATIENCE_S)

    instance = start(FakeEngine(poison(1)), prove=prove)
    for _ in range(3):
        submit(batcher, 1).error()
    assert proving.wait(PATIENCE_S)
    seen = instance.busy
    go_on.set()
    assert seen is not None
    assert seen.rows == 8
    end = time.monotonic() + PATIENCE_S
    while instance.busy is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert instance.busy is None
    assert classes_of(submit(batcher, 2).inference()) == [2]
    instance.stop()
    assert instance.join(PATIENCE_S)
    assert instance.busy is None


def test_an_engine_that_still_proves_itself_outlives_bad_rows(batcher: Batcher, start: Start) -> None:
    instance = start(FakeEngine(poison(1)))
    for _ in range(7):
        submit(batcher, 1).error()
    assert classes_of(submit(batcher, 2).inference()) == [2]
    assert instance.failure is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_death_of_a_thread_settles_what_it_held(batcher: Batcher, start: Start) -> None:
    def run(marks: list[int]) -> None:
        raise SystemExit

    instance = start(FakeEngine(run))
    listener = submit(batcher, 1)
    assert isinstance(listener.error(), EngineError)
    assert instance.join(PATIENCE_S)
    assert (instance.alive, listener.releases) == (False, 1)
    assert "SystemExit" in (instance.failure or "")


def test_a_stopped_instance_finishes_its_batch_and_closes_its_engine(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    engine = FakeEngine(gate)
    instance = start(engine)
    running = submit(batcher, 1)
    gate.wait_entered()
    waiting = submit(batcher, 2)
    instance.stop()
    gate.open()
    assert classes_of(running.inference()) == [1]
    assert instance.join(PATIENCE_S)
    assert engine.closed.is_set()
    assert not waiting.outcomes
    start(FakeEngine())
    assert classes_of(waiting.inference()) == [2]


def test_what_it_is_doing_can_be_seen(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    instance = start(FakeEngine(gate))
    seen = [instance.busy]
    listener = submit(batcher, 1, 2)
    gate.wait_entered()
    seen.append(instance.busy)
    gate.open()
    listener.inference()
    instance.stop()
    assert instance.join(PATIENCE_S)
    seen.append(instance.busy)
    assert [busy.rows if busy else 0 for busy in seen] == [0, 2, 0]


def wait_until_pending(batcher: Batcher, rows: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while batcher.pending_rows != rows:
        assert time.monotonic() < end, f"{batcher.pending_rows} rows wait"
        time.sleep(0.001)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_an_engine_on_a_device_has_its_next_batch_gathered_while_it_runs(
    device: str, batcher: Batcher, start: Start
) -> None:
    gate = Gate()
    engine = FakeEngine(gate, device=device)
    start(engine, useful=2)
    first = submit(batcher, 1)
    gate.wait_entered()
    rest = [submit(batcher, mark) for mark in (2, 3, 4, 5, 6)]
    wait_until_pending(batcher, 3)
    gate.open()
    assert [classes_of(each.inference())[0] for each in [first, *rest]] == [1, 2, 3, 4, 5, 6]
    assert sorted(mark for batch in engine.batches for mark in batch) == [1, 2, 3, 4, 5, 6]
    assert all(len(batch) <= 2 for batch in engine.batches)


def test_a_batch_ahead_grows_until_it_is_full_as_long_as_the_engine_runs(batcher: Batcher, start: Start) -> None:
    gate = Gate()
    engine = FakeEngine(gate, device="cuda:0")
    start(engine, useful=2)
    listeners = [submit(batcher, 1)]
    gate.wait_entered()
    for marks in ((2, 3), (4, 5)):
        for mark in marks:
            listeners.append(submit(batcher, mark))
            time.sleep(0.02)  # for whoever would close it now
        wait_until_pending(batcher, 0)
        gate.let_one_pass()
        gate.wait_entered()
    gate.open()
    assert [classes_of(each.inference())[0] for each in listeners] == [1, 2, 3, 4, 5]
    assert engine.batches == [[1], [2, 3], [4, 5]]


def test_rows_gathered_ahead_are_settled_when_the_engine_dies(batcher: Batcher, start: Start) -> None:
    gate = Gate()

    def die(marks: list[int]) -> None:
        gate(marks)
        raise SystemExit

    instance = start(FakeEngine(die, device="cuda:0"), useful=1)
    first = submit(batcher, 1)
    gate.wait_entered()
    second = submit(batcher, 2)
    gate.open()
    assert isinstance(first.error(), EngineError)
    assert instance.join(PATIENCE_S)
    if not second.outcomes:  # it may not have been gathered yet; then it still waits for another engine
        start(FakeEngine())
        second.inference()
    assert second.released.wait(PATIENCE_S)
    assert second.releases == 1


def test_rows_that_lie_gathered_when_the_engine_dies_are_settled(batcher: Batcher, start: Start) -> None:
    gate = Gate()

    def die(marks: list[int]) -> None:
        gate(marks)
        raise SystemExit

    instance = start(FakeEngine(die, device="cuda:0"), useful=1)
    listeners = [submit(batcher, 1)]
    gate.wait_entered()
    listeners += [submit(batcher, mark) for mark in (2, 3)]
    wait_until_pending(batcher, 1)
    gate.open()
    assert instance.join(PATIENCE_S)
    assert all(isinstance(each.error(), EngineError) for each in listeners[:2])
    assert [each.releases for each in listeners] == [1, 1, 0]


class NoRoom(FakeEngine):
    """Has no memory for rows, after so many batches."""

    def __init__(self, device: str, batches: int = 0) -> None:
        super().__init__(device=device)
        self.left = batches

    def empty_rows(self, n: int) -> Rows:
        if not self.left:
            raise MemoryError("no memory")
        self.left -= 1
        return super().empty_rows(n)


@pytest.mark.parametrize(("device", "batches"), [("cpu", 0), ("cuda:0", 0), ("cuda:0", 1)])
def test_rows_that_cannot_be_gathered_are_settled_and_the_instance_ends(
    batcher: Batcher, start: Start, device: str, batches: int
) -> None:
    engine = NoRoom(device, batches)
    instance = start(engine)
    for mark in range(batches):  # an engine on a device has two buffers
        assert classes_of(submit(batcher, mark).inference()) == [mark]
    lost = submit(batcher, 9)
    assert isinstance(lost.error(), EngineError)
    assert lost.released.wait(PATIENCE_S)
    assert instance.join(PATIENCE_S)
    assert "MemoryError: no memory" in (instance.failure or "")
    assert engine.closed.is_set()
    instance.abandon(EngineError("it ended"))
    start(FakeEngine())
    assert classes_of(submit(batcher, 3).inference()) == [3]
    assert (len(lost.outcomes), lost.releases) == (1, 1)


def test_rows_that_cannot_be_staged_are_settled_too(batcher: Batcher, start: Start) -> None:
    class Stages(FakeEngine):
        def stage(self, rows: Rows) -> None:
            raise RuntimeError("a fault of a library")

    instance = start(Stages(device="cuda:0"))
    lost = submit(batcher, 1)
    assert isinstance(lost.error(), EngineError)
    assert lost.released.wait(PATIENCE_S)
    assert instance.join(PATIENCE_S)
    assert "a fault of a library" in (instance.failure or "")


def test_rows_gathered_ahead_are_settled_when_the_engine_hangs_and_freed_when_it_returns(
    batcher: Batcher, start: Start
) -> None:
    gate, staging = Gate(), Gate()

    class Stages(FakeEngine):
        def stage(self, rows: Rows) -> None:
            staging([])

    instance = start(Stages(gate, device="cuda:0"), useful=1)
    staging.let_one_pass()
    staging.let_one_pass()
    running, ahead = submit(batcher, 1), submit(batcher, 2)
    gate.wait_entered()
    for _ in range(2):
        staging.wait_entered()
    instance.abandon(EngineError("it hangs"))
    assert [str(each.error()) for each in (running, ahead)] == ["it hangs", "it hangs"]
    later = submit(batcher, 3)
    start(FakeEngine())
    assert classes_of(later.inference()) == [3]
    assert (running.releases, ahead.releases) == (0, 0)
    gate.open()
    staging.open()
    assert instance.join(PATIENCE_S)
    assert [(len(each.outcomes), each.releases) for each in (running, ahead)] == [(1, 1), (1, 1)]


def test_rows_whose_staging_hangs_are_settled_too(batcher: Batcher, start: Start) -> None:
    staging = Gate()

    class Stages(FakeEngine):
        def stage(self, rows: Rows) -> None:
            staging([])

    instance = start(Stages(device="cuda:0"))
    stuck = submit(batcher, 1)
    staging.wait_entered()
    instance.abandon(EngineError("it hangs"))
    assert str(stuck.error()) == "it hangs"
    staging.open()
    assert instance.join(PATIENCE_S)
    assert (len(stuck.outcomes), stuck.releases) == (1, 1)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_rows_that_are_taken_at_the_moment_an_instance_is_given_up_are_not_lost(device: str) -> None:
    class Hurried(Batcher):
        def take(self, *args: Any, **kwargs: Any) -> list[Slice] | None:
            slices = super().take(*args, **kwargs)
            if slices is not None:
                instance.abandon(EngineError("it hangs"))
            return slices

    batcher = Hurried(max_rows=1000, deliver=deliver_here, predict_s=lambda rows: 0.0)
    engine = FakeEngine(device=device)
    instance = Instance("model", engine, batcher, CostModel(flat_curve()), SilentObserver(), prove=lambda engine: None)
    instance.start()
    listener = submit(batcher, 1)
    assert isinstance(listener.error(), EngineError)
    assert instance.join(PATIENCE_S)
    assert engine.batches == []
    assert (len(listener.outcomes), listener.releases) == (1, 1)


def test_gathered_rows_are_a_copy_so_that_shared_memory_is_free_at_once(batcher: Batcher, start: Start) -> None:
    kept: list[Rows] = []

    class Keeper(FakeEngine):
        def run(self, rows: Rows) -> Probabilities:
            kept.append(rows)
            return super().run(rows)

    start(Keeper())
    rows = rows_of(1, 2)
    listener = Listener()
    batcher.submit(rows, Terms(FAR), listener)
    listener.inference()
    assert not np.shares_memory(kept[0], rows)


def test_half_of_a_deep_queue_is_taken_at_a_time(batcher: Batcher) -> None:
    gate, engine = Gate(), FakeEngine()
    engine.before_run = gate
    cost = CostModel(BatchCurve((1, 2, 4, 8), (0.01, 0.02, 0.04, 0.08)))
    instance = Instance("model", engine, batcher, cost, SilentObserver(), prove=lambda engine: None)
    instance.start()
    for listener in fill_behind_gate(batcher, gate, *range(12)):
        listener.inference()
    instance.stop()
    assert instance.join(PATIENCE_S)
    assert [len(batch) for batch in engine.batches] == [1, 4, 4, 2, 1, 1]


def test_whoever_has_a_single_row_does_not_wait_for_a_deep_batch_of_another_caller_s(batcher: Batcher) -> None:
    gate, engine = Gate(), FakeEngine()
    engine.before_run = gate
    cost = CostModel(BatchCurve((1, 2, 4, 8), (0.01, 0.02, 0.04, 0.08)))
    instance = Instance("model", engine, batcher, cost, SilentObserver(), prove=lambda engine: None)
    instance.start()
    submit(batcher, 99)
    gate.wait_entered()
    listeners = [submit(batcher, mark) for mark in range(12)]
    batcher.submit(rows_of(50), Terms(FAR, "few"), few := Listener())
    gate.open()
    for listener in (*listeners, few):
        listener.inference()
    instance.stop()
    assert instance.join(PATIENCE_S)
    assert engine.batches[:3] == [[99], [0, 50], [1, 2, 3, 4]]
