"""An engine and the thread that owns it: take a batch, gather its rows, run, hand the results in.

A batch that fails is run again by halves, so that only the row to blame fails; a batch that the device has no room for
is cut and lowers the ceiling, which rises again while all goes well. What is run or gathered, and since when, is there
for a supervisor to see.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from app.engines.base import Engine, features_of
from app.engines.close_calls import CloseCalls
from app.errors import EngineError, EngineOutOfMemory, HieraError
from app.serving.batcher import Batcher
from app.serving.company import Company
from app.serving.curve import CostModel
from app.serving.gather import BatchSource, Busy, GatheredBatch
from app.serving.golden import run_checked
from app.serving.observer import ServingObserver

logger = logging.getLogger(__name__)

# Batches in a row of which not a single row came out before the engine itself is suspected.
_SUSPECT_AFTER = 3
# Batches as large as a lowered ceiling allows before it is doubled: without room still, one in so many is cut.
_RAISE_AFTER = 300


class Instance:
    """Runs one engine on one thread until it is stopped or abandoned.

    Args:
        model: the name for metrics and logs.
        engine: owned from here on; closed by the thread when it ends, or by `start` where there is no thread.
        batcher: where the rows come from.
        cost: told of every run; its curve gives the batch size that is worth having.
        prove: raises when the engine no longer answers rightly; called after several batches failed as a whole.
        company: the other engines of the model on the same cores, and the one that has them all; None without such.

    Attributes:
        busy: the run in progress; None when there is none.
    """

    def __init__(
        self,
        model: str,
        engine: Engine,
        batcher: Batcher,
        cost: CostModel,
        observer: ServingObserver,
        *,
        prove: Callable[[Engine], object],
        company: Company | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._engine = engine
        self._batcher = batcher
        self._cost = cost
        self._observer = observer
        self._prove = prove
        self._company = company
        self._clock = clock
        self._ceiling = engine.max_batch
        self._full_batches = 0
        self._stopping = False
        self._failed_batches = 0
        self._source = BatchSource(model, batcher, engine, self._limit, lambda: self._stopping, clock)
        self._thread = threading.Thread(target=self._serve, name=f"engine-{model}", daemon=True)
        self.busy: Busy | None = None
        self.failure: str | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread runs. One that was not stopped and is not alive has died."""
        return self._thread.is_alive()

    @property
    def max_batch(self) -> int:
        """The most rows of a batch now: the useful size of the curve, under the ceiling that memory allows."""
        return self._limit()

    @property
    def gathering(self) -> Busy | None:
        """The batch that is being gathered; None when there is none. In front of a GPU another thread does it."""
        return self._source.gathering

    def start(self) -> None:
        """Raises RuntimeError where there is no thread to be had; the engine is closed then."""
        try:
            self._thread.start()
        except RuntimeError:
            self._engine.close()
            raise

    def stop(self) -> None:
        """Finish the batch in progress, take no other, close the engine."""
        self._stopping = True
        self._batcher.wake()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; False when it has not."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def abandon(self, error: HieraError) -> None:
        """Give the instance up: settle what it holds and wait no more. The rows are freed if its run ever returns."""
        self.stop()
        self._source.abandon(error)

    def _limit(self) -> int:
        curve = self._cost.curve
        deep = curve.deep_rows_of(self._batcher.pending_rows, self._batcher.even_rows)
        rows = max(curve.useful_rows, deep)
        return max(1, min(rows, self._ceiling))

    def _serve(self) -> None:
        try:
            self._source.start()
            while (batch := self._source.next()) is not None:
                self._failed_batches = 0 if self._run(batch) else self._failed_batches + 1
                if self._failed_batches >= _SUSPECT_AFTER:
                    self._failed_batches = 0
                    # An engine that fails may hang as well. The proof has a few rows, in batches of so many at most.
                    self.busy = Busy(self._clock(), self._engine.max_batch)
                    self._prove(self._engine)
                    self.busy = None
        except BaseException as error:
            # Nothing of a thread's death may be lost: the supervisor rebuilds, the rows are settled below.
            logger.exception("the engine thread of %s died", self._model)
            self.failure = f"{type(error).__name__}: {error}"
        finally:
            self._stopping = True
            self._source.close(EngineError("the engine stopped"))
            self.busy = Busy(self._clock(), 1)  # what hung or failed may hang here, too
            self._engine.close()
            self.busy = None

    def _run(self, batch: GatheredBatch) -> int:
        """Run a batch, by halves where it fails; how many rows were answered."""
        rows = len(batch.rows)
        began = self._clock()
        self.busy = Busy(began, rows)
        engine = self._engine
        try:
            with self._lent() as engine:
                probabilities = run_checked(engine, batch.rows, exact=batch.exact)
                # While nobody else is lent it.
                again, margin = (engine.again, engine.margin) if isinstance(engine, CloseCalls) else (0, 0.0)
                features = features_of(engine) if batch.with_features else None
        except EngineOutOfMemory as error:
            self.busy = None
            if engine is not self._engine:
                return self._run(batch)  # the engine of all cores failed, and is not lent again
            if rows > 1:  # what has no room for one row says nothing of how large a batch may be
                self._ceiling, self._full_batches = min(self._ceiling, rows // 2), 0
            logger.warning(
                "%s: no memory for a batch of %d, the largest is %d for now (%s)",
                self._model,
                rows,
                self._ceiling,
                error,
            )
            return self._retry(batch, error)
        except Exception as error:
            self.busy = None
            if engine is not self._engine:
                return self._run(batch)
            logger.warning("%s: a batch of %d rows failed", self._model, rows, exc_info=True)
            return self._retry(batch, error)
        ended = self._clock()
        self.busy = None
        self._source.finish(batch.slices, probabilities, features, began=began, batch_rows=rows, margin=margin)
        self._learn(engine, rows, ended - began)
        self._observer.batch_ran(self._model, rows, began, ended, [part.submission.origin for part in batch.slices])
        if again:
            self._observer.close_calls(self._model, again)
        return rows

    def _learn(self, engine: Engine, rows: int, seconds: float) -> None:
        """What a batch that went well says of the cost and of the ceiling."""
        if engine is not self._engine:
            # The curve is that of streams. Alone on all cores a batch takes no longer, so what a busy time has left in
            # the correction fades, down to 1 or to what the whole itself falls short by.
            curve_s = self._cost.curve.batch_s(rows)
            self._cost.observe(rows, min(max(seconds, curve_s), self._cost.batch_s(rows)))
            return
        self._cost.observe(rows, seconds)
        if self._ceiling < self._engine.max_batch and rows >= self._ceiling:
            self._full_batches += 1
            if self._full_batches >= _RAISE_AFTER:
                self._ceiling, self._full_batches = min(self._ceiling * 2, self._engine.max_batch), 0

    def _lent(self) -> AbstractContextManager[Engine]:
        """The engine for one batch."""
        if self._company is None:
            return nullcontext(self._engine)
        return self._company.engine_for(self._engine, waiting=self._batcher.pending_rows)

    def _retry(self, batch: GatheredBatch, error: Exception) -> int:
        if len(batch.rows) == 1:
            reason = error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}")
            self._source.finish(batch.slices, reason)
            return 0
        answered = 0
        for half in self._source.halve(batch):
            if any(part.wanted for part in half.slices):
                answered += self._run(half)
            else:
                self._source.finish(half.slices, EngineError("nobody waits for it"))
        return answered
