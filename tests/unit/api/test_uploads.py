"""From bodies to files in shared memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import mmap
import time
from collections.abc import Sequence

import pytest
from asgi_double import Channel, cut
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import open_descriptors

import app.media.shared as shared
from app.api.body import Body, UploadPace
from app.api.uploads import UploadLimits, Uploads, envelope_of, receive_files
from app.errors import HieraError, LimitExceeded, MalformedRequest, Overloaded
from app.media.shared import SharedBytes
from app.serving.results import Task

LIMITS = UploadLimits(max_file_bytes=1000, max_request_bytes=2500, max_files=4)
PACE = UploadPace(30, 30, 1)
MULTIPART = "multipart/form-data; boundary=limit"


def content(file: SharedBytes) -> bytes:
    if file.fd < 0:
        return bytes(file.small)
    with mmap.mmap(file.fd, file.size, prot=mmap.PROT_READ) as mapped:
        return bytes(mapped)


def receive(
    chunks: Sequence[bytes], content_type: str, uploads: Uploads | None = None, task: Task = "image"
) -> list[bytes]:
    """The files of a body that comes in `chunks`."""
    channel = Channel(chunks or [b""], {"content-type": content_type})
    body = Body(channel.scope["headers"], channel.receive, PACE)
    uploads = uploads or Uploads(LIMITS)
    try:
        envelope = envelope_of(body, task, LIMITS)
        asyncio.run(receive_files(body, envelope, uploads, time.monotonic() + 30))
        return [content(file) for file in uploads.files]
    finally:
        uploads.close()


def multipart(*files: bytes, name: str = "file") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="a.jpg"\r\nContent-Type: text/plain\r\n\r\n'
    parts = (b"--limit\r\n" + head.encode() + data + b"\r\n" for data in files)
    return b"".join(parts) + b"--limit--\r\n"


# Bytes that look like the parser's own, so that cuts fall on half boundaries.
_TRICKY = st.lists(
    st.sampled_from([b"\r\n", b"--", b"limit", b"\r\n--limi", b"-", b"\r", b"\n", b"a" * 50]), max_size=8
).map(b"".join)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(_TRICKY.filter(lambda data: b"\r\n--limit" not in data), min_size=2, max_size=4),
    st.lists(st.integers(0, 4000), max_size=12),
)
def test_files_of_a_multipart_body_arrive_whole_however_it_is_cut(files: list[bytes], places: list[int]) -> None:
    assert receive(cut(multipart(*files), places), MULTIPART) == files


def test_any_body_is_either_read_or_refused_and_no_descriptor_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SMALL_FILE_BYTES", 16)  # larger files have a descriptor

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from([MULTIPART, "application/json", "image/png"]))
    def any_body(chunks: list[bytes], kind: str) -> None:
        with contextlib.suppress(HieraError):
            assert receive(chunks, kind)

    before = open_descriptors()
    any_body()
    assert open_descriptors() == before


def test_a_raw_body_is_one_file() -> None:
    assert receive([b"ab", b"cd"], "image/jpeg") == [b"abcd"]
    assert receive([b"ab"], "application/octet-stream") == [b"ab"]
    assert receive([b"ab"], "video/mp4", task="video") == [b"ab"]
    assert receive([b"ab"], "image/gif", task="video") == [b"ab"]


@pytest.mark.parametrize("text", ['{"images":[' + "[]," * 2000 + "[]]}", "{" * 2000])
def test_json_of_another_form_is_refused_before_it_is_whole(text: str) -> None:
    channel = Channel([text.encode(), b"x" * 100], {"content-type": "application/json"})
    body = Body(channel.scope["headers"], channel.receive, PACE)
    uploads = Uploads(LIMITS)
    with pytest.raises(MalformedRequest, match="the JSON body must be"):
        asyncio.run(receive_files(body, envelope_of(body, "image", UploadLimits(9**9, 9**9, 4)), uploads, 9**9))
    uploads.close()
    assert channel.taken == 1


def test_more_images_than_may_come_are_counted_for_the_caller() -> None:
    text = json.dumps({"images": [{"b64": "eA=="}] * 5}).encode()
    with pytest.raises(LimitExceeded, match="at most 4 files"):
        receive([text], "application/json")


def test_a_content_type_of_kilobytes_is_not_looked_into() -> None:
    with pytest.raises(MalformedRequest, match="longer than 1,024 bytes"):
        receive([b"x"], "image/png" + ";" * 2000)


def test_json_brings_files_in_base64() -> None:
    document = {"images": [{"b64": base64.b64encode(data).decode()} for data in (b"one", b"two!")]}
    assert receive([json.dumps(document).encode()], "application/json; charset=utf-8") == [b"one", b"two!"]


def test_a_file_is_bounded_and_so_are_all_together_and_their_number() -> None:
    with pytest.raises(LimitExceeded, match="1,000 bytes"):
        receive([multipart(b"x" * 1001)], MULTIPART)
    with pytest.raises(LimitExceeded, match="1,000 bytes"):
        receive([b"x" * 1001], "image/png")
    with pytest.raises(LimitExceeded, match="at most 4 files"):
        receive([multipart(*[b"x"] * 5)], MULTIPART)
    with pytest.raises(LimitExceeded):
        receive([multipart(b"x") + b"y" * 100_000], MULTIPART)  # what follows the last boundary counts too


def test_each_file_after_the_first_and_each_chunk_is_announced_before_it_is_kept() -> None:
    told: list[object] = []
    uploads = Uploads(LIMITS, lambda: told.append("file"), told.append)
    receive([multipart(b"abc", b"de")], MULTIPART, uploads)
    assert told == [3, "file", 2]


def test_room_that_is_refused_ends_the_upload() -> None:
    def no_room(count: int) -> None:
        raise Overloaded("full", retry_after_s=1)

    uploads = Uploads(LIMITS, on_bytes=no_room)
    with pytest.raises(Overloaded):
        receive([b"abc"], "image/png", uploads)
    assert [file.size for file in uploads.files] == [0]


def test_a_part_that_tries_to_pass_as_the_file_by_its_file_name_is_refused() -> None:
    body = multipart(b"abc", name='x"; filename="; name=file')
    with pytest.raises(MalformedRequest, match="a part is named"):
        receive([body], MULTIPART)


def test_a_multipart_body_that_ends_anywhere_before_its_end_is_malformed() -> None:
    whole = multipart(b"abc")
    for length in range(len(whole) - len(b"--\r\n") + 1):
        with pytest.raises(MalformedRequest):
            receive([whole[:length]], MULTIPART)
