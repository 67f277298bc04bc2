"""A slice of a request after its rows were given back."""

from __future__ import annotations

import gc
import weakref

import pytest
from serving_fakes import Listener, deliver_here, probabilities_of, rows_of

from app.serving.batcher import Batcher
from app.serving.submission import Terms


def test_rows_that_were_given_back_are_held_and_read_by_nobody() -> None:
    batcher = Batcher(max_rows=16, deliver=deliver_here, predict_s=lambda rows: 0.0)
    rows, listener = rows_of(1, 2), Listener()
    memory = weakref.ref(rows)
    batcher.submit(rows, Terms(1e9), listener)
    del rows
    slices = batcher.take(lambda: 8)
    assert slices is not None
    assert slices[0].rows().shape[0] == 2
    batcher.finish(slices, probabilities_of([1, 2]), began=0.0, batch_rows=2)
    assert listener.releases == 1
    gc.collect()
    assert memory() is None, "whoever holds a slice holds the rows"
    with pytest.raises(RuntimeError, match="asked for after it was finished"):
        slices[0].rows()
