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
from app.api.uploads import Envelope, UploadLimits, Uploads, envelope_of, receive_files
from app.errors import DeadlineExceeded, HieraError, LimitExceeded, MalformedRequest, Overloaded, UnsupportedMedia
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
    chunks: Sequence[bytes],
    content_type: str,
    uploads: Uploads | None = None,
    task: Task = "image",
    limits: UploadLimits = LIMITS,
) -> list[bytes]:
    """The files of a body that comes in `chunks`."""
    channel = Channel(chunks or [b""], {"content-type": content_type})
    body = Body(channel.scope["headers"], channel.receive, PACE)
    uploads = uploads or Uploads(limits)
    try:
        envelope = envelope_of(body, task, limits)
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
    for kind in ("video/webm", "image/gif", "application/mp4", "application/x-matroska", ""):
        assert receive([b"ab"], kind, task="video") == [b"ab"]


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
    assert receive([b"x"], "image/png".ljust(1024, ";")) == [b"x"]
    with pytest.raises(MalformedRequest, match="longer than 1,024 bytes"):
        receive([b"x"], "image/png" + ";" * 2000)


def announced(content_type: str, length: int = 1, task: Task = "image", **codings: str) -> Envelope:
    """How a body is wrapped of which only the headers are known."""
    own = {name.replace("_", "-"): value for name, value in codings.items()}
    channel = Channel([], {"content-type": content_type, "content-length": str(length)} | own)
    return envelope_of(Body(channel.scope["headers"], channel.receive, PACE), task, LIMITS)


def test_what_the_headers_tell_is_refused_before_anything_is_read() -> None:
    most = {"image/png": 1000, MULTIPART: 2500 + 65_536, "application/json": 3333 + 65_536}
    for kind, length in most.items():
        assert announced(kind, length).max_body_bytes == length
        with pytest.raises(LimitExceeded, match=f"the body has {length + 1:,} bytes"):
            announced(kind, length + 1)
    with pytest.raises(MalformedRequest, match="no boundary"):
        announced("multipart/form-data")
    with pytest.raises(UnsupportedMedia, match="compressed bodies are not read"):
        announced("image/png", content_encoding="gzip")
    with pytest.raises(UnsupportedMedia, match="compressed bodies are not read"):
        announced("image/png", transfer_encoding="gzip, chunked")
    assert announced("image/png", content_encoding="identity").kind == "raw"


@pytest.mark.parametrize(
    ("task", "content_type", "advice"),
    [
        ("image", "video/mp4", "this address takes images; send videos to /classify/video"),
        ("video", "image/png", "this address takes videos; send images to /classify/image"),
        ("image", "text/plain", r"'text/plain' .* application/json .*, image/\* or application/octet-stream$"),
        ("video", "application/json", r"send multipart/form-data, video/\* or application/octet-stream$"),
        ("image", "application/x-www-form-urlencoded", "curl wants -H 'Content-Type: application/octet-stream'$"),
        ("image", "text/" + "x" * 500, f"'text/{'x' * 55}' is not read here"),
    ],
)
def test_a_content_type_that_is_not_read_is_answered_with_those_that_are(
    task: Task, content_type: str, advice: str
) -> None:
    with pytest.raises(UnsupportedMedia, match=advice):
        announced(content_type, task=task)


def test_files_may_be_as_large_as_the_limits_however_they_are_wrapped() -> None:
    limits = UploadLimits(max_file_bytes=1_000_000, max_request_bytes=3_000_000, max_files=3)
    files = [bytes([letter]) * 1_000_000 for letter in b"abc"]
    document = {"images": [{"b64": base64.b64encode(data).decode()} for data in files]}
    assert receive([files[0]], "image/png", limits=limits) == files[:1]
    assert receive([multipart(*files)], MULTIPART, limits=limits) == files
    assert receive([json.dumps(document).encode()], "application/json", limits=limits) == files


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
    with pytest.raises(LimitExceeded):
        receive([b'{"images": [{"b64": "eA=="}]}', b" " * 100_000], "application/json")


