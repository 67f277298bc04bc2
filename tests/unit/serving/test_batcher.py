"""The queue: order, cutting, dropping, and that every submission is settled and released exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from serving_fakes import (
    PATIENCE_S,
    Clock,
    Listener,
    deliver_here,
    fake_features,
    marks_of,
    probabilities_of,
    rows_of,
)

from app.errors import DeadlineExceeded, EngineError, Overloaded, Unavailable
from app.serving.batcher import Batcher
from app.serving.submission import Slice, Terms

LATER = 2000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batcher(clock: Clock) -> Batcher:
    return Batcher(max_rows=16, deliver=deliver_here, predict_s=lambda rows: rows * 0.5, clock=clock)


class Taking:
    """An engine's thread that waits for a batch."""

    def __init__(
        self, batcher: Batcher, limit: Callable[[], int] = lambda: 8, hold: Callable[[], bool] = lambda: False
    ) -> None:
        self.taken: list[list[Slice] | None] = []
        self.thread = threading.Thread(target=lambda: self.taken.append(batcher.take(limit, hold=hold)), daemon=True)
        self.thread.start()

    def batch(self) -> list[Slice]:
        """What it took, once it has."""
        self.thread.join(PATIENCE_S)
        assert self.taken, "the queue gave nothing"
        assert self.taken[0] is not None
        return self.taken[0]


def take(batcher: Batcher, limit: int = 8) -> list[Slice]:
    return Taking(batcher, lambda: limit).batch()


def marks(slices: list[Slice]) -> list[int]:
    return [mark for part in slices for mark in marks_of(part.rows())]


def finish(batcher: Batcher, slices: list[Slice], batch_rows: int = 1) -> None:
    batcher.finish(slices, probabilities_of(marks(slices)), began=1001.0, batch_rows=batch_rows)


def finish_with_features(batcher: Batcher, slices: list[Slice]) -> None:
    run = marks(slices)
    batcher.finish(slices, probabilities_of(run), fake_features(run), began=1001.0, batch_rows=len(run))


def test_rows_leave_in_order_of_deadline_and_first_come_first_served_among_equals(batcher: Batcher) -> None:
    for mark, deadline in [(1, 1030.0), (2, 1010.0), (3, 1020.0), (4, 1010.0)]:
        batcher.submit(rows_of(mark), Terms(deadline), Listener())
    assert marks(take(batcher)) == [2, 4, 3, 1]


def test_an_idle_engine_takes_one_row_at_once(batcher: Batcher) -> None:
    batcher.submit(rows_of(5), Terms(LATER), Listener())
    assert marks(take(batcher, limit=8)) == [5]


def test_what_arrives_while_an_engine_is_busy_leaves_in_one_batch(batcher: Batcher) -> None:
    batcher.submit(rows_of(1), Terms(LATER), Listener())
    first = take(batcher)
    for mark in (2, 3, 4):
        batcher.submit(rows_of(mark), Terms(LATER), Listener())
    finish(batcher, first)
    assert marks(take(batcher)) == [2, 3, 4]


def test_a_waiting_engine_is_woken_by_a_submission(batcher: Batcher) -> None:
    engine = Taking(batcher, lambda: 4)
    batcher.submit(rows_of(3), Terms(LATER), Listener())
    assert marks(engine.batch()) == [3]


def test_a_request_larger_than_a_batch_is_cut_and_answered_whole(batcher: Batcher, clock: Clock) -> None:
    listener = Listener()
    batcher.submit(rows_of(0, 1, 2, 3, 4), Terms(LATER), listener)
    parts = [take(batcher, limit=2) for _ in range(3)]
    assert [marks(part) for part in parts] == [[0, 1], [2, 3], [4]]
    clock.now = 1003.0
    finish(batcher, parts[2])
    finish(batcher, parts[0], batch_rows=2)
    assert not listener.outcomes
    finish(batcher, parts[1])
    inference = listener.inference()
    assert [int(best) for best in inference.probabilities.argmax(axis=1)] == [0, 1, 2, 3, 4]
    assert (inference.queue_s, inference.inference_s, inference.batch_rows) == (1.0, 2.0, 2)
    assert listener.releases == 1


def test_rows_of_several_requests_share_a_batch_and_the_rest_of_the_last_one_waits(batcher: Batcher) -> None:
    batcher.submit(rows_of(1, 2), Terms(1010.0), Listener())
    batcher.submit(rows_of(3, 4, 5), Terms(1020.0), Listener())
    assert marks(take(batcher, limit=4)) == [1, 2, 3, 4]
    assert batcher.pending_rows == 1
    assert marks(take(batcher, limit=4)) == [5]


