"""Callers who wait for the same engine take turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving_fakes import Clock, Listener, deliver_here, marks_of, rows_of

from app.serving.batcher import Batcher
from app.serving.submission import Terms

LATER = 2000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batcher(clock: Clock) -> Iterator[Batcher]:
    batcher = Batcher(max_rows=1000, deliver=deliver_here, predict_s=lambda rows: 0.1, clock=clock)
    yield batcher
    batcher.close()


def take(batcher: Batcher, limit: int) -> list[int]:
    slices = batcher.take(lambda: limit)
    assert slices is not None
    return [mark for part in slices for mark in marks_of(part.rows())]


def test_they_alternate_in_a_batch_and_from_batch_to_batch(batcher: Batcher) -> None:
    for mark in range(8):
        batcher.submit(rows_of(mark), Terms(LATER, "many"), Listener())
    batcher.submit(rows_of(100), Terms(LATER + 5.0, "few"), Listener())
    batcher.submit(rows_of(101), Terms(LATER + 4.0, "few"), Listener())
    assert take(batcher, 3) == [0, 101, 1]
    assert take(batcher, 3) == [100, 2, 3]
    assert take(batcher, 8) == [4, 5, 6, 7]


def test_rows_count_and_not_requests(batcher: Batcher) -> None:
    for first in (0, 4, 8):
        batcher.submit(rows_of(*range(first, first + 4)), Terms(LATER, "large"), Listener())
    for mark in range(100, 106):
        batcher.submit(rows_of(mark), Terms(LATER, "small"), Listener())
    assert take(batcher, 8) == [0, 1, 2, 3, 100, 101, 102, 103]
    assert take(batcher, 8) == [4, 5, 6, 7, 104, 105, 8, 9]  # a request is cut where the batch is full
    assert take(batcher, 8) == [10, 11]


def test_a_request_that_was_cut_waits_for_its_caller_s_next_turn(batcher: Batcher) -> None:
    batcher.submit(rows_of(*range(10)), Terms(LATER, "large"), Listener())
    assert take(batcher, 4) == [0, 1, 2, 3]
    batcher.submit(rows_of(*range(100, 110)), Terms(LATER - 1.0, "small"), Listener())
    assert take(batcher, 4) == [100, 101, 102, 103]


def test_late_rows_of_any_caller_are_dropped_and_the_others_stay(batcher: Batcher, clock: Clock) -> None:
    listeners = [Listener() for _ in range(4)]
    terms = [Terms(LATER, "a"), Terms(clock.now + 1.0, "b"), Terms(clock.now + 1.0, "c"), Terms(LATER, "c")]
    for mark, (each, listener) in enumerate(zip(terms, listeners, strict=True)):
        batcher.submit(rows_of(mark), each, listener)
    clock.now += 2.0
    assert sorted(take(batcher, 8)) == [0, 3]
    assert [len(listener.outcomes) for listener in listeners] == [0, 1, 1, 0]
    assert batcher.pending_rows == 0


def test_a_batch_need_be_no_larger_than_turns_can_be_taken_in_it(batcher: Batcher) -> None:
    assert batcher.even_rows == 0
    many = [batcher.submit(rows_of(mark), Terms(LATER, "many"), Listener()) for mark in range(20)]
    assert batcher.even_rows == 20
    batcher.submit(rows_of(100), Terms(LATER, "few"), Listener())
    third = batcher.submit(rows_of(101, 102, 103), Terms(LATER, "third"), Listener())
    assert batcher.even_rows == 3
    assert 100 in take(batcher, 3)
    batcher.cancel(third)
    assert batcher.even_rows == batcher.pending_rows
    for submission in many:
        batcher.cancel(submission)
    assert batcher.even_rows == 0


def test_a_closed_queue_answers_every_caller(batcher: Batcher) -> None:
    listeners = [Listener() for _ in range(3)]
    for mark, listener in enumerate(listeners):
        batcher.submit(rows_of(mark), Terms(LATER, f"caller {mark}"), listener)
    batcher.close()
    assert [len(listener.outcomes) for listener in listeners] == [1, 1, 1]
    assert batcher.even_rows == 0
