"""An engine, rows and receivers that a test can steer; everything else in these tests is the real part."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, cast

import numpy as np
import pytest

from app.engines.base import EngineInfo, Features, Probabilities, Rows
from app.errors import HieraError
from app.media.shared import DecodedRows, SharedBytes
from app.media.spec import DecodeInfo, DecodeJob, VideoSpec, View
from app.repository.manifest import Manifest, Preprocessing, Sampling, Weights
from app.serving.batcher import Batcher
from app.serving.curve import BatchCurve
from app.serving.submission import Inference, Outcome, Receiver, Settlement, Submission, Terms

ROW_SHAPE = (2, 2, 3)
CLASSES = 7
FEATURES = 3
PATIENCE_S = 10.0  # bound of every wait in these tests; never reached when the code is right


def rows_of(*marks: int) -> Rows:
    """One row for each mark: all of its bytes are the mark, and the fake engine names class `mark % CLASSES`."""
    rows = np.empty((len(marks), *ROW_SHAPE), np.uint8)
    for index, mark in enumerate(marks):
        rows[index] = mark
    return rows


def marks_of(rows: Rows) -> list[int]:
    return [int(row.flat[0]) for row in rows]


class FakeEngine:
    """Names each row's class by its mark. `before_run(marks)` may block or raise; `batches` records what was run."""

    def __init__(
        self, before_run: Callable[[list[int]], None] = lambda marks: None, *, max_batch: int = 8, device: str = "cpu"
    ) -> None:
        self.info = EngineInfo("fake", "fp32", device)
        self.row_shape: tuple[int, ...] = ROW_SHAPE
        self.classes = CLASSES
        self.max_batch = max_batch
        self.before_run = before_run
        self.batches: list[list[int]] = []
        self.closed = threading.Event()

    def empty_rows(self, n: int) -> Rows:
        return np.empty((n, *self.row_shape), np.uint8)

    def run(self, rows: Rows) -> Probabilities:
        marks = marks_of(rows)
        self.batches.append(marks)
        self.before_run(marks)
        return probabilities_of(marks_of(rows))

    def close(self) -> None:
        self.closed.set()


class FeaturesEngine(FakeEngine):
    """A fake engine that says what it read, too; `fetched` has the batches that it was asked that of."""

    def __init__(
        self, before_run: Callable[[list[int]], None] = lambda marks: None, *, max_batch: int = 8, device: str = "cpu"
    ) -> None:
        super().__init__(before_run, max_batch=max_batch, device=device)
        self.feature_dim = FEATURES
        self.fetched: list[list[int]] = []
        self._last: list[int] = []  # that went well

    def run(self, rows: Rows) -> Probabilities:
        probabilities = super().run(rows)
        self._last = marks_of(rows)
        return probabilities

    def features(self) -> Features:
        self.fetched.append(self._last)
        return fake_features(self._last)


def fake_features(marks: Sequence[int]) -> Features:
    """What `FeaturesEngine` reads of rows: float32 [n, FEATURES], their marks and fractions that count up."""
    features = np.empty((len(marks), FEATURES), np.float32)
    features[...] = np.array(marks)[:, None] + np.arange(FEATURES) / 4
    return features


def probabilities_of(marks: Sequence[int]) -> Probabilities:
    probabilities = np.full((len(marks), CLASSES), 0.05, np.float32)
    probabilities[np.arange(len(marks)), np.array(marks) % CLASSES] = 1 - 0.05 * (CLASSES - 1)
    return probabilities


def classes_of(inference: Inference) -> list[int]:
    return [int(best) for best in inference.probabilities.argmax(axis=1)]


