"""The queue in front of a model's engines: work-conserving and late-closing.

Engine threads take their batch straight out of the queue under one lock. An idle engine takes whatever waits, at once;
while a batch runs, the next one fills, and it closes only when an engine is free, without rows that were cancelled or
have expired meanwhile. Callers take turns, row by row; what one caller sent goes in order of deadline. The unit is the
row: a request of many rows is cut where a batch is full.

A submission's life, all under the lock:

    pending ──take──> in flight ──finish──> answered         settled once: result, error, expiry, cancellation or close
        ├──cancel, expiry, close──> dropped                  released once: settled, and no engine reads its rows any
        └──<── a mean that is a close call, once             more
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from app.engines.base import Features, Probabilities, Rows
from app.errors import DeadlineExceeded, HieraError, Overloaded, Unavailable
from app.serving.submission import (
    Outcome,
    Receiver,
    Settlement,
    Slice,
    Submission,
    Terms,
    inference_of,
    is_close_call,
    keep_answer,
)
from app.turns import Turns

Deliver = Callable[[Sequence[Settlement]], None]


def _never() -> bool:
    return False


class Batcher:
    """Thread-safe queue of rows for one model.

    Args:
        max_rows: the most rows that may wait; a backstop behind admission.
        deliver: takes the news to the receivers; called without the lock, from any thread, in one call for a batch.
        predict_s: seconds that so many waiting rows will take, for `Overloaded.retry_after_s`.
        max_delay_s: how long an idle engine may wait for a fuller batch, from the arrival of the oldest row; 0 is best
            unless rows arrive one by one and batches pay.
        on_depth: told of every change of the waiting rows; called under the lock, so it must be quick.
        clock: monotonic seconds, those of the deadlines.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        deliver: Deliver,
        predict_s: Callable[[int], float],
        max_delay_s: float = 0.0,
        on_depth: Callable[[int], None] = lambda rows: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_rows = max_rows
        self._deliver = deliver
        self._predict_s = predict_s
        self._max_delay_s = max_delay_s
        self._on_depth = on_depth
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._queue: Turns[Submission] = Turns()
        self._pending = 0
        self._pending_of: dict[str, int] = {}  # by caller; none is 0
        self._closed = False
        self._wakes_at: list[int] = []  # of each waiting `take`, the pending rows that it waits for

    @property
    def pending_rows(self) -> int:
        """Rows that wait, without those that an engine holds."""
        return self._pending

    @property
    def even_rows(self) -> int:
        """Rows that can be taken in turns before one of the callers who wait has none left."""
        lines = self._pending_of.values()
        return len(lines) * min(lines, default=0)

    def submit(self, rows: Rows, terms: Terms, receiver: Receiver, origin: object = None) -> Submission:
        """Queue `rows`, uint8 [n, *row_shape], which must stay readable until the receiver's `release`. `origin` is for
        the observer of the batches (`ServingObserver.origin`). Where the mean over the rows is what counts, they are
        run again if that is a close call.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the queue is closed.
        """
        now = self._clock()
        submission = Submission(rows, terms, now, receiver, origin)
        with self._changed:
            if self._closed:
                raise Unavailable("the model is being unloaded; try again")
            # One submission may be larger than the queue, as in admission: refused now, it would be refused for ever.
            if self._pending and self._pending + submission.size > self._max_rows:
                wait_s = self._predict_s(self._pending)
                raise Overloaded("the queue is full; try again later", retry_after_s=wait_s)
            self._push(submission)
        return submission

    def cancel(self, submission: Submission) -> bool:
        """Nobody waits for `submission` any more; harmless when it is settled.

        Returns:
            True when its rows may be given back now; False when the receiver's `release` has been or will be called.
        """
        with self._changed:
            if submission.settled:
                return False
            submission.settled = True
            self._drop_pending(submission)
            return self._try_release(submission)

    def take(
        self, limit: Callable[[], int], *, stopping: Callable[[], bool] = _never, hold: Callable[[], bool] = _never
    ) -> list[Slice] | None:
        """Block until there is a batch, and close it.

        Args:
            limit: the most rows to take, asked when the batch closes.
            stopping: asked after every wake-up; True ends the wait.
            hold: while True, only a full batch is closed. A prefetching engine that is still running says so: closing
                a batch that could still grow would gain it nothing. Who changes the answer calls `wake`.

        Returns:
            Slices in their turns, of one caller in order of deadline, first come first served among equals; None when
            stopping, or closed and empty.
        """
        while True:
            with self._changed:
                batch, expired = self._wait_for_batch(limit, stopping, hold)
            if expired:
                self._deliver(expired)
            if batch or not expired:
                return batch

    def finish(
        self,
        slices: Sequence[Slice],
        result: Probabilities | HieraError,
        features: Features | None = None,
        *,
        began: float,
        batch_rows: int,
        margin: float = 0.0,
    ) -> None:
        """Hand in what became of slices that were taken.

        Args:
            slices: all of one run, in its order.
            result: float32 [rows of the slices, classes], or why there is none.
            features: float32 [rows of the slices, D] where a slice wants them.
            began: when the run began, by the batcher's clock.
            batch_rows: rows of the run.
            margin: of close calls, as `close_rows` has it; 0 where the engine cannot decide them any better.
        """
        now = self._clock()
        news: list[Settlement] = []
        with self._changed:
            offset = 0
            for part in slices:
                submission = part.submission
                submission.in_flight -= part.size
                outcome: Outcome | None = None
                if isinstance(result, HieraError):
                    outcome = self._fail(submission, result)
                elif not submission.settled:
                    submission.began = min(submission.began, began)
                    submission.batch_rows = max(submission.batch_rows, batch_rows)
                    rows = slice(offset, offset + part.size)
                    if keep_answer(part, result[rows], None if features is None else features[rows]):
                        outcome = self._answer(submission, margin, now)
                offset += part.size
                released = self._try_release(submission)
                if outcome is not None or released:
                    news.append(Settlement(submission.receiver, outcome, released))
        if news:
            self._deliver(news)

    def fail(self, slices: Iterable[Slice], error: HieraError) -> None:
        """Settle submissions whose slices an engine still holds, without taking the rows from it (it may be stuck)."""
        with self._changed:
            outcomes = [(part.submission.receiver, self._fail(part.submission, error)) for part in slices]
            news = [Settlement(receiver, outcome, False) for receiver, outcome in outcomes if outcome is not None]
        if news:
            self._deliver(news)

    def wake(self) -> None:
        """Let every waiting `take` ask its `stopping`, `hold` and `limit` again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Refuse new rows and settle the waiting ones as `Unavailable`; batches in flight finish as usual."""
        with self._changed:
            self._closed = True
            waiting = list(self._queue)
            error = Unavailable("the model was unloaded; try again")
            outcomes = [(submission, self._fail(submission, error)) for submission in waiting]
            news = [Settlement(each.receiver, outcome, self._try_release(each)) for each, outcome in outcomes]
            self._changed.notify_all()
        if news:
            self._deliver(news)

    def _answer(self, submission: Submission, margin: float, now: float) -> Outcome | None:
        """What to settle a submission with, all of whose rows are answered; None if they are to be run again."""
        if not is_close_call(submission, margin):
            submission.settled = True
            return inference_of(submission, now)
        if self._closed:  # no engine may take it any more
            return self._fail(submission, Unavailable("the model was unloaded; try again"))
        submission.exact = True
        submission.taken, submission.unanswered = 0, submission.size
        self._push(submission)
        return None

    def _push(self, submission: Submission) -> None:
        self._queue.add(submission, submission.terms.caller, submission.terms.deadline)
        self._count(submission, submission.size)
        self._on_depth(self._pending)
        # A thread that would only look and wait again costs as much as the rest of a submission.
        if self._wakes_at and self._pending >= min(self._wakes_at):
            self._changed.notify_all()

    def _wait_for_batch(
        self, limit: Callable[[], int], stopping: Callable[[], bool], hold: Callable[[], bool]
    ) -> tuple[list[Slice] | None, list[Settlement]]:
        while True:
            if stopping():
                return None, []
            now = self._clock()
            expired = self._drop_expired(now)
            if self._queue:
                rows = limit()
                full = self._pending >= rows
                delay_s = 0.0 if full else self._delay_left_s(now)
                if full or (delay_s <= 0 and not hold()):
                    return self._close_batch(rows), expired
                wakes_at = rows
            else:
                delay_s = 0.0
                if self._closed:
                    return None, expired
                wakes_at = limit() if hold() else 1
            if expired:
                return None, expired
            self._wakes_at.append(wakes_at)
            self._changed.wait(delay_s if delay_s > 0 else None)
            self._wakes_at.remove(wakes_at)

    def _delay_left_s(self, now: float) -> float:
        if self._max_delay_s == 0:
            return 0.0
        return min(submission.enqueued for submission in self._queue) + self._max_delay_s - now

    def _close_batch(self, rows: int) -> list[Slice]:
        batch: list[Slice] = []
        while rows and self._queue:
            submission = self._queue.first()
            if batch and submission.exact != batch[0].submission.exact:
                break
            size = min(rows, submission.size - submission.taken)
            batch.append(Slice(submission, submission.taken, submission.taken + size))
            submission.taken += size
            submission.in_flight += size
            self._count(submission, -size)
            rows -= size
            if submission.taken == submission.size:
                self._queue.pop()
            self._queue.charge(submission.terms.caller, size)
        self._on_depth(self._pending)
        return batch

    def _count(self, submission: Submission, rows: int) -> None:
        """So many more rows wait, or fewer."""
        caller = submission.terms.caller
        self._pending += rows
        self._pending_of[caller] = self._pending_of.get(caller, 0) + rows
        if not self._pending_of[caller]:
            del self._pending_of[caller]

    def _drop_expired(self, now: float) -> list[Settlement]:
        news: list[Settlement] = []
        while (submission := self._expired(now)) is not None:
            outcome = self._fail(submission, DeadlineExceeded("the deadline passed before an engine was free"))
            news.append(Settlement(submission.receiver, outcome, self._try_release(submission)))
        return news

    def _expired(self, now: float) -> Submission | None:
        return next((each for each in self._queue.most_urgent() if each.terms.deadline <= now), None)

    def _fail(self, submission: Submission, error: HieraError) -> HieraError | None:
        """Settle as failed; None when it was settled before."""
        if submission.settled:
            return None
        submission.settled = True
        self._drop_pending(submission)
        return error

    def _drop_pending(self, submission: Submission) -> None:
        waiting = submission.size - submission.taken
        if waiting:
            # Removed at once and not when its turn comes: cancelled rows must not fill the queue of a busy engine.
            self._queue.remove(submission, submission.terms.caller)
            self._count(submission, -waiting)
            self._on_depth(self._pending)
            submission.taken = submission.size

    def _try_release(self, submission: Submission) -> bool:
        if submission.released or not submission.settled or submission.in_flight:
            return False
        submission.released = True
        submission.rows = None
        return True
