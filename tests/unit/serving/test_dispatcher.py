"""Rows on their way through an event loop and an engine thread; whatever happens, they are given back once."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from serving_fakes import (
    PATIENCE_S,
    FakeEngine,
    FakeRows,
    FeaturesEngine,
    Gate,
    Listener,
    classes_of,
    fake_features,
    flat_curve,
    rows_of,
)

from app.errors import DeadlineExceeded, EngineError, Overloaded
from app.serving.batcher import Batcher
from app.serving.curve import CostModel
from app.serving.dispatcher import LocalDispatcher, deliver
from app.serving.instance import Instance
from app.serving.observer import SilentObserver
from app.serving.submission import Terms


@pytest.fixture
def batcher() -> Batcher:
    return Batcher(max_rows=8, deliver=deliver, predict_s=lambda rows: 1.0)


@pytest.fixture
def dispatcher(batcher: Batcher) -> LocalDispatcher:
    return LocalDispatcher(batcher)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def engine(batcher: Batcher, gate: Gate) -> Iterator[FakeEngine]:
    engine = FeaturesEngine(gate)
    instance = Instance("model", engine, batcher, CostModel(flat_curve()), SilentObserver(), prove=lambda engine: None)
    instance.start()
    yield engine
    gate.open()
    instance.stop()
    assert instance.join(PATIENCE_S)


def soon() -> float:
    return time.monotonic() + PATIENCE_S


async def entered(gate: Gate) -> None:
    await asyncio.to_thread(gate.wait_entered)


async def closed(*rows: FakeRows) -> None:
    """Until all rows were given back."""
    async with asyncio.timeout(PATIENCE_S):
        while not all(each.closes for each in rows):
            await asyncio.sleep(0)


def test_an_answer_comes_back_and_its_rows_are_given_back(
    dispatcher: LocalDispatcher, engine: FakeEngine, gate: Gate
) -> None:
    gate.open()
    rows = FakeRows(rows_of(2, 5))
    inference = asyncio.run(dispatcher.infer(rows, Terms(soon())))
    assert classes_of(inference) == [2, 5]
    assert rows.closes == 1


def test_features_come_with_the_answer_where_they_are_asked_for(
    dispatcher: LocalDispatcher, engine: FakeEngine, gate: Gate
) -> None:
    gate.open()
    inference = asyncio.run(dispatcher.infer(FakeRows(rows_of(2, 5)), Terms(soon(), with_features=True)))
    np.testing.assert_array_equal(inference.features, fake_features([2, 5]))
    assert asyncio.run(dispatcher.infer(FakeRows(rows_of(2)), Terms(soon()))).features is None


def test_an_answer_is_not_kept_until_its_deadline(dispatcher: LocalDispatcher, engine: FakeEngine, gate: Gate) -> None:
    async def scenario() -> None:
        inference = await dispatcher.infer(FakeRows(rows_of(1)), Terms(soon()))
        answer = weakref.ref(inference)
        await dispatcher.infer(FakeRows(rows_of(2)), Terms(soon()))  # the engine's thread may hold on to its last batch
        del inference
        gc.collect()
        assert answer() is None

    gate.open()
    asyncio.run(scenario())


def test_a_failed_batch_raises_and_gives_its_rows_back(
    dispatcher: LocalDispatcher, engine: FakeEngine, gate: Gate
) -> None:
    def fail(marks: list[int]) -> None:
        raise EngineError("broken")

    engine.before_run = fail
    rows = FakeRows(rows_of(2))
    with pytest.raises(EngineError):
        asyncio.run(dispatcher.infer(rows, Terms(soon())))
    assert rows.closes == 1


def test_a_caller_that_leaves_while_waiting_frees_its_rows_at_once(
    dispatcher: LocalDispatcher, engine: FakeEngine, batcher: Batcher, gate: Gate
) -> None:
    async def scenario() -> None:
        first = FakeRows(rows_of(1))
        running = asyncio.create_task(dispatcher.infer(first, Terms(soon())))
        await entered(gate)
        rows = FakeRows(rows_of(2))
        waiting = asyncio.create_task(dispatcher.infer(rows, Terms(soon())))
        await asyncio.sleep(0)
        assert batcher.pending_rows == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (rows.closes, batcher.pending_rows) == (1, 0)
        gate.open()
        assert classes_of(await running) == [1]
        assert (first.closes, rows.closes) == (1, 1)

    asyncio.run(scenario())
    assert engine.batches == [[1]]


def test_a_caller_that_leaves_during_its_batch_hangs_no_batch_mate(
    dispatcher: LocalDispatcher, engine: FakeEngine, gate: Gate
) -> None:
    async def scenario() -> None:
        first = asyncio.create_task(dispatcher.infer(FakeRows(rows_of(9)), Terms(soon())))
        await entered(gate)
        gone_rows, stays_rows = FakeRows(rows_of(1)), FakeRows(rows_of(2))
        gone = asyncio.create_task(dispatcher.infer(gone_rows, Terms(soon())))
        stays = asyncio.create_task(dispatcher.infer(stays_rows, Terms(soon())))
        await asyncio.sleep(0)
        gate.let_one_pass()
        await first
        await entered(gate)
        assert engine.batches[-1] == [1, 2]
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert gone_rows.closes == 0  # the engine may be reading them
        gate.open()
        assert classes_of(await stays) == [2]
        await closed(gone_rows)
        assert (gone_rows.closes, stays_rows.closes) == (1, 1)

    asyncio.run(scenario())


def test_the_deadline_answers_the_caller_even_while_the_engine_is_stuck(
    dispatcher: LocalDispatcher, engine: FakeEngine, gate: Gate
) -> None:
    async def scenario() -> None:
        held, waiting = FakeRows(rows_of(1)), FakeRows(rows_of(2))
        stuck = asyncio.create_task(dispatcher.infer(held, Terms(time.monotonic() + 0.05)))
        await entered(gate)
        with pytest.raises(DeadlineExceeded):
            await dispatcher.infer(waiting, Terms(time.monotonic() + 0.01))
        assert waiting.closes == 1
        with pytest.raises(DeadlineExceeded):
            await stuck
        assert held.closes == 0
        gate.open()
        await closed(held)

    asyncio.run(scenario())
    assert engine.batches == [[1]]


def test_a_full_queue_gives_the_rows_back_before_it_refuses(batcher: Batcher, dispatcher: LocalDispatcher) -> None:
    batcher.submit(rows_of(1), Terms(soon()), Listener())
    rows = FakeRows(rows_of(*range(8)))
    with pytest.raises(Overloaded):
        asyncio.run(dispatcher.infer(rows, Terms(soon())))
    assert rows.closes == 1


def test_rows_in_flight_when_their_loop_ends_are_given_back(
    dispatcher: LocalDispatcher, engine: FakeEngine, gate: Gate
) -> None:
    rows = FakeRows(rows_of(1))

    async def leave() -> None:
        task = asyncio.create_task(dispatcher.infer(rows, Terms(soon())))
        await entered(gate)
        task.cancel()

    asyncio.run(leave())
    assert rows.closes == 0
    gate.open()
    assert engine.batches == [[1]]
    end = soon()
    while not rows.closes and time.monotonic() < end:
        time.sleep(0.001)
    assert rows.closes == 1
