"""Files that no row can be made of: what is said, and what it costs."""

from __future__ import annotations

import resource
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from pictures import SPEC, decode, encode, png_chunk, scene
from PIL import Image

from app.errors import BrokenMedia, LimitExceeded, UnsupportedMedia
from app.media.image import decode_image
from app.media.limits import MediaLimits

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("P", (8, 8)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_header(width: int, height: int) -> bytes:
    """An extended WebP file whose canvas is said to be large."""
    body = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    picture = encode(Image.new("RGB", (8, 8)), "WEBP")[12:]
    chunks = b"VP8X" + struct.pack("<I", len(body)) + body + picture
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def tiff_header(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in (256, 257):
            struct.pack_into("<HHII", data, at, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


BOMBS = {
    "jpeg": jpeg_header(30000, 30000),
    "png": png_header(30000, 30000),
    "gif": gif_header(30000, 30000),
    "webp": webp_header(16000, 16000),
    "bmp": bmp_header(30000, 30000),
    "tiff": tiff_header(30000, 30000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header_and_takes_no_memory(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LimitExceeded, match="pixels"):
        decode(BOMBS[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024  # KiB


def test_each_limit_says_what_was_found_and_what_is_allowed() -> None:
    data = encode(scene(300, 200), "PNG")
    with pytest.raises(LimitExceeded, match="300x200 = 60,000 pixels; at most 50,000"):
        decode(data, limits=MediaLimits(max_pixels=50_000))
    with pytest.raises(LimitExceeded, match="a side of at most 299"):
        decode(data, limits=MediaLimits(max_side_pixels=299))
    with pytest.raises(LimitExceeded, match=r"at most 1\.4 times"):
        decode(data, limits=MediaLimits(max_aspect_ratio=1.4))
    with pytest.raises(LimitExceeded, match="at most 1,000"):
        decode(data, limits=MediaLimits(max_bytes=1000))
    decode(data, limits=MediaLimits(max_pixels=60_000, max_side_pixels=300, max_aspect_ratio=1.5, max_bytes=len(data)))


def test_a_limit_may_be_set_beyond_the_one_that_pillow_has_by_itself() -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100)))
    with pytest.raises(BrokenMedia, match="cut short"):
        decode(data, limits=MediaLimits(max_pixels=200_000_000))


def test_the_limits_hold_for_jpeg_whichever_way_it_goes() -> None:
    for image in (scene(300, 200), scene(300, 200).convert("L")):
        with pytest.raises(LimitExceeded):
            decode(encode(image, "JPEG"), limits=MediaLimits(max_pixels=50_000))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_broken(format: str, share: float) -> None:
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    data = encode(scene(300, 200), format, **options)
    with pytest.raises(BrokenMedia, match=r"cut short|damaged"):
        decode(data[: int(len(data) * share)])


def test_a_truncated_photo_is_called_cut_short() -> None:
    data = encode(scene(300, 200), "JPEG")
    with pytest.raises(BrokenMedia, match="the jpeg image is cut short: the upload may be incomplete"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("format", FORMATS)
def test_a_magic_number_alone_is_broken(format: str) -> None:
    head = encode(scene(64, 64), format)[:16]
    with pytest.raises(BrokenMedia):
        decode(head)


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_never_more_than_a_domain_error(format: str) -> None:
    data = encode(scene(120, 90), format)
    draw = np.random.default_rng(0)
    out = np.empty((224, 224, 3), np.uint8)
    for _ in range(150):
        spoilt = bytearray(data)
        for at in draw.integers(0, len(data), draw.integers(1, 12)):
            spoilt[at] = draw.integers(256)
        with suppress(BrokenMedia, LimitExceeded, UnsupportedMedia):
            decode_image(bytes(spoilt), SPEC, MediaLimits(max_pixels=1_000_000), out)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"hello, world", "a text"),
        ('{"größe": 1}'.encode(), "a text"),
        (("a" + "é" * 300).encode(), "a text"),
        (b"hello\x7f", "not known"),
        (b"\xe2\x82", "not known"),
        (b'{\x94#\xd4\xe0 "\xd3O\xe5', "not known"),
        (b"\xef\xbb\xbf\r\n <HTML>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<svg/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<feed/>", "a text"),
        (b"see <svg> there", "a text"),
        (("a" * 511 + "é").encode(), "a text"),  # its head ends within the last letter
        (("a" * 509 + "é").encode()[:510], "not known"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "a WAV file"),
        (b"RIFF\x10\0\0\0ACONanih", "not known"),
        (b"PK\x03\x04\x14\0", "a ZIP archive or an office document"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"\xff\x0a\xfa", "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"G" + bytes(187) + b"H" + bytes(187), "not known"),
        (b"\0" * 64, "not known"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw file"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", r"a video \(mp4\)"),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 40, "a video"),
    ],
)
def test_what_is_no_image_is_named_and_the_formats_are_listed(data: bytes, words: str) -> None:
    with pytest.raises(UnsupportedMedia, match=words) as refusal:
        decode(data)
    assert "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC" in str(refusal.value)


def test_formats_that_pillow_could_read_but_we_do_not_are_refused() -> None:
    for format in ("PPM", "TGA", "ICO", "PCX", "JPEG2000", "EPS"):
        with pytest.raises(UnsupportedMedia):
            decode(encode(Image.new("RGB", (16, 16)), format))


def test_pillow_is_held_to_the_format_that_the_first_bytes_announce() -> None:
    """A PNG signature in front of another format's data must not wake that format's decoder."""
    with pytest.raises(BrokenMedia):
        decode(b"\x89PNG\r\n\x1a\n" + encode(Image.new("RGB", (16, 16)), "PPM"))


def test_floating_point_pixels_are_refused_in_plain_words() -> None:
    with pytest.raises(UnsupportedMedia, match="convert it to 8 or 16 bits"):
        decode(encode(Image.new("F", (16, 16), 0.5), "TIFF"))
