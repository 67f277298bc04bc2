from __future__ import annotations

import fcntl
import gc
import mmap
import os
from collections.abc import Callable

import numpy as np
import pytest
from processes import open_descriptors

from app.errors import Overloaded
from app.media.shared import (
    KEPT_BUFFER_BYTES,
    KEPT_BUFFERS,
    ONE_SHOT,
    SMALL_FILE_BYTES,
    DecodedRows,
    RowBuffers,
    SharedBytes,
    UploadedRows,
)
from app.media.spec import DecodeInfo

LARGE = bytes(range(256)) * (SMALL_FILE_BYTES // 256 + 1)
INFO = DecodeInfo(width=1, height=1, format="jpeg")


def written_by_a_worker(fd: int, size: int, value: int) -> None:
    with mmap.mmap(fd, size) as mapped:
        mapped[:] = bytes([value]) * size


def content(body: SharedBytes) -> bytes:
    return os.pread(body.fd, 1 << 24, 0) if body.fd >= 0 else bytes(body.small)


@pytest.mark.parametrize("size", [7, SMALL_FILE_BYTES, SMALL_FILE_BYTES + 1, 3_000_000])
@pytest.mark.parametrize("chunk_size", [1 << 16, 1 << 30])
def test_an_upload_holds_its_chunks_in_the_order_written(size: int, chunk_size: int) -> None:
    data = os.urandom(size)
    with SharedBytes() as body:
        for start in range(0, size, chunk_size):
            body.write(memoryview(data)[start : start + chunk_size])
            body.write(b"")
        assert body.size == size
        assert content(body) == data


def test_a_kernel_that_takes_less_than_it_is_given_is_given_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux does beyond 2 GiB."""
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:50_000]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    with SharedBytes.of(LARGE) as body:
        assert (body.size, content(body)) == (len(LARGE), LARGE)
    uploaded = UploadedRows(SHAPE)
    uploaded.write(PIXELS)
    np.testing.assert_array_equal(uploaded.rows.ravel(), np.arange(48))
    uploaded.close()


def test_no_program_that_is_started_inherits_an_upload_or_rows() -> None:
    uploaded = UploadedRows(SHAPE)
    with SharedBytes.of(LARGE) as body:
        assert not os.get_inheritable(body.fd)
        assert not os.get_inheritable(uploaded.fd)
    uploaded.close()


def test_only_an_upload_that_is_too_large_for_a_message_takes_a_descriptor() -> None:
    before = open_descriptors()
    with SharedBytes.of(b"x" * SMALL_FILE_BYTES) as body:
        assert open_descriptors() == before
        body.write(b"x")
        assert open_descriptors() == before + 1
        assert not body.small


def test_a_sealed_upload_can_be_changed_by_nobody_who_holds_its_descriptor() -> None:
    with SharedBytes.of(LARGE) as body:
        body.seal()
        body.seal()
        changes: list[Callable[[], object]] = [
            lambda: os.pwrite(body.fd, b"x", 0),
            lambda: os.ftruncate(body.fd, 0),
            lambda: os.ftruncate(body.fd, 1 << 20),
            lambda: mmap.mmap(body.fd, 11),
        ]
        for change in changes:
            with pytest.raises(PermissionError):
                change()
        assert content(body) == LARGE


@pytest.mark.parametrize("data", [b"small", LARGE])
def test_a_sealed_upload_takes_no_more(data: bytes) -> None:
    with SharedBytes.of(data) as body:
        body.seal()
        with pytest.raises(ValueError, match="sealed"):
            body.write(b"more")
        assert content(body) == data


@pytest.mark.parametrize("data", [b"small", LARGE])
def test_an_upload_can_be_closed_twice_and_then_refuses_work(data: bytes) -> None:
    body = SharedBytes.of(data)
    body.close()
    body.close()
    refused: list[Callable[[], object]] = [lambda: body.write(b"y"), body.seal]
    for work in refused:
        with pytest.raises(ValueError, match="closed"):
            work()
    assert not body.small, "its memory is kept"


def test_a_forgotten_upload_leaks_no_descriptor() -> None:
    before = open_descriptors()
    SharedBytes.of(LARGE)
    gc.collect()
    assert open_descriptors() == before


def test_an_upload_that_finds_no_descriptor_left_says_that_the_server_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(name: str, flags: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none_left)
    with pytest.raises(Overloaded):
        SharedBytes.of(LARGE)
    with pytest.raises(Overloaded):
        RowBuffers().take(100)


def test_rows_are_what_the_worker_wrote_and_cannot_be_changed_here() -> None:
    buffer, _ = RowBuffers().take(24)
    written_by_a_worker(buffer.fd, 24, 7)
    rows = buffer.rows((2, 2, 2, 3))
    assert rows.shape == (2, 2, 2, 3)
    assert (rows == 7).all()
    assert not rows.flags.writeable


def test_a_worker_cannot_pull_the_rows_from_under_the_server() -> None:
    buffer, _ = RowBuffers().take(100)
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(buffer.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(buffer.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_released_buffer_serves_the_next_job_of_its_size_only() -> None:
    buffers = RowBuffers()
    first, is_new = buffers.take(100)
    assert is_new
    buffers.give_back(first)
    other, is_new = buffers.take(200)
    assert other is not first
    assert is_new
    again, is_new = buffers.take(100)
    assert again is first
    assert not is_new
    assert buffers.take(100)[0] is not first


def test_a_buffer_that_somebody_still_reads_is_not_used_again() -> None:
    buffers = RowBuffers()
    first, _ = buffers.take(24)
    view = first.rows((2, 2, 2, 3))[1:, 0]
    buffers.give_back(first)
    second, _ = buffers.take(24)
    written_by_a_worker(second.fd, 24, 9)
    assert (view == 0).all()


def test_a_buffer_that_the_worker_may_not_have_mapped_is_not_used_again() -> None:
    buffers = RowBuffers()
    first, _ = buffers.take(24)
    buffers.give_back(first, mapped=False)
    _, is_new = buffers.take(24)
    assert is_new


def test_buffers_in_use_at_once_never_share_a_slot_and_those_beyond_the_kept_ones_are_made_for_one_job() -> None:
    buffers = RowBuffers()
    taken = [buffers.take(100)[0] for _ in range(KEPT_BUFFERS + 2)]
    slots = [buffer.slot for buffer in taken]
    assert sorted(slots) == [*range(KEPT_BUFFERS), ONE_SHOT, ONE_SHOT]
    assert buffers.take(KEPT_BUFFER_BYTES + 1)[0].slot == ONE_SHOT


def test_a_buffer_for_one_job_is_used_by_no_other_and_takes_no_slot() -> None:
    buffers, large = RowBuffers(), KEPT_BUFFER_BYTES + 1
    assert buffers.take(KEPT_BUFFER_BYTES)[0].slot != ONE_SHOT
    one_shot, _ = buffers.take(large)
    buffers.give_back(one_shot)
    assert one_shot.fd == -1
    again, is_new = buffers.take(large)
    assert again is not one_shot
    assert is_new
    assert buffers.take(100)[0].slot != ONE_SHOT


def test_a_larger_buffer_does_not_serve_a_smaller_job() -> None:
    buffers = RowBuffers()
    larger, _ = buffers.take(200)
    buffers.give_back(larger)
    smaller, is_new = buffers.take(100)
    assert (smaller.size, is_new) == (100, True)


def test_a_buffer_that_there_was_no_room_for_takes_neither_a_slot_nor_a_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(fd: int, size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    buffers, before = RowBuffers(), open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", no_memory)
        for _ in range(KEPT_BUFFERS):
            with pytest.raises(Overloaded):
                buffers.take(100)
    gc.collect()
    assert open_descriptors() == before
    assert buffers.take(100)[0].slot != ONE_SHOT


def test_buffers_that_come_back_to_a_worker_that_has_gone_are_closed() -> None:
    buffers = RowBuffers()
    buffer, _ = buffers.take(100)
    buffers.close()
    buffers.give_back(buffer)
    assert buffer.fd == -1


def test_free_buffers_of_another_size_make_way() -> None:
    buffers = RowBuffers()
    for buffer in [buffers.take(100)[0] for _ in range(KEPT_BUFFERS)]:
        buffers.give_back(buffer)
    assert buffers.take(200)[0].slot != ONE_SHOT


def test_no_descriptor_is_left_whichever_way_buffers_come_back() -> None:
    before = open_descriptors()
    buffers = RowBuffers()
    taken = [buffers.take(size)[0] for size in (100, 100, 200, KEPT_BUFFER_BYTES + 1)]
    still_read = taken[0].rows((100,))
    for buffer in taken[:3]:
        buffers.give_back(buffer)
    buffers.close()
    buffers.give_back(taken[3])
    del still_read, buffer, taken
    assert open_descriptors() == before


def test_decoded_rows_are_released_once_and_then_refuse_to_be_read() -> None:
    released: list[bool] = []
    decoded = DecodedRows(np.zeros((1, 2, 2, 3), np.uint8), INFO, 0.1, release=lambda: released.append(True))
    assert decoded.rows.shape == (1, 2, 2, 3)
    decoded.close()
    decoded.close()
    assert released == [True]
    assert decoded.fd == -1
    with pytest.raises(ValueError, match="released"):
        decoded.rows  # noqa: B018


def test_forgotten_decoded_rows_release_themselves() -> None:
    released: list[bool] = []
    DecodedRows(np.zeros(3, np.uint8), INFO, 0.1, release=lambda: released.append(True))
    gc.collect()
    assert released == [True]


SHAPE = (2, 2, 4, 3)
PIXELS = bytes(range(48))


@pytest.mark.parametrize("chunk_size", [1, 7, 24, 48])
@pytest.mark.parametrize("view", [False, True])
def test_uploaded_rows_are_the_chunks_in_the_order_written(chunk_size: int, view: bool) -> None:
    uploaded = UploadedRows(SHAPE)
    assert (uploaded.missing, uploaded.reused) == (48, False)
    for start in range(0, 48, chunk_size):
        chunk = PIXELS[start : start + chunk_size]
        uploaded.write(memoryview(chunk) if view else chunk)
        uploaded.write(b"")
        assert uploaded.missing == max(0, 48 - start - chunk_size)
    rows = uploaded.rows
    assert (rows.shape, rows.dtype) == (SHAPE, np.dtype(np.uint8))
    np.testing.assert_array_equal(rows.ravel(), np.arange(48))
    assert os.pread(uploaded.fd, 100, 0) == PIXELS
    uploaded.close()


def test_uploaded_rows_cannot_be_changed_by_who_reads_them() -> None:
    uploaded = UploadedRows(SHAPE)
    uploaded.write(PIXELS)
    with pytest.raises(ValueError, match="read-only"):
        uploaded.rows[0] = 1
    with pytest.raises(PermissionError):
        os.ftruncate(uploaded.fd, 0)
    uploaded.close()


def test_uploaded_rows_are_not_read_before_the_last_byte_and_take_none_more() -> None:
    uploaded = UploadedRows(SHAPE)
    with pytest.raises(ValueError, match="more bytes than there are rows for"):
        uploaded.write(PIXELS + b"x")
    uploaded.write(PIXELS[:47])
    with pytest.raises(ValueError, match="1 bytes of the rows are missing"):
        uploaded.rows  # noqa: B018
    with pytest.raises(ValueError, match="more bytes"):
        uploaded.write(b"xy")
    uploaded.write(PIXELS[47:])
    with pytest.raises(ValueError, match="more bytes"):
        uploaded.write(b"x")
    np.testing.assert_array_equal(uploaded.rows.ravel(), np.arange(48))
    uploaded.close()


def test_closed_uploaded_rows_give_their_descriptor_back_and_what_was_read_of_them_stays() -> None:
    before = open_descriptors()
    uploaded, unfinished = UploadedRows(SHAPE), UploadedRows(SHAPE)
    uploaded.write(PIXELS)
    rows = uploaded.rows
    for each in (uploaded, unfinished, uploaded):
        each.close()
        assert each.fd == -1
    with pytest.raises(ValueError, match="closed"):
        uploaded.rows  # noqa: B018
    with pytest.raises(ValueError, match="closed"):
        unfinished.write(PIXELS)
    np.testing.assert_array_equal(rows.ravel(), np.arange(48))
    del rows
    assert open_descriptors() == before


def test_uploaded_rows_that_find_no_descriptor_left_say_that_the_server_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(name: str, flags: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none_left)
    with pytest.raises(Overloaded):
        UploadedRows(SHAPE)


def test_forgotten_uploaded_rows_leak_no_descriptor() -> None:
    before = open_descriptors()
    UploadedRows(SHAPE).write(PIXELS)
    gc.collect()
    assert open_descriptors() == before