def test_what_is_announced_may_be_as_much_as_the_limit() -> None:
    Uploads(LIMITS).check_total(2500)
    with pytest.raises(LimitExceeded, match="2,501 bytes were announced; at most 2,500"):
        Uploads(LIMITS).check_total(2501)
    with pytest.raises(LimitExceeded, match="at most 1 file can be sent"):
        Uploads(UploadLimits(9, 9, max_files=1)).check_count(2)


@pytest.mark.parametrize("content_type", ["image/png", MULTIPART, "application/json"])
def test_a_body_of_any_kind_has_the_deadline_of_its_request(content_type: str) -> None:
    channel = Channel([], {"content-type": content_type})
    body = Body(channel.scope["headers"], channel.receive, PACE)
    envelope = envelope_of(body, "image", LIMITS)
    with pytest.raises(DeadlineExceeded, match="the time for this request ran out"):
        asyncio.run(receive_files(body, envelope, Uploads(LIMITS), time.monotonic() + 0.01))


def test_closing_gives_all_files_back_at_once() -> None:
    uploads = Uploads(LIMITS)
    for data in (b"a", b"b"):
        uploads.begin()
        uploads.write(data)
    uploads.close()
    assert [bytes(file.small) for file in uploads.files] == [b"", b""]


def test_each_file_after_the_first_and_each_chunk_is_announced_before_it_is_kept() -> None:
    told: list[object] = []
    uploads = Uploads(LIMITS, lambda: told.append("file"), told.append)
    receive([multipart(b"abc", b"de")], MULTIPART, uploads)
    assert told == [3, "file", 2]


def test_room_that_is_refused_ends_the_upload() -> None:
    def no_room(*more: int) -> None:
        raise Overloaded("full", retry_after_s=1)

    uploads = Uploads(LIMITS, on_bytes=no_room)
    with pytest.raises(Overloaded):
        receive([b"abc"], "image/png", uploads)
    assert [file.size for file in uploads.files] == [0]
    uploads = Uploads(LIMITS, on_file=no_room)
    with pytest.raises(Overloaded):
        receive([multipart(b"abc", b"de")], MULTIPART, uploads)
    assert [file.size for file in uploads.files] == [3]


def test_a_part_that_tries_to_pass_as_the_file_by_its_file_name_is_refused() -> None:
    body = multipart(b"abc", name='x"; filename="; name=file')
    with pytest.raises(MalformedRequest, match="a part is named"):
        receive([body], MULTIPART)


def part(*headers: bytes) -> bytes:
    return b"--limit\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\nabc\r\n"


NAMED = b'content-disposition: form-data; name="file"'


def test_the_headers_of_a_part_may_come_in_any_order_and_case() -> None:
    codings = (b"Content-Transfer-Encoding: " + word for word in (b"binary", b" 7BIT ", b"8bit"))
    for other in (b"Content-Type: image/png", *codings):
        assert receive([part(other, NAMED) + b"--limit--\r\n"], MULTIPART) == [b"abc"]


@pytest.mark.parametrize(
    "parts",
    [
        part(NAMED) + part(b"Content-Type: image/png"),  # what one part is called says nothing of the next
        part(NAMED.replace(b"form-data", b"attachment")),
        part(NAMED.replace(b"file", b"\xff")),
        part(NAMED.replace(b"file", b"x" * 900)),
    ],
    ids=["none", "attachment", "not UTF-8", "long"],
)
def test_a_part_that_is_not_called_the_file_is_refused_in_few_words(parts: bytes) -> None:
    with pytest.raises(MalformedRequest, match="a part is named") as raised:
        receive([parts + b"--limit--\r\n"], MULTIPART)
    assert len(str(raised.value)) < 200


def test_a_multipart_body_that_ends_anywhere_before_its_end_is_malformed() -> None:
    whole = multipart(b"abc")
    for length in range(len(whole) - len(b"--\r\n") + 1):
        with pytest.raises(MalformedRequest):
            receive([whole[:length]], MULTIPART)


def test_json_that_ends_behind_whole_letters_is_malformed() -> None:
    with pytest.raises(MalformedRequest, match="ends before its JSON does"):
        receive([b'{"images": [{"b64": "QUJD'], "application/json")
