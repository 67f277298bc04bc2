"""Under threads, cancellations, deadlines and poison, every submission is settled at most once and released once."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from serving_fakes import (
    PATIENCE_S,
    Clock,
    FakeEngine,
    FakeRows,
    Gate,
    Listener,
    classes_of,
    deliver_here,
    flat_curve,
    probabilities_of,
    rows_of,
)

from app.errors import DeadlineExceeded, EngineError, EngineOutOfMemory, HieraError
from app.serving.batcher import Batcher
from app.serving.curve import CostModel
from app.serving.dispatcher import LocalDispatcher, deliver
from app.serving.instance import Instance
from app.serving.observer import SilentObserver
from app.serving.submission import Slice, Submission, Terms


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_requests_settles_each_one_rightly_and_gives_all_rows_back(device: str, seed: int) -> None:
    chance = random.Random(seed)
    batcher = Batcher(max_rows=10_000, deliver=deliver, predict_s=lambda rows: 1.0)
    dispatcher = LocalDispatcher(batcher)

    def sometimes_wrong(marks: list[int]) -> None:
        if 250 in marks:
            raise EngineError("poison")
        if len(marks) > 5:
            raise EngineOutOfMemory("large")

    instances = [
        Instance(
            "model",
            FakeEngine(sometimes_wrong, device=device),
            batcher,
            CostModel(flat_curve()),
            SilentObserver(),
            prove=lambda engine: None,
        )
        for _ in range(3)
    ]
    for instance in instances:
        instance.start()
    rows: list[FakeRows] = []

    async def request() -> str:
        marks = [chance.randrange(200) for _ in range(chance.choice([1, 1, 1, 2, 3, 12]))]
        poisoned = chance.random() < 0.1
        if poisoned:
            marks[chance.randrange(len(marks))] = 250
        lease = FakeRows(rows_of(*marks))
        rows.append(lease)
        deadline = time.monotonic() + (PATIENCE_S if chance.random() < 0.8 else chance.random() * 0.005)
        task = asyncio.create_task(dispatcher.infer(lease, Terms(deadline)))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.random() * 0.003)
            task.cancel()
        try:
            inference = await task
        except asyncio.CancelledError:
            return "cancelled"
        except HieraError as error:
            return type(error).__name__ if poisoned or isinstance(error, DeadlineExceeded) else repr(error)
        assert not poisoned
        assert classes_of(inference) == [mark % 7 for mark in marks]
        return "answered"

    async def storm() -> Counter[str]:
        async with asyncio.timeout(60):
            outcomes = Counter(await asyncio.gather(*(request() for _ in range(400))))
            while not all(lease.closes for lease in rows):
                await asyncio.sleep(0.001)
        return outcomes

    outcomes = asyncio.run(storm())
    for instance in instances:
        instance.stop()
    assert all(instance.join(PATIENCE_S) for instance in instances)
    assert outcomes["answered"] > 100
    assert outcomes["EngineError"] > 5
    assert set(outcomes) <= {"answered", "cancelled", "EngineError", "DeadlineExceeded"}
    assert {lease.closes for lease in rows} == {1}
    assert batcher.pending_rows == 0


class QueueMachine(RuleBasedStateMachine):
    """Any interleaving of submit, take, finish, fail, cancel and time keeps the promises of the queue."""

    submissions = Bundle("submissions")
    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.batcher = Batcher(max_rows=1000, deliver=deliver_here, predict_s=lambda rows: 0.0, clock=self.clock)
        self.all: list[tuple[Submission, Listener]] = []
        self.cancelled: set[int] = set()
        self.freed_by_cancel: set[int] = set()
        self.in_flight: list[list[Slice]] = []

    @rule(target=submissions, size=st.integers(1, 5), slack=st.integers(1, 20), averaged=st.booleans())
    def submit(self, size: int, slack: int, averaged: bool) -> Submission:
        listener = Listener()
        submission = self.batcher.submit(
            rows_of(*range(size)), Terms(self.clock.now + slack, averaged=averaged), listener
        )
        self.all.append((submission, listener))
        return submission

    @rule(target=batches, limit=st.integers(1, 6))
    def take(self, limit: int) -> object:
        slices = self.batcher.take(lambda: limit, stopping=lambda: self.batcher.pending_rows == 0)
        if slices is None:
            return multiple()
        assert 1 <= sum(part.size for part in slices) <= limit
        assert all(part.submission.terms.deadline > self.clock.now for part in slices)
        assert all(id(part.submission) not in self.cancelled for part in slices)
        deadlines = [part.submission.terms.deadline for part in slices]
        assert deadlines == sorted(deadlines)
        assert len({part.submission.exact for part in slices}) == 1
        self.in_flight.append(slices)
        return slices

    @rule(batch=consumes(batches), cut=st.integers(0, 3), broken=st.booleans(), margin=st.sampled_from([0.0, 9.0]))
    def finish(self, batch: list[Slice], cut: int, broken: bool, margin: float) -> None:
        self.in_flight.remove(batch)
        for part in (batch[:cut], batch[cut:]):
            if part:
                rows = sum(each.size for each in part)
                result = EngineError("broken") if broken else probabilities_of(list(range(rows)))
                self.batcher.finish(part, result, began=self.clock.now, batch_rows=rows, margin=margin)

    @rule(batch=batches)
    def give_up(self, batch: list[Slice]) -> None:
        self.batcher.fail(batch, EngineError("stuck"))

    @rule(submission=submissions)
    def cancel(self, submission: Submission) -> None:
        if self.batcher.cancel(submission):
            self.freed_by_cancel.add(id(submission))
        self.cancelled.add(id(submission))

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def nothing_is_said_twice(self) -> None:
        held = {id(part.submission) for batch in self.in_flight for part in batch}
        for submission, listener in self.all:
            assert len(listener.outcomes) <= 1
            freed = listener.releases + (id(submission) in self.freed_by_cancel)
            assert freed <= 1
            assert not (freed and id(submission) in held)

    def teardown(self) -> None:
        for batch in self.in_flight:
            self.batcher.finish(batch, EngineError("end"), began=0.0, batch_rows=1)
        self.batcher.close()
        assert self.batcher.pending_rows == 0
        for submission, listener in self.all:
            assert listener.releases + (id(submission) in self.freed_by_cancel) == 1
            if id(submission) not in self.cancelled:
                assert len(listener.outcomes) == 1


def test_the_rows_of_a_request_whose_engine_dies_between_two_halves_are_given_back() -> None:
    def die_on_the_second_half(marks: list[int]) -> None:
        if len(marks) == 4:
            raise EngineError("too many")
        if 3 in marks:
            raise SystemExit

    batcher = Batcher(max_rows=10, deliver=deliver_here, predict_s=lambda rows: 0.0)
    instance = instance_of(batcher, FakeEngine(die_on_the_second_half), useful=4)
    listener = Listener()
    submission = batcher.submit(rows_of(0, 1, 2, 3), Terms(math.inf), listener)
    assert isinstance(listener.error(), EngineError)
    assert instance.join(PATIENCE_S)
    assert (listener.releases, submission.in_flight) == (1, 0)


@pytest.mark.parametrize("hangs", [False, True])
def test_the_part_of_a_request_that_an_engine_has_answered_is_not_lost_with_its_neighbour(hangs: bool) -> None:
    first_gate, second_gate = Gate(), Gate()

    def lose_the_neighbour(marks: list[int]) -> None:
        if len(marks) == 2:
            raise EngineError("one of them")
        if 3 in marks:
            second_gate(marks)
            raise SystemExit

    batcher = Batcher(max_rows=10, deliver=deliver_here, predict_s=lambda rows: 0.0)
    before, split, lost = Listener(), Listener(), Listener()
    for marks, listener in (((0,), before), ((1, 2), split), ((3,), lost)):
        batcher.submit(rows_of(*marks), Terms(math.inf), listener)
    other = instance_of(batcher, FakeEngine(first_gate), useful=2)  # takes 0 and 1
    first_gate.wait_entered()
    instance = instance_of(batcher, FakeEngine(lose_the_neighbour), useful=2)  # takes 2 and 3
    second_gate.wait_entered()
    if hangs:
        instance.abandon(EngineError("it hangs"))
    second_gate.open()
    assert isinstance(lost.error(), EngineError)
    assert instance.join(PATIENCE_S)
    assert (split.outcomes, split.releases) == ([], 0)  # the other engine still reads its first row
    first_gate.open()
    assert [classes_of(each.inference()) for each in (before, split)] == [[0], [1, 2]]
    other.stop()
    assert other.join(PATIENCE_S)
    assert [each.releases for each in (before, split, lost)] == [1, 1, 1]


def instance_of(batcher: Batcher, engine: FakeEngine, *, useful: int) -> Instance:
    cost = CostModel(flat_curve(useful))
    instance = Instance("model", engine, batcher, cost, SilentObserver(), prove=lambda engine: None)
    instance.start()
    return instance


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_submitting_from_many_threads_loses_nothing() -> None:
    batcher = Batcher(max_rows=10_000, deliver=deliver_here, predict_s=lambda rows: 1.0)
    engine = FakeEngine()
    instance = Instance("model", engine, batcher, CostModel(flat_curve()), SilentObserver(), prove=lambda engine: None)
    instance.start()
    listeners = [[Listener() for _ in range(100)] for _ in range(6)]

    def send(mine: list[Listener]) -> None:
        for mark, listener in enumerate(mine):
            batcher.submit(rows_of(mark), Terms(float("inf")), listener)

    threads = [threading.Thread(target=send, args=(mine,)) for mine in listeners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in listeners:
        assert [classes_of(each.inference()) for each in mine] == [[mark % 7] for mark in range(100)]
        assert all(each.releases == 1 for each in mine)
    instance.stop()
    assert instance.join(PATIENCE_S)