class Gate:
    """Stops an engine inside `run` until the test lets it go on: `FakeEngine(gate)`."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._open = threading.Semaphore(0)
        self._wide_open = False

    def __call__(self, marks: list[int]) -> None:
        self._entered.release()
        if not self._wide_open and not self._open.acquire(timeout=PATIENCE_S):
            raise AssertionError("the test never opened the gate")

    def wait_entered(self) -> None:
        """Until one more run has begun."""
        assert self._entered.acquire(timeout=PATIENCE_S), "no run began"

    def let_one_pass(self) -> None:
        self._open.release()

    def open(self) -> None:
        """From now on nothing is stopped."""
        self._wide_open = True
        self._open.release(1000)


class Listener:
    """A receiver that notes what it is told, and how often."""

    def __init__(self) -> None:
        self.loop = cast(asyncio.AbstractEventLoop, None)  # `deliver_here` needs none
        self.outcomes: list[Outcome] = []
        self.releases = 0
        self.settled = threading.Event()
        self.released = threading.Event()

    def settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.settled.set()

    def release(self) -> None:
        self.releases += 1
        self.released.set()

    def outcome(self) -> Outcome:
        assert self.settled.wait(PATIENCE_S), "never settled"
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    def inference(self) -> Inference:
        outcome = self.outcome()
        assert isinstance(outcome, Inference), outcome
        return outcome

    def error(self) -> HieraError:
        outcome = self.outcome()
        assert isinstance(outcome, HieraError), outcome
        return outcome


def deliver_here(news: Sequence[Settlement]) -> None:
    """Tells receivers at once, on the thread that brings the news."""
    for settlement in news:
        if settlement.outcome is not None:
            settlement.receiver.settle(settlement.outcome)
        if settlement.release:
            settlement.receiver.release()


def note_terms(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> list[Terms]:
    """On what terms rows are submitted from here on."""
    noted: list[Terms] = []
    submit = batcher.submit

    def note(rows: Rows, terms: Terms, receiver: Receiver, origin: object = None) -> Submission:
        noted.append(terms)
        return submit(rows, terms, receiver, origin)

    monkeypatch.setattr(batcher, "submit", note)
    return noted


class Clock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeRows:
    """Decoded rows as the media pool gives them, counting how often they are closed."""

    def __init__(self, rows: Rows, views: tuple[View, ...] = (), decode_s: float = 0.001) -> None:
        self._rows = rows
        self.info = DecodeInfo(width=2, height=2, format="fake", views=views)
        self.decode_s = decode_s
        self.fd = -1
        self.reused = False
        self.closes = 0

    @property
    def rows(self) -> Rows:
        return self._rows

    def close(self) -> None:
        self.closes += 1


def flat_curve(useful: int = 8, seconds: float = 0.01) -> BatchCurve:
    """A batch costs the same whatever its size, up to `useful` rows."""
    sizes = tuple(size for size in (1, 2, 4, 8, 16) if size <= useful)
    return BatchCurve(sizes, (seconds,) * len(sizes))


def manifest_of(name: str = "model", task: Literal["image", "video"] = "image", version: int = 1) -> Manifest:
    """A manifest for the fake engine's rows."""
    return Manifest(
        name=name,
        version=version,
        task=task,
        variant="fake",
        description="for tests",
        num_classes=CLASSES,
        feature_dim=1,
        parameters=1,
        precision="fp32",
        preprocessing=Preprocessing(
            resize_short_side=2, height=2, width=2, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
        ),
        sampling=Sampling(frames=4) if task == "video" else None,
        weights=Weights(source="a test", licence="none", commercial_use=True),
        files={},
        tools={},
    )


class FakePool:
    """A media pool without processes: a body's bytes are the marks of its rows. `before(body)` may wait or raise."""

    def __init__(self) -> None:
        self.before: Callable[[bytes], Awaitable[None]] | None = None
        self.made: list[FakeRows] = []
        self.callers: list[str] = []

    async def decode(self, body: SharedBytes, job: DecodeJob, deadline: float, caller: str = "") -> DecodedRows:
        self.callers.append(caller)
        marks = bytes(body.small)  # the marks of a test are a small file
        if self.before is not None:
            await self.before(marks)
        views: tuple[View, ...] = ()
        if isinstance(job.spec, VideoSpec):
            views = tuple(
                View(clip, crop, 1.0 * clip, clip + 2.0) for clip in range(job.clips) for crop in range(job.crops)
            )
        rows = FakeRows(rows_of(*marks), views)
        self.made.append(rows)
        return cast(DecodedRows, rows)