def test_the_features_of_a_batch_come_to_those_who_asked_for_them_alone(batcher: Batcher) -> None:
    listeners = [Listener() for _ in range(4)]
    for listener, rows, asks in zip(listeners, [(1,), (2, 3), (4,), (5, 6)], [False, True, False, True], strict=True):
        batcher.submit(rows_of(*rows), Terms(LATER, with_features=asks), listener)
    finish_with_features(batcher, take(batcher))
    assert listeners[0].inference().features is None
    np.testing.assert_array_equal(listeners[1].inference().features, fake_features([2, 3]))
    assert listeners[2].inference().features is None
    np.testing.assert_array_equal(listeners[3].inference().features, fake_features([5, 6]))


def test_the_features_of_a_cut_request_come_whole_and_in_the_order_of_its_rows(batcher: Batcher) -> None:
    asks, does_not = Listener(), Listener()
    batcher.submit(rows_of(1, 2, 3, 4, 5), Terms(1500.0, with_features=True), asks)
    batcher.submit(rows_of(6, 7), Terms(LATER), does_not)
    parts = [take(batcher, limit=2) for _ in range(4)]
    assert [marks(part) for part in parts] == [[1, 2], [3, 4], [5, 6], [7]]
    for part in (parts[2], parts[0], parts[1]):
        assert not asks.outcomes
        finish_with_features(batcher, part)
    finish(batcher, parts[3])
    np.testing.assert_array_equal(asks.inference().features, fake_features([1, 2, 3, 4, 5]))
    assert does_not.inference().features is None


def test_expired_rows_are_dropped_when_a_batch_closes(batcher: Batcher, clock: Clock) -> None:
    late = Listener()
    batcher.submit(rows_of(1), Terms(1005.0), late)
    batcher.submit(rows_of(2), Terms(LATER), Listener())
    clock.now = 1005.0
    assert marks(take(batcher)) == [2]
    assert isinstance(late.error(), DeadlineExceeded)
    assert late.releases == 1


def test_an_engine_that_finds_only_expired_rows_goes_on_waiting(batcher: Batcher, clock: Clock) -> None:
    late = Listener()
    batcher.submit(rows_of(1), Terms(clock.now - 1.0), late)
    engine = Taking(batcher)
    assert isinstance(late.error(), DeadlineExceeded)
    batcher.submit(rows_of(2), Terms(LATER), Listener())
    assert marks(engine.batch()) == [2]


def test_the_rest_of_a_cut_request_that_expires_is_dropped_and_freed_after_its_running_part(
    batcher: Batcher, clock: Clock
) -> None:
    listener = Listener()
    batcher.submit(rows_of(1, 2), Terms(1005.0), listener)
    running = take(batcher, limit=1)
    batcher.submit(rows_of(3), Terms(LATER), Listener())
    clock.now = 1006.0
    assert marks(take(batcher)) == [3]
    assert isinstance(listener.error(), DeadlineExceeded)
    assert listener.releases == 0
    finish(batcher, running)
    assert listener.releases == 1
    listener.error()


def test_a_cancelled_request_leaves_at_once_and_its_neighbours_stay(batcher: Batcher) -> None:
    gone, stays = Listener(), Listener()
    submission = batcher.submit(rows_of(1), Terms(LATER), gone)
    batcher.submit(rows_of(2), Terms(LATER), stays)
    assert batcher.cancel(submission) is True
    assert batcher.pending_rows == 1
    batch = take(batcher)
    assert marks(batch) == [2]
    finish(batcher, batch)
    stays.inference()
    assert (gone.outcomes, gone.releases) == ([], 0)


def test_a_request_cancelled_in_its_batch_is_freed_after_it_and_does_not_hang_its_batch_mates(batcher: Batcher) -> None:
    gone, stays = Listener(), Listener()
    submission = batcher.submit(rows_of(1), Terms(LATER), gone)
    batcher.submit(rows_of(2), Terms(LATER), stays)
    batch = take(batcher)
    assert batcher.cancel(submission) is False
    assert gone.releases == 0
    finish(batcher, batch)
    assert stays.inference().probabilities.argmax() == 2
    assert (gone.outcomes, gone.releases) == ([], 1)
    assert batcher.cancel(submission) is False


def test_an_error_settles_every_request_of_the_batch_once(batcher: Batcher) -> None:
    listener = Listener()
    batcher.submit(rows_of(1, 2, 3), Terms(LATER), listener)
    first, second = take(batcher, limit=1), take(batcher, limit=1)
    batcher.finish(first, EngineError("broken"), began=1000.0, batch_rows=1)
    assert batcher.pending_rows == 0
    batcher.finish(second, EngineError("broken again"), began=1000.0, batch_rows=1)
    assert str(listener.error()) == "broken"
    assert listener.releases == 1


