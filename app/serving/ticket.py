"""What an admitted request holds until it is answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from app.errors import DeadlineExceeded
from app.media.spec import DecodeJob, rows_of
from app.serving.admission import Reservation
from app.serving.model import LoadedModel
from app.serving.results import ClassifyOptions


class Ticket:
    """An admitted request. Use it as a context manager, or call `release`; both are harmless twice.

    Attributes:
        model: who will answer.
        options: the caller's.
        job: what each file is decoded to.
        deadline: `time.monotonic()` seconds.
        reservation: its share of what may be in flight.

    Args:
        predict_decode_s: seconds until one more file would be decoded, by its deadline.
        on_release: told once, when everything was given back.
    """

    __slots__ = (
        "_on_release",
        "_predict_decode_s",
        "_released",
        "deadline",
        "job",
        "model",
        "options",
        "reservation",
    )

    def __init__(
        self,
        model: LoadedModel,
        options: ClassifyOptions,
        job: DecodeJob,
        deadline: float,
        reservation: Reservation,
        predict_decode_s: Callable[[float], float],
        on_release: Callable[[], object],
    ) -> None:
        self._predict_decode_s = predict_decode_s
        self._on_release = on_release
        self._released = False
        self.model = model
        self.options = options
        self.job = job
        self.deadline = deadline
        self.reservation = reservation

    @property
    def caller(self) -> str:
        return self.reservation.held.caller

    def grow(self, *, files: int = 0, body_bytes: int = 0) -> None:
        """Reserve room for more files or bytes than `admit` was told of.

        Raises:
            Overloaded: there is no room; what was reserved before stays.
        """
        rows = files * rows_of(self.job)
        self.reservation.grow(rows=rows, nbytes=rows * self.model.row_nbytes + body_bytes)

    def hurry(self, deadline: float) -> None:
        """The caller bears no more than this, `time.monotonic()` seconds. A later deadline than it has is none.

        Raises:
            DeadlineExceeded: it has passed.
        """
        if deadline < self.deadline:
            self.deadline = deadline
            self.reservation.hurry(deadline)
        if self.deadline <= time.monotonic():
            raise DeadlineExceeded("the deadline passed while the request was read")

    def set_aside(self) -> None:
        """The upload takes long: until `resume`, it does not count in what others are predicted to wait."""
        self.reservation.set_aside()

    def resume(self) -> None:
        """The upload is complete.

        Raises:
            Overloaded: it was set aside, and the deadline cannot be made any more.
        """
        self.reservation.resume(self._predict_decode_s(self.deadline))

    def release(self) -> None:
        """Give back what the request held."""
        if not self._released:
            self._released = True
            self.reservation.release()
            self.model.release()
            self._on_release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
