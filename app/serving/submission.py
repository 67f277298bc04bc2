"""What lies in the queue and what comes out of it: submissions, their slices, and the news for those who wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.engines.base import Features, Probabilities, Rows
from app.engines.close_calls import close_rows
from app.errors import HieraError
from app.serving.postprocess import average_views


@dataclass(frozen=True)
class Inference:
    """What came of one submission.

    Attributes:
        probabilities: float32 [n, classes], in the order of the rows.
        queue_s: from the submission to the start of the first batch that held one of its rows.
        inference_s: from there to the end of the last one.
        batch_rows: rows of the largest of these batches.
        features: float32 [n, D], what the classifier read of each row; None unless they were asked for.
    """

    probabilities: NDArray[np.float32]
    queue_s: float
    inference_s: float
    batch_rows: int
    features: Features | None = None


Outcome = Inference | HieraError


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms rows are to be inferred.

    Attributes:
        deadline: `time.monotonic()` seconds; rows that are late are not run.
        caller: whose turn they take: callers who wait get equal parts of an engine. "" where nobody is told apart.
        with_features: bring what the classifier read, too; the model must have features.
        averaged: the mean over the rows is what counts, and decided exactly where it is a close call.
    """

    deadline: float
    caller: str = ""
    with_features: bool = False
    averaged: bool = False


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
        "batch_rows", "began", "enqueued", "exact", "features", "in_flight", "origin", "probabilities", "receiver",
        "released", "rows", "settled", "size", "taken", "terms", "unanswered",
    )  # fmt: skip

    def __init__(self, rows: Rows, terms: Terms, enqueued: float, receiver: Receiver, origin: object = None) -> None:
        self.rows: Rows | None = rows  # None once released, so that no view of freed memory lingers
        self.size = len(rows)
        self.terms = terms
        self.enqueued = enqueued
        self.receiver = receiver
        self.origin = origin  # what the observer knows the request by
        self.exact = False  # the mean over the rows was a close call: all of them are run again, exactly
        self.taken = 0
        self.in_flight = 0
        self.unanswered = self.size
        self.began = float("inf")
        self.batch_rows = 0
        self.probabilities: Probabilities | None = None
        self.features: Features | None = None
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


def keep_answer(part: Slice, probabilities: Probabilities, features: Features | None) -> bool:
    """Keep what came of a slice, float32 [slice, classes] and [slice, D]. True with the last slice of a submission."""
    submission = part.submission
    submission.probabilities = _kept(submission.probabilities, part, probabilities)
    if features is not None and submission.terms.with_features:
        submission.features = _kept(submission.features, part, features)
    submission.unanswered -= part.size
    return submission.unanswered == 0


def is_close_call(submission: Submission, margin: float) -> bool:
    """Whether the mean of an answered submission's rows, which is what counts, has to be decided exactly."""
    if not submission.terms.averaged or submission.exact or submission.probabilities is None:
        return False
    return bool(close_rows(average_views(submission.probabilities)[np.newaxis], margin))


def inference_of(submission: Submission, now: float) -> Inference:
    """What came of a submission all of whose rows are answered."""
    if submission.probabilities is None:
        raise RuntimeError("an inference was asked for before all rows were answered")
    return Inference(
        submission.probabilities,
        queue_s=submission.began - submission.enqueued,
        inference_s=now - submission.began,
        batch_rows=submission.batch_rows,
        features=submission.features,
    )


def _kept(kept: NDArray[np.float32] | None, part: Slice, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is known of a submission, float32 [size, width], with the values of one more slice."""
    if part.size == part.submission.size:
        return values
    if kept is None:
        kept = np.empty((part.submission.size, values.shape[1]), np.float32)
    kept[part.start : part.stop] = values
    return kept
