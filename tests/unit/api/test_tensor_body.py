"""The body of an Open Inference Protocol request as it comes: rows and files go to their places, however it is cut."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
from asgi_double import cut
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_calls import MODEL, ROW_SHAPE, binary_rows, elements, files, rows, text_of
from processes import open_descriptors

import app.media.shared as shared
from app.api.tensor_body import TensorBody, header_nbytes
from app.api.tensors import MAX_HEADER_BYTES, MAX_JSON_BYTES, InferenceRequest, parse_request
from app.api.uploads import UploadLimits, Uploads
from app.errors import HieraError, InvalidParameter, LimitExceeded, MalformedRequest, Overloaded
from app.media.shared import SharedBytes

LIMITS = UploadLimits(max_file_bytes=1000, max_request_bytes=2500, max_files=4)


def content(file: SharedBytes) -> bytes:
    if file.fd < 0:
        return bytes(file.small)
    with mmap.mmap(file.fd, file.size, prot=mmap.PROT_READ) as mapped:
        return bytes(mapped)


class Reading:
    """A body that comes, and what is reserved for it."""

    def __init__(self, header: int | None, refusal: Exception | None = None, limits: UploadLimits = LIMITS) -> None:
        self.reserved: list[int] = []
        self.uploads = Uploads(limits)
        self._refusal = refusal
        parse = partial(parse_request, model=MODEL, binary_follows=header is not None)
        self.body = TensorBody(header, parse, ROW_SHAPE, self.uploads, self._reserve)

    def _reserve(self, count: int) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.reserved.append(count)

    def read(self, chunks: Iterable[bytes]) -> tuple[InferenceRequest, list[bytes]]:
        """What is wanted, and the bytes of each row or file."""
        for chunk in chunks:
            self.body.feed(chunk)
        request = self.body.finish()
        if self.body.rows is None:
            return request, [content(file) for file in self.uploads.files]
        assert not self.uploads.files
        return request, [row.tobytes() for row in self.body.rows.rows]

    def close(self) -> None:
        self.body.close()
        self.uploads.close()


def read(chunks: Iterable[bytes], header: int | None = None, **more: Any) -> tuple[InferenceRequest, list[bytes]]:
    reading = Reading(header, **more)
    try:
        return reading.read(chunks)
    finally:
        reading.close()


_PLACES = st.lists(st.integers(0, 4000), max_size=12)
_FILES = st.lists(st.binary(max_size=40), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=12, max_size=60).map(lambda data: data[: len(data) // 12 * 12]), _PLACES)
def test_rows_as_bytes_arrive_whole_however_the_body_is_cut(data: bytes, places: list[int]) -> None:
    count = len(data) // 12
    text = text_of(binary_rows(count))
    expected = [data[start : start + 12] for start in range(0, len(data), 12)]
    for chunks in (cut(text + data, places), cut(text + data, range(10_000))):
        request, arrived = read(chunks, len(text))
        assert (request.kind, request.count, arrived) == ("rows", count, expected)


@settings(max_examples=200, deadline=None)
@given(_FILES, _PLACES)
def test_files_arrive_whole_however_the_body_is_cut(contents: list[bytes], places: list[int]) -> None:
    data = elements(*contents)
    text = text_of(files(len(contents), len(data)))
    for chunks in (cut(text + data, places), cut(text + data, range(10_000))):
        request, arrived = read(chunks, len(text))
        assert (request.kind, request.count, arrived) == ("files", len(contents), contents)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3), st.booleans(), _PLACES)
def test_rows_in_json_arrive_whole_however_the_body_is_cut(count: int, announced: bool, places: list[int]) -> None:
    text = text_of(rows(count=count))
    request, arrived = read(cut(text, places), len(text) if announced else None)
    assert request.count == count
    assert b"".join(arrived) == bytes(range(12 * count))


def test_a_large_file_lies_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SMALL_FILE_BYTES", 16)
    contents = [bytes(range(200)), b"small"]
    data = elements(*contents)
    text = text_of(files(2, len(data)))
    assert read(cut(text + data, range(0, 10_000, 7)), len(text))[1] == contents


def test_any_body_is_either_read_or_refused_and_no_descriptor_stays_open() -> None:
    data = elements(b"ab", b"c")
    texts = [text_of(rows()), text_of(binary_rows()), text_of(files(2, len(data))), b""]

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(texts), st.sampled_from([data, bytes(12), b""]), st.lists(st.binary(max_size=20)), _PLACES)
    def any_body(text: bytes, behind: bytes, noise: list[bytes], places: list[int]) -> None:
        for header in (len(text), None, 3):
            with contextlib.suppress(HieraError):
                read([*cut(text + behind, places), *noise], header)

    before = open_descriptors()
    any_body()
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("tensor", "behind"),
    [(binary_rows(), bytes(12)), (files(2, 11), elements(b"abc", b"")), (rows(), b"")],
    ids=["rows", "files", "JSON"],
)
def test_a_body_that_ends_anywhere_before_its_end_or_goes_on_behind_it_is_malformed(
    tensor: dict[str, Any], behind: bytes
) -> None:
    text = text_of(tensor)
    body = text + behind
    read([body], len(text))
    for length in range(len(body)):
        with pytest.raises(MalformedRequest, match="the body ends before its tensors do"):
            read([body[:length]], len(text))
    for chunks in ([body + b"x"], [body, b"x"]):
        with pytest.raises(MalformedRequest, match="the body goes on behind its tensors"):
            read(chunks, len(text))


def test_files_are_as_many_as_the_shape_has() -> None:
    data = elements(b"ab", b"cd")
    for count, words in ((1, "more files than the 1 of the shape"), (3, "there are 2 files, but the shape has 3")):
        text = text_of(files(count, len(data)))
        for chunks in ([text + data], cut(text + data, range(1000))):
            with pytest.raises(MalformedRequest, match=words):
                read(chunks, len(text))


@pytest.mark.parametrize("size", [1, 3, 1000, 2**32 - 1])
def test_an_element_that_is_cut_off_is_malformed_whatever_its_length_says(size: int) -> None:
    data = elements(b"ab") + size.to_bytes(4, "little") + b"c" * (0 if size == 1 else 2)
    text = text_of(files(2, len(data)))
    with pytest.raises(MalformedRequest, match="the body ends before its tensors do"):
        read([text + data], len(text))
    text = text_of(files(2, len(data) - 3))
    with pytest.raises(MalformedRequest):
        read([text + data[:-3]], len(text))


@pytest.mark.parametrize("more", [1, 2, 3])
def test_a_length_that_is_cut_off_behind_the_last_file_is_malformed(more: int) -> None:
    data = elements(b"ab", b"cd") + bytes(more)
    text = text_of(files(2, len(data)))
    with pytest.raises(MalformedRequest, match="the body ends before its tensors do"):
        read([text + data], len(text))


def test_closing_gives_the_rows_back_at_once() -> None:
    text = text_of(rows())
    reading = Reading(len(text))
    reading.read([text])
    uploaded = reading.body.rows
    assert uploaded is not None
    reading.close()
    reading.close()
    assert uploaded.fd == -1


def test_a_file_is_bounded_and_so_are_all_together_and_their_number() -> None:
    data = elements(b"x" * 1001)
    text = text_of(files(1, len(data)))
    with pytest.raises(LimitExceeded, match="larger than the 1,000 bytes"):
        read([text + data], len(text))
    for tensor in (files(3, 2501 + 3 * 4), binary_rows(209)):  # what says how long a file is, is none of it
        text = text_of(tensor)
        with pytest.raises(LimitExceeded, match=r"2,50\d bytes were announced; at most 2,500"):
            read([text], len(text))
    text = text_of(files(5, 100))
    with pytest.raises(LimitExceeded, match="at most 4 files"):
        read([text], len(text))
    text = text_of(binary_rows(208))
    assert len(read([text + bytes(208 * 12)], len(text))[1]) == 208


def test_enormous_shapes_are_refused_before_anything_is_reserved_or_taken() -> None:
    before = open_descriptors()
    for tensor in (binary_rows(2**40), files(2**40, 2**44), files(2**40, 100), rows([1], count=2**40)):
        text = text_of(tensor)
        reading = Reading(len(text))
        with pytest.raises((LimitExceeded, MalformedRequest)):
            reading.body.feed(text)
        assert (reading.reserved, reading.body.rows, reading.uploads.files) == ([], None, [])
        assert open_descriptors() == before


def test_room_is_reserved_for_all_rows_or_files_before_memory_is_taken() -> None:
    full = Overloaded("full", retry_after_s=1)
    for tensor in (binary_rows(3), files(3, 100), rows(count=3)):
        text = text_of(tensor)
        reading = Reading(len(text))
        reading.body.feed(text)
        assert reading.reserved == [3]
        reading.close()
        refused = Reading(len(text), full)
        with pytest.raises(Overloaded):
            refused.body.feed(text)
        assert (refused.body.rows, refused.uploads.files) == (None, [])


def test_what_the_json_says_wrong_is_told_before_more_is_read() -> None:
    text = text_of(binary_rows(name="other"))
    reading = Reading(len(text))
    with pytest.raises(InvalidParameter, match="the input is 'other'"):
        reading.body.feed(text + b"x")


def test_tensors_in_json_are_bounded_while_they_come() -> None:
    text = text_of(rows()).ljust(MAX_JSON_BYTES)
    assert len(read([text])[1]) == 1
    reading = Reading(None)
    reading.body.feed(text)
    with pytest.raises(LimitExceeded, match=r"1,048,576 bytes .* send more as binary data"):
        reading.body.feed(b" ")


def test_bytes_may_not_follow_json_whose_length_was_not_announced() -> None:
    with pytest.raises(MalformedRequest, match="without the header Inference-Header-Content-Length"):
        read([text_of(binary_rows())])
    with pytest.raises(MalformedRequest):
        read([text_of(binary_rows()), bytes(12)])


def test_no_json_at_all_is_malformed() -> None:
    for header in (None, 0, 5):
        with pytest.raises(MalformedRequest):
            read([], header)
    with pytest.raises(MalformedRequest):
        read([b"x"], 0)


def test_the_header_is_a_number_of_bytes_that_the_body_has() -> None:
    assert header_nbytes(b"", 100) is None
    assert header_nbytes(b"7", 7) == header_nbytes(b"7", None) == header_nbytes(b"007", 7) == 7
    assert header_nbytes(b"0", 0) == 0
    assert header_nbytes(str(MAX_HEADER_BYTES).encode(), None) == 64 * 1024
    for value in (b"x", b"-1", b"+1", b"1.0", b"1e3", b" 7", b"0x7", b"7, 7", "\u0667".encode(), b"\xb2", b"1" * 5000):
        with pytest.raises(MalformedRequest, match="is not a number of bytes"):
            header_nbytes(value, None)
    with pytest.raises(MalformedRequest, match="more bytes than the body has"):
        header_nbytes(b"8", 7)
    for length in (None, 10**9):
        with pytest.raises(LimitExceeded, match="65,536 bytes"):
            header_nbytes(str(MAX_HEADER_BYTES + 1).encode(), length)


def test_the_request_is_there_as_soon_as_its_json_is() -> None:
    text = text_of(binary_rows(), id="42")
    reading = Reading(len(text))
    seen: list[InferenceRequest | None] = []
    for chunk in (text[:-1], text[-1:]):
        reading.body.feed(chunk)
        seen.append(reading.body.request)
    assert [request and request.id for request in seen] == [None, "42"]
    reading.close()
