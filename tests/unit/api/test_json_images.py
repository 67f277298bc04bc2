"""JSON with images in base64, read as it comes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable

import pytest
from asgi_double import cut
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.api.json_images import JsonImages
from app.errors import MalformedRequest


def read(chunks: Iterable[bytes]) -> list[bytes]:
    """The images of a body that comes in `chunks`."""
    images: list[bytearray] = []
    reader = JsonImages(lambda: images.append(bytearray()), lambda data: images[-1].extend(data))
    for chunk in chunks:
        reader.feed(chunk)
    reader.check_complete()
    return [bytes(image) for image in images]


def document(*texts: str) -> bytes:
    return json.dumps({"images": [{"b64": text} for text in texts]}).encode()


def one_by_one(data: bytes) -> list[bytes]:
    return cut(data, range(len(data)))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=3),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_images_arrive_whole_however_the_text_is_written_and_cut(
    images: list[bytes], indent: int | str | None, escaped: bool, places: list[int]
) -> None:
    entries = [{"b64": base64.b64encode(image).decode()} for image in images]
    text = json.dumps({"images": entries}, indent=indent).encode()
    if escaped:  # what the libraries of PHP, .NET and Java make of these letters
        text = text.replace(b"/", rb"\/").replace(b"+", rb"\u002B").replace(b"=", rb"\u003d")
    assert read(cut(text, places)) == images
    assert read(one_by_one(text)) == images


def test_space_may_stand_wherever_json_has_it() -> None:
    text = b' \t\r\n{ "images" : [ { "b64" : "eA==" } , { "b64":"" } ] }\r\n '
    assert read([text]) == read(one_by_one(text)) == [b"x", b""]


_STANDARD_BASE64 = re.compile("([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")  # RFC 4648, section 4


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(["A", "/9", "=", "==", "QUJD", "QQ==", "QUI=", "-", "\n", "é"]), max_size=12).map("".join),
    st.lists(st.integers(0, 100), max_size=4),
)
@example("QUJD====", [])  # which Python's own strictness lets pass
def test_base64_is_read_as_strictly_as_the_standard_has_it(text: str, places: list[int]) -> None:
    chunks = cut(document(text), places)
    if _STANDARD_BASE64.fullmatch(text):
        assert read(chunks) == [base64.b64decode(text)]
    else:
        with pytest.raises(MalformedRequest, match="not standard base64"):
            read(chunks)


@pytest.mark.parametrize(
    "letters",
    ["\\", r"\\\\", r"\u", r"\u00", r"\u002", r"\x41AA", r"\ud800AA", r"\u00e9AA", r"AAA\nA", "\tAAA", r"\"AAA"],
)
def test_escapes_that_stand_for_no_letter_of_base64_are_refused(letters: str) -> None:
    text = b'{"images":[{"b64":"' + letters.encode() + b'"}]}'
    for chunks in ([text], one_by_one(text)):
        with pytest.raises(MalformedRequest, match="not standard base64"):
            read(chunks)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ('{"images": [{"b64": "eA=="}], "images": [{"b64": "eQ=="}]}', 28),
        ('{"images": "dropped", "images": [{"b64": "eQ=="}]}', 11),
        ('{"images": [{"b64": "eA==", "b64": "eQ=="}]}', 26),
        ('{"images": [{"b64": 1}]}', 20),
        ('{"images": [{"url": "x"}]}', 13),
        ('{"images": [["eA=="]]}', 12),
        ('{"images": [{"b64": "eA=="}], "model": "m"}', 28),
        ('{"images": [{"b64": "eA=="}]}{', 29),
        ('{"images": [{"b64": "eA=="}]}}', 29),
        ('{"images": [{"b64": "eA=="} {"b64": "eA=="}]}', 28),
        ('{"im4ges": []}', 1),
        ("[" * 100_000, 0),
        ("\ufeff{}", 0),
        ('{\v"images": []}', 1),
        ("null", 0),
    ],
)
def test_what_is_not_of_the_form_is_refused_where_it_begins(text: str, at: int) -> None:
    data = text.encode()
    for chunks in ([data], one_by_one(data)):
        with pytest.raises(MalformedRequest, match=f"must be .* from byte {at} on$"):
            read(chunks)


def test_a_list_without_an_image_or_with_a_comma_too_many_says_so() -> None:
    for text in (b'{"images": []}', b'{"images": [{"b64": "eA=="},]}'):
        with pytest.raises(MalformedRequest, match="an image is missing"):
            read([text])


def test_a_text_that_ends_anywhere_before_its_end_is_malformed() -> None:
    text = document("QUJD", "QUI=")
    for length in range(len(text)):
        with pytest.raises(MalformedRequest, match="ends before its JSON does"):
            read([text[:length]])


def test_no_more_than_a_group_of_letters_is_held_back() -> None:
    seen = bytearray()
    reader = JsonImages(lambda: None, seen.extend)
    image = bytes(range(256)) * 4
    for sent, letter in enumerate(base64.b64encode(image), start=1):
        reader.feed((b'{"images":[{"b64":"' if sent == 1 else b"") + bytes([letter]))
        assert len(seen) == min(sent // 4 * 3, len(image))
    assert seen == image