def test_rows_of_a_stuck_engine_are_settled_now_and_freed_when_it_returns(batcher: Batcher) -> None:
    listener = Listener()
    batcher.submit(rows_of(1), Terms(LATER), listener)
    batch = take(batcher)
    batcher.fail(batch, EngineError("stuck"))
    assert str(listener.error()) == "stuck"
    assert listener.releases == 0
    finish(batcher, batch)
    listener.error()
    assert listener.releases == 1


def test_a_cut_request_has_waited_until_its_first_batch_began(batcher: Batcher, clock: Clock) -> None:
    listener = Listener()
    batcher.submit(rows_of(0, 1), Terms(LATER), listener)
    first, second = take(batcher, limit=1), take(batcher, limit=1)
    clock.now = 1003.0
    for part, began in ((first, 1001.0), (second, 1002.0)):
        batcher.finish(part, probabilities_of(marks(part)), began=began, batch_rows=1)
    inference = listener.inference()
    assert (inference.queue_s, inference.inference_s) == (1.0, 2.0)


def test_the_depth_is_told_at_every_change_and_ends_at_zero(clock: Clock) -> None:
    depths: list[int] = []
    batcher = Batcher(max_rows=16, deliver=deliver_here, predict_s=float, on_depth=depths.append, clock=clock)
    gone = batcher.submit(rows_of(1, 2), Terms(LATER), Listener())
    batcher.submit(rows_of(3), Terms(1010.0), Listener())
    batcher.submit(rows_of(4, 5, 6), Terms(LATER), Listener())
    batcher.cancel(gone)
    clock.now = 1010.0
    take(batcher, limit=2)
    batcher.close()
    assert depths == [2, 3, 6, 4, 3, 1, 0]


def test_a_full_queue_refuses_and_says_when_to_come_back(batcher: Batcher) -> None:
    batcher.submit(rows_of(*range(15)), Terms(LATER), Listener())
    with pytest.raises(Overloaded) as refusal:
        batcher.submit(rows_of(1, 2), Terms(LATER), Listener())
    assert refusal.value.retry_after_s == 7.5
    batcher.submit(rows_of(1), Terms(LATER), Listener())


def test_a_submission_larger_than_the_queue_is_taken_when_nothing_waits(batcher: Batcher) -> None:
    batcher.submit(rows_of(*range(17)), Terms(LATER), Listener())
    with pytest.raises(Overloaded):
        batcher.submit(rows_of(*range(17)), Terms(LATER), Listener())
    assert len(take(batcher, 17)) == 1
    batcher.submit(rows_of(*range(17)), Terms(LATER), Listener())


def test_closing_settles_what_waits_and_lets_what_runs_finish(batcher: Batcher) -> None:
    running, waiting = Listener(), Listener()
    batcher.submit(rows_of(1), Terms(1010.0), running)
    batch = take(batcher, limit=1)
    batcher.submit(rows_of(2), Terms(1010.0), waiting)
    batcher.close()
    assert isinstance(waiting.error(), Unavailable)
    assert waiting.releases == 1
    finish(batcher, batch)
    running.inference()
    assert batcher.take(lambda: 8) is None
    with pytest.raises(Unavailable):
        batcher.submit(rows_of(3), Terms(LATER), Listener())


def test_closing_frees_a_cut_request_only_after_its_running_part(batcher: Batcher) -> None:
    listener = Listener()
    batcher.submit(rows_of(1, 2), Terms(LATER), listener)
    running = take(batcher, limit=1)
    batcher.close()
    assert isinstance(listener.error(), Unavailable)
    assert listener.releases == 0
    finish(batcher, running)
    assert listener.releases == 1


def test_closing_ends_an_engine_s_wait(batcher: Batcher) -> None:
    waits = threading.Semaphore(0)

    def hold() -> bool:  # asked under the lock, which the queue cannot be closed without
        waits.release()
        return False

    engine = Taking(batcher, hold=hold)
    assert waits.acquire(timeout=PATIENCE_S)
    batcher.close()
    engine.thread.join(PATIENCE_S)
    assert engine.taken == [None]


def test_a_stopping_engine_leaves_the_queue_to_the_others(batcher: Batcher) -> None:
    batcher.submit(rows_of(1), Terms(LATER), Listener())
    assert batcher.take(lambda: 8, stopping=lambda: True) is None
    assert marks(take(batcher)) == [1]


def test_a_delay_counts_from_the_oldest_row_and_a_full_batch_does_not_wait(clock: Clock) -> None:
    batcher = Batcher(max_rows=16, deliver=deliver_here, predict_s=float, max_delay_s=5.0, clock=clock)
    batcher.submit(rows_of(1), Terms(1900.0), Listener())
    clock.now = 1003.0
    batcher.submit(rows_of(2), Terms(1800.0), Listener())
    clock.now = 1005.0
    assert marks(take(batcher)) == [2, 1]
    batcher.submit(rows_of(3, 4), Terms(LATER), Listener())
    assert marks(take(batcher, limit=2)) == [3, 4]


