"""What a batch costs, by its size: measured at warm-up, used to choose the batch size and to predict waiting times."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from app.engines.base import Engine, Probabilities, Rows, batch_ladder
from app.errors import EngineOutOfMemory

# A larger batch must raise the throughput by this much to be worth its latency.
WORTHWHILE_GAIN = 0.05
# What a batch may take that is larger than it need be: a row that is more urgent has to wait for it.
_MOMENT_S = 0.15
# Sizes in a row that gain nothing before the climb ends: one may be a slow shape or a disturbed measurement.
_PATIENCE = 2
_MIN_RUNS = 3
_MAX_RUNS = 30
_SECONDS_PER_SIZE = 0.1


class Sample(Protocol):
    """Rows to run an engine on, and a look at what it says of them."""

    def fill(self, batch: Rows) -> None: ...

    def check(self, engine: Engine, probabilities: Probabilities) -> None:
        """Raises PackageError where the engine is wrong about rows of `fill`."""
        ...


class GreyRows:
    """A `Sample` about which nothing is known."""

    def fill(self, batch: Rows) -> None:
        batch[...] = 127

    def check(self, engine: Engine, probabilities: Probabilities) -> None:
        """Any answer will do."""


_GREY_ROWS = GreyRows()


@dataclass(frozen=True)
class BatchCurve:
    """Seconds of a batch at each measured size.

    Attributes:
        rows: sizes, ascending, starting at 1.
        seconds: cost of a batch of each size.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.seconds) or self.rows[:1] != (1,) or list(self.rows) != sorted(set(self.rows)):
            raise ValueError("a batch curve has one cost for each of some ascending sizes, the first of which is 1")
        if any(not 0 < seconds < float("inf") for seconds in self.seconds):
            raise ValueError("a batch costs a positive number of seconds")

    @cached_property
    def useful_rows(self) -> int:
        """The smallest size whose throughput is within 5% of the best: 1 where batching gains nothing."""
        return self._good_sizes()[0]

    @cached_property
    def deep_rows(self) -> int:
        """The largest size within 5% of the best whose batch takes a moment at most; the useful one where that is more.

        The engine gains nothing by it, but the server does where many rows wait: fewer batches are fewer hand-overs.
        """
        quick = [rows for rows in self._good_sizes() if self.batch_s(rows) <= _MOMENT_S]
        return max([self.useful_rows, *quick])

    def deep_rows_of(self, waiting: int, even: int) -> int:
        """How many of `waiting` rows a deep batch takes: half, as the rest is for who comes next and for the other
        instances; no more than the `even` ones, those before one of the callers has none left, who would only wait for
        others' rows; and a measured size, as a device runs at those and fills up what lies between. 0 where that is
        none.
        """
        most = min(self.deep_rows, waiting // 2, even)
        return max((rows for rows in self.rows if rows <= most), default=0)

    def _good_sizes(self) -> list[int]:
        enough = self.rows_per_s * (1 - WORTHWHILE_GAIN)
        return [rows for rows, seconds in zip(self.rows, self.seconds, strict=True) if rows / seconds >= enough]

    @cached_property
    def rows_per_s(self) -> float:
        """The best throughput of any measured size."""
        return max(rows / seconds for rows, seconds in zip(self.rows, self.seconds, strict=True))

    def batch_s(self, rows: int) -> float:
        """Cost of one batch in seconds, linear between the measured sizes and proportional beyond the last."""
        if rows <= 0:
            return 0.0
        at = bisect_left(self.rows, rows)
        if at == len(self.rows):
            return self.seconds[-1] * rows / self.rows[-1]
        if self.rows[at] == rows:
            return self.seconds[at]
        low, high = self.rows[at - 1], self.rows[at]
        share = (rows - low) / (high - low)
        return self.seconds[at - 1] * (1 - share) + self.seconds[at] * share

    def predict_s(self, rows: int) -> float:
        """Seconds that one engine takes for `rows` rows in batches of the useful size."""
        full, rest = divmod(max(rows, 0), self.useful_rows)
        return full * self._useful_s + self.batch_s(rest)

    @cached_property
    def _useful_s(self) -> float:
        return self.batch_s(self.useful_rows)


class CostModel:
    """A curve that follows what is observed: under other load a machine is slower than at warm-up. Thread-safe."""

    # Weight of one batch in the correction; about the last fifty batches count.
    _WEIGHT = 0.02
    _SLOWEST = 16.0
    _FASTEST = 1 / 16

    def __init__(self, curve: BatchCurve) -> None:
        self.curve = curve
        self._correction = 1.0
        self._lock = threading.Lock()

    @property
    def correction(self) -> float:
        """Observed seconds over measured ones, lately."""
        return self._correction

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of `rows` rows has just taken `seconds`."""
        ratio = min(max(seconds / self.curve.batch_s(rows), self._FASTEST), self._SLOWEST)
        with self._lock:
            self._correction += self._WEIGHT * (ratio - self._correction)

    def follow(self, correction: float) -> None:
        """Take over what another process has observed."""
        self._correction = correction

    def batch_s(self, rows: int) -> float:
        return self.curve.batch_s(rows) * self._correction

    def predict_s(self, rows: int) -> float:
        return self.curve.predict_s(rows) * self._correction


def measure_curve(
    engines: Sequence[Engine],
    *,
    budget_s: float,
    sample: Sample = _GREY_ROWS,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchCurve:
    """Run, check and time the ladder up to the engines' `max_batch`, smallest first.

    The climb stops early when two sizes in a row gain nothing, when the next size is predicted not to fit in what is
    left of `budget_s`, or when the device has no room. Of several runs the fastest counts: others only disturb.

    Args:
        engines: one, or several of a kind that serve side by side: the cost is what a batch takes on one of them while
            all run.
        sample: what they are run on. Engines have kernels for some sizes that they do not use for others, so each size
            is checked that may serve.

    Raises:
        EngineError: a batch failed.
        PackageError: `sample` finds an engine wrong.
    """
    end = clock() + budget_s
    rows: list[int] = []
    costs: list[float] = []
    stale = 0
    for size in batch_ladder(engines[0].max_batch):
        if rows:
            # One warming run and two timed ones at least, at the cost per row known so far.
            expected_s = 3 * costs[-1] * size / rows[-1]
            if stale >= _PATIENCE or clock() + expected_s > end:
                break
        best_rate = max((n / cost for n, cost in zip(rows, costs, strict=True)), default=0.0)
        try:
            cost = _time_batch(engines, size, end, sample, clock)
        except EngineOutOfMemory:
            if not rows:
                raise
            break
        rows.append(size)
        costs.append(cost)
        stale = 0 if size / cost >= best_rate * (1 + WORTHWHILE_GAIN) else stale + 1
    return BatchCurve(tuple(rows), tuple(costs))


def warm_up(engine: Engine, curve: BatchCurve, sample: Sample = _GREY_ROWS) -> None:
    """Run and check each measured size that will be used: the first run of a shape allocates and selects kernels.

    It ends early where the device has no room for a size: an instance goes on with smaller batches.

    Raises:
        EngineError: a batch failed.
        EngineOutOfMemory: there is no room for a single row.
        PackageError: `sample` finds the engine wrong.
    """
    for size in curve.rows:
        if size > min(curve.deep_rows, engine.max_batch):
            return
        try:
            probabilities = engine.run(_batch(engine, size, sample))
        except EngineOutOfMemory:
            if size == 1:
                raise
            return
        sample.check(engine, probabilities)


def time_one_row(engines: Sequence[Engine], *, runs: int = 2, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a batch of one row on each of `engines` at once, the fastest of `runs`; all are warm."""
    with _Rounds(engines, 1, _GREY_ROWS) as run:
        return min(_timed(run, clock) for _ in range(runs))


def _time_batch(engines: Sequence[Engine], size: int, end: float, sample: Sample, clock: Callable[[], float]) -> float:
    with _Rounds(engines, size, sample) as run:
        # The first run of a shape allocates and selects kernels.
        for engine, probabilities in zip(engines, run(), strict=True):
            sample.check(engine, probabilities)
        fastest = float("inf")
        spent = 0.0
        for count in range(1, _MAX_RUNS + 1):
            seconds = _timed(run, clock)
            fastest = min(fastest, seconds)
            spent += seconds
            if count >= _MIN_RUNS and (spent >= _SECONDS_PER_SIZE or clock() > end):
                break
    # A no-op engine may be quicker than the clock's tick; a cost of zero would predict infinite throughput.
    return max(fastest, 1e-7)


def _timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    begin = clock()
    run()
    return clock() - begin


def _batch(engine: Engine, size: int, sample: Sample) -> Rows:
    batch = engine.empty_rows(size)
    sample.fill(batch)
    return batch


class _Rounds:
    """Runs a batch of `size` rows on every engine at once, as often as it is called."""

    def __init__(self, engines: Sequence[Engine], size: int, sample: Sample) -> None:
        self._batches = [(engine, _batch(engine, size, sample)) for engine in engines]
        self._pool = ThreadPoolExecutor(len(engines)) if len(engines) > 1 else None

    def __enter__(self) -> Callable[[], list[Probabilities]]:
        return self._run

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _run(self) -> list[Probabilities]:
        if self._pool is None:
            ((engine, batch),) = self._batches
            return [engine.run(batch)]
        return [done.result() for done in [self._pool.submit(engine.run, batch) for engine, batch in self._batches]]
