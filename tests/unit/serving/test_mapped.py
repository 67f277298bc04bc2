"""Memory of HTTP workers in the engine host: what is read is what was written last, and nothing is kept for good."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from processes import open_descriptors

from app.media.shared import ONE_SHOT, RowBuffer, UploadedRows
from app.serving.mapped import KEPT_BYTES, KEPT_MEMORIES, MappedMemory, MappedRows

SHAPE = (2, 4, 4, 3)
SIZE = 2 * 4 * 4 * 3


@pytest.fixture
def buffer() -> Iterator[RowBuffer]:
    buffer = RowBuffer(SIZE, ONE_SHOT)
    yield buffer
    buffer.close()


def written(buffer: RowBuffer, mark: int) -> int:
    """The buffer full of `mark`, by a descriptor as it arrives from a worker."""
    os.pwrite(buffer.fd, bytes([mark]) * buffer.size, 0)
    return os.dup(buffer.fd)


def test_memory_that_comes_again_is_read_where_it_was_mapped(buffer: RowBuffer) -> None:
    memory = MappedMemory()
    first = memory.rows(written(buffer, 3), SHAPE, reused=True)
    assert (first.shape, first.dtype) == (SHAPE, np.dtype(np.uint8))
    assert not first.flags.writeable
    assert (first == 3).all()
    again = memory.rows(written(buffer, 7), (1, *SHAPE[1:]), reused=True)
    assert (again == 7).all()
    assert again.ctypes.data == first.ctypes.data


def test_another_file_with_the_same_descriptor_number_is_another_memory(buffer: RowBuffer) -> None:
    memory = MappedMemory()
    other = RowBuffer(SIZE, ONE_SHOT)
    try:
        number = written(buffer, 1)
        assert (memory.rows(number, SHAPE, reused=True) == 1).all()
        assert (memory.rows(os.dup2(written(other, 2), number), SHAPE, reused=True) == 2).all()
    finally:
        other.close()


def test_rows_outlive_the_memory_s_place_among_the_kept_ones(buffer: RowBuffer) -> None:
    memory = MappedMemory()
    before = open_descriptors()
    rows = memory.rows(written(buffer, 5), SHAPE, reused=True)
    for _ in range(2 * KEPT_MEMORIES):
        other = RowBuffer(SIZE, ONE_SHOT)
        memory.rows(written(other, 0), SHAPE, reused=True)
        other.close()
    assert open_descriptors() <= before + KEPT_MEMORIES + 1  # Python's mmap has a descriptor of its own
    assert (rows == 5).all()
    del memory, rows
    assert open_descriptors() == before


def test_memory_that_was_not_used_for_a_while_is_let_go(buffer: RowBuffer) -> None:
    memory = MappedMemory()
    before = open_descriptors()
    other = RowBuffer(SIZE, ONE_SHOT)
    memory.rows(written(other, 1), SHAPE, reused=True)
    other.close()
    between = time.monotonic()
    memory.rows(written(buffer, 2), SHAPE, reused=True)
    memory.forget(between)
    assert open_descriptors() == before + 1
    memory.forget(math.inf)
    assert open_descriptors() == before


def test_large_memory_goes_with_its_rows() -> None:
    memory = MappedMemory()
    before = open_descriptors()
    large = RowBuffer(KEPT_BYTES + 1, ONE_SHOT)
    rows = memory.rows(written(large, 9), (1, KEPT_BYTES + 1), reused=True)
    large.close()
    assert (rows[0, -1], open_descriptors()) == (9, before + 1)
    del rows
    assert open_descriptors() == before


def test_memory_that_will_not_come_again_goes_with_its_rows(buffer: RowBuffer) -> None:
    memory = MappedMemory()
    before = open_descriptors()
    rows = memory.rows(written(buffer, 4), SHAPE, reused=False)
    assert ((rows == 4).all(), open_descriptors()) == (True, before + 1)
    del rows
    assert open_descriptors() == before


def test_kept_memory_that_comes_for_the_last_time_is_read_anew_and_let_go(buffer: RowBuffer) -> None:
    memory = MappedMemory()
    before = open_descriptors()
    memory.rows(written(buffer, 3), SHAPE, reused=True)
    last = memory.rows(written(buffer, 8), SHAPE, reused=False)
    assert (last == 8).all()
    del last
    assert open_descriptors() == before


def test_uploaded_rows_can_be_mapped_by_their_descriptor() -> None:
    memory = MappedMemory()
    uploaded = UploadedRows(SHAPE)
    uploaded.write(bytes(range(SIZE)))
    rows = memory.rows(os.dup(uploaded.fd), SHAPE, reused=uploaded.reused)
    uploaded.close()
    np.testing.assert_array_equal(rows, np.arange(SIZE, dtype=np.uint8).reshape(SHAPE))
    assert not memory._kept


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 4, 3), (0, 4, 4, 3)])
def test_a_file_that_does_not_hold_the_rows_is_refused(buffer: RowBuffer, shape: tuple[int, ...], reused: bool) -> None:
    before = open_descriptors()
    with pytest.raises(ValueError, match="bytes of rows in a file of 96"):
        MappedMemory().rows(written(buffer, 1), shape, reused=reused)
    assert open_descriptors() == before


@pytest.mark.parametrize("reused", [False, True])
def test_a_file_that_could_shrink_is_refused(reused: bool) -> None:
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, SIZE)
    with pytest.raises(ValueError, match="not sealed"):
        MappedMemory().rows(unsealed, SHAPE, reused=reused)
    with pytest.raises(OSError, match="Bad file descriptor"):  # closed all the same
        os.fstat(unsealed)


def test_lent_rows_are_given_back_once() -> None:
    closed: list[bool] = []
    lease = MappedRows(np.zeros(SHAPE, np.uint8), lambda: closed.append(True))
    assert lease.rows.shape == SHAPE
    lease.close()
    lease.close()
    assert closed == [True]
    with pytest.raises(ValueError, match="released"):
        lease.rows  # noqa: B018