def test_a_delay_ends_by_itself() -> None:
    batcher = Batcher(max_rows=16, deliver=deliver_here, predict_s=float, max_delay_s=0.05)
    batcher.submit(rows_of(1), Terms(float("inf")), Listener())
    assert marks(take(batcher)) == [1]


def test_a_prefetching_engine_that_still_runs_closes_only_full_batches(batcher: Batcher) -> None:
    busy = True
    batcher.submit(rows_of(1), Terms(LATER), Listener())
    ahead = Taking(batcher, lambda: 3, lambda: busy)
    batcher.submit(rows_of(2), Terms(LATER), Listener())
    assert not ahead.taken
    batcher.submit(rows_of(3), Terms(LATER), Listener())
    assert marks(ahead.batch()) == [1, 2, 3]
    batcher.submit(rows_of(4), Terms(LATER), Listener())
    busy = False
    assert marks(take(batcher)) == [4]


def test_an_engine_that_waits_for_a_full_batch_is_not_woken_by_each_row(batcher: Batcher) -> None:
    looks = threading.Semaphore(0)

    def limit() -> int:
        looks.release()
        return 4

    ahead = Taking(batcher, limit, lambda: True)
    assert looks.acquire(timeout=PATIENCE_S)
    for mark in (1, 2, 3):
        batcher.submit(rows_of(mark), Terms(LATER), Listener())
    assert not looks.acquire(timeout=0.05)
    batcher.submit(rows_of(4), Terms(LATER), Listener())
    assert marks(ahead.batch()) == [1, 2, 3, 4]


def test_an_idle_engine_is_woken_at_once_beside_one_that_waits_for_a_full_batch(batcher: Batcher) -> None:
    ahead = Taking(batcher, hold=lambda: True)
    idle = Taking(batcher)
    batcher.submit(rows_of(1), Terms(LATER), Listener())
    assert marks(idle.batch()) == [1]
    assert not ahead.taken
    batcher.close()


def finish_closely(batcher: Batcher, slices: list[Slice]) -> None:
    """As an engine does for which everything is a close call."""
    batcher.finish(slices, probabilities_of(marks(slices)), began=1001.0, batch_rows=1, margin=9.0)


def test_views_whose_mean_is_a_close_call_wait_once_more_in_their_place(batcher: Batcher) -> None:
    batcher.submit(rows_of(1, 2), Terms(1010.0, averaged=True), views := Listener())
    first = take(batcher)
    batcher.submit(rows_of(3), Terms(1005.0), Listener())
    batcher.submit(rows_of(4), Terms(1020.0), Listener())
    finish_closely(batcher, first)
    assert (views.outcomes, views.releases, batcher.pending_rows) == ([], 0, 4)
    assert marks(take(batcher)) == [3]  # what is exact stands in no batch with what is not
    again = take(batcher)
    assert marks(again) == [1, 2]
    assert all(part.submission.exact for part in again)
    finish_closely(batcher, again)
    assert views.inference().batch_rows == 1
    assert views.releases == 1
    assert marks(take(batcher)) == [4]


def test_views_that_wait_once_more_can_be_late_or_given_up(batcher: Batcher, clock: Clock) -> None:
    batcher.submit(rows_of(1, 2), Terms(1010.0, averaged=True), late := Listener())
    finish_closely(batcher, take(batcher))
    given_up = batcher.submit(rows_of(3, 4), Terms(LATER, averaged=True), Listener())
    clock.now = 1011.0
    finish_closely(batcher, take(batcher))
    assert isinstance(late.error(), DeadlineExceeded)
    assert late.releases == 1
    assert batcher.cancel(given_up)
    assert batcher.pending_rows == 0


def test_views_that_would_wait_once_more_in_a_queue_that_is_closed_are_not_lost(batcher: Batcher) -> None:
    batcher.submit(rows_of(1, 2), Terms(LATER, averaged=True), views := Listener())
    batch = take(batcher)
    batcher.close()
    finish_closely(batcher, batch)
    assert isinstance(views.error(), Unavailable)
    assert views.releases == 1
    assert batcher.take(lambda: 8) is None


def test_a_waiting_engine_is_told_of_views_that_wait_once_more(batcher: Batcher) -> None:
    batcher.submit(rows_of(1, 2), Terms(LATER, averaged=True), Listener())
    batch = take(batcher)
    waiting = Taking(batcher)
    finish_closely(batcher, batch)
    assert marks(waiting.batch()) == [1, 2]


def test_who_waited_and_was_served_is_woken_no_more(batcher: Batcher) -> None:
    for mark in range(3):
        waiting = Taking(batcher)
        batcher.submit(rows_of(mark), Terms(LATER), Listener())
        assert marks(waiting.batch()) == [mark]
    assert batcher._wakes_at == []  # else each submission would wake engines that do not wait
