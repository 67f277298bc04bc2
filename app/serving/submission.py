"""What lies in the queue and what comes out of it: submissions, their slices, and the news for those who wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.engines.base import Probabilities, Rows
from app.errors import HieraError


@dataclass(frozen=True)
class Inference:
    """What came of one submission.

    Attributes:
        probabilities: float32 [n, classes], in the order of the rows.
        queue_s: from the submission to the start of the first batch that held one of its rows.
        inference_s: from there to the end of the last one.
        batch_rows: rows of the largest of these batches.
    """

    probabilities: NDArray[np.float32]
    queue_s: float
    inference_s: float
    batch_rows: int


Outcome = Inference | HieraError


class Receiver(Protocol):
    """Who waits for a submission, and on which event loop it wants its news."""

    loop: asyncio.AbstractEventLoop

    def settle(self, outcome: Outcome) -> None:
        """Called at most once; not at all after a cancellation."""
        ...

    def release(self) -> None:
        """Called at most once, when no engine reads the rows any more; not when `Batcher.cancel` has returned True."""
        ...


class Submission:
    """The rows of one request in the queue. Its fields change under the batcher's lock alone."""

    __slots__ = (
        "batch_rows", "began", "deadline", "enqueued", "in_flight", "origin", "probabilities", "receiver", "released",
        "rows", "settled", "size", "taken", "unanswered",
    )  # fmt: skip

    def __init__(self, rows: Rows, deadline: float, enqueued: float, receiver: Receiver, origin: object = None) -> None:
        self.rows: Rows | None = rows  # None once released, so that no view of freed memory lingers
        self.size = len(rows)
        self.deadline = deadline
        self.enqueued = enqueued
        self.receiver = receiver
        self.origin = origin  # what the observer knows the request by
        self.taken = 0
        self.in_flight = 0
        self.unanswered = self.size
        self.began = float("inf")
        self.batch_rows = 0
        self.probabilities: Probabilities | None = None
        self.settled = False
        self.released = False


@dataclass(frozen=True, eq=False)
class Slice:
    """Rows `start` to `stop` of a submission: its part in one batch."""

    submission: Submission
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def wanted(self) -> bool:
        """False when nobody waits for it any more. May turn False at any moment, never True again."""
        return not self.submission.settled

    def rows(self) -> Rows:
        """uint8 [size, *row_shape], a view that is good until the slice is finished."""
        rows = self.submission.rows
        if rows is None:
            raise RuntimeError("the rows of a slice were asked for after it was finished")
        return rows[self.start : self.stop]


@dataclass(frozen=True)
class Settlement:
    """News for one receiver: an outcome, or that its rows are free, or both."""

    receiver: Receiver
    outcome: Outcome | None
    release: bool


def keep_answer(submission: Submission, part: Slice, probabilities: Probabilities, now: float) -> Inference | None:
    """Keep a slice's probabilities, float32 [slice, classes]; the whole inference when it was the last slice."""
    if part.size == submission.size:
        submission.probabilities = probabilities
    else:
        if submission.probabilities is None:
            submission.probabilities = np.empty((submission.size, probabilities.shape[1]), np.float32)
        submission.probabilities[part.start : part.stop] = probabilities
    submission.unanswered -= part.size
    if submission.unanswered:
        return None
    submission.settled = True
    return Inference(
        submission.probabilities,
        queue_s=submission.began - submission.enqueued,
        inference_s=now - submission.began,
        batch_rows=submission.batch_rows,
    )
