"""Files whose pixels Pillow leaves to its reader to understand, and sound files of a kind that is not read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import decode, decode_with_info, encode, png_chunk, quarters
from PIL import Image

from app.errors import BrokenMedia, UnsupportedMedia
from app.media import formats, jpeg
from app.media.spec import ImageSpec

SPEC = ImageSpec(resize_short_side=32, height=32, width=32)
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP_AT, SAMPLES, ROWS, STRIP_BYTES, PLANES, EXTRA, FORMAT = (
    256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 338, 339,
)  # fmt: skip
FOUR_GREYS = [0, 85, 170, 255]


def tiff(samples: bytes, tags: Mapping[int, Sequence[int]], order: str = "<") -> bytes:
    """A TIFF of 32 x 32 pixels (TIFF 6.0): `tags` are SHORTs; strips of the same length hold `samples`."""
    strips = 3 if tags.get(PLANES) == (2,) else 1
    length = len(samples) // strips
    entries: dict[int, Sequence[int]] = {
        WIDTH: (32,), HEIGHT: (32,), COMPRESSION: (1,), ROWS: (32,), SAMPLES: (1,), PHOTOMETRIC: (1,), **tags,
        STRIP_AT: range(8, 8 + len(samples), length), STRIP_BYTES: (length,) * strips,
    }  # fmt: skip
    at = 8 + len(samples)
    directory, beyond = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        value = struct.pack(f"{order}{len(values)}H", *values)
        if len(value) > 4:
            place = at + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond += value
            value = struct.pack(f"{order}I", place)
        directory += struct.pack(f"{order}HHI", tag, 3, len(values)) + value.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", at) + samples + directory + bytes(4) + beyond


def stripes(levels: Sequence[int], type: str) -> NDArray[np.generic]:
    """Four columns of grey, [32, 32]."""
    return np.repeat(np.array(levels, type), 8)[None].repeat(32, 0)


def greys(data: bytes) -> list[int]:
    """The levels in the middle of the four columns."""
    row = decode(data, SPEC)
    assert (row == row[..., :1]).all(), "not grey"
    return [int(level) for level in row[16, 4::8, 0]]


def twelve_bits(values: NDArray[np.generic]) -> bytes:
    """Two values in three bytes, as TIFF packs them."""
    pairs = values.astype(np.uint16).reshape(-1, 2)
    high, low = pairs[:, 0], pairs[:, 1]
    return np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], 1).astype(np.uint8).tobytes()


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(("photometric", "seen"), [(1, FOUR_GREYS), (0, FOUR_GREYS[::-1])])
def test_grey_tiffs_of_16_bits_say_which_end_is_white(compression: int, photometric: int, seen: list[int]) -> None:
    samples = stripes([0, 21845, 43690, 65535], "<u2").tobytes()
    packed = zlib.compress(samples) if compression == 8 else samples
    assert greys(tiff(packed, {BITS: (16,), PHOTOMETRIC: (photometric,), COMPRESSION: (compression,)})) == seen


def test_grey_tiffs_of_12_bits_reach_white() -> None:
    assert greys(tiff(twelve_bits(stripes([0, 1365, 2730, 4095], "u2")), {BITS: (12,)})) == FOUR_GREYS


def test_planes_of_8_bits_are_read_and_uncompressed_ones_of_16_refused() -> None:
    rgb = {BITS: (8, 8, 8), SAMPLES: (3,), PHOTOMETRIC: (2,), PLANES: (2,)}
    planes = np.stack([stripes(level, "u1") for level in ([255] * 4, [128] * 4, [0] * 4)])
    assert (decode(tiff(planes.tobytes(), rgb), SPEC) == (255, 128, 0)).all()
    sixteen = tiff((planes.astype("<u2") * 257).tobytes(), {**rgb, BITS: (16, 16, 16)})
    with pytest.raises(UnsupportedMedia, match="planes of 16 bits are stored one after the other"):
        decode(sixteen, SPEC)


@pytest.mark.parametrize(
    ("type", "tags", "order"),
    [
        ("<f8", {BITS: (64,), FORMAT: (3,)}, "<"),
        ("<u4", {BITS: (16, 16), SAMPLES: (2,), EXTRA: (2,)}, "<"),
        (">u2", {BITS: (16,), PHOTOMETRIC: (0,)}, ">"),
        ("<u2", {BITS: (16,), PHOTOMETRIC: (32803,)}, "<"),
        ("<u1", {BITS: (8,), COMPRESSION: (33003,)}, "<"),
    ],
    ids=["of 64 bits", "grey with alpha of 16 bits", "big-endian negative", "of a camera's sensor", "JPEG 2000 inside"],
)
def test_a_sound_tiff_of_another_kind_is_not_called_damaged(
    type: str, tags: dict[int, Sequence[int]], order: str
) -> None:
    data = tiff(stripes(FOUR_GREYS, type).tobytes(), tags, order)
    with pytest.raises(UnsupportedMedia, match="of a kind that is not read; convert it to 8 or 16 bits"):
        decode(data, SPEC)


def test_a_tiff_without_its_directory_is_damaged() -> None:
    data = tiff(stripes(FOUR_GREYS, "u1").tobytes(), {BITS: (8,)})
    for kept in (4, 8, 500, 8 + 32 * 32 + 1):
        with pytest.raises(BrokenMedia):
            decode(data[:kept], SPEC)


@pytest.mark.parametrize(
    ("marker", "bits"), [(0xC1, 12), (0xC3, 8), (0xC5, 8)], ids=["of 12 bits", "lossless", "hierarchical"]
)
def test_a_jpeg_of_another_kind_is_not_called_damaged(marker: int, bits: int) -> None:
    data = bytearray(encode(quarters(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    with pytest.raises(UnsupportedMedia, match="12 bits or is lossless or hierarchical, which is not read"):
        decode(bytes(data), SPEC)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_transparent_level_of_a_png_of_few_bits_is_white(bits: int) -> None:
    most = (1 << bits) - 1
    levels = np.repeat(np.array([0, 1, 2, most]), 8)
    packed = np.packbits((levels[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).ravel()).tobytes()
    data = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, bits, 0, 0, 0, 0))
        + png_chunk(b"tRNS", struct.pack(">H", 1))
        + png_chunk(b"IDAT", zlib.compress((b"\0" + packed) * 32))
        + png_chunk(b"IEND", b"")
    )
    assert greys(data) == [0, 255, 2 * 255 // most, 255]


def test_the_transparent_colour_of_a_png_of_16_bits_is_white() -> None:
    colours = np.array([(9, 200, 30), (50, 50, 50), (200, 30, 40), (0, 0, 0)], ">u2") * 257
    line = np.repeat(colours, 8, axis=0).tobytes()
    data = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0))
        + png_chunk(b"tRNS", colours[2].tobytes())
        + png_chunk(b"IDAT", zlib.compress((b"\0" + line) * 32))
        + png_chunk(b"IEND", b"")
    )
    row = decode(data, SPEC)
    assert row[16, [4, 12, 20, 28]].tolist() == [[9, 200, 30], [50, 50, 50], [255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(b"a" * 2_000_000)),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x>" * 700_000)),
        png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_500_000))),
    ],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_a_png_with_megabytes_of_text_is_not_called_damaged(chunk: bytes) -> None:
    data = encode(quarters(), "PNG")
    for place in (33, len(data) - 12):  # after the header, and before the end
        assert (decode(data[:place] + chunk + data[place:], SPEC) == decode(data, SPEC)).all()


@pytest.mark.parametrize(("alpha", "left"), [(0, 255), (128, 255), (255, 255)])
def test_a_bmp_whose_alpha_is_all_zero_is_opaque(alpha: int, left: int) -> None:
    red = Image.new("RGBA", (32, 32), (255, 0, 0, alpha))
    header = struct.pack("<IiiHHIIiiII", 108, 32, 32, 1, 32, 3, 32 * 32 * 4, 2835, 2835, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    pixels = red.tobytes("raw", "BGRA")
    start = 14 + len(header) + len(masks)
    data = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + masks + pixels
    shade = 0 if alpha in (0, 255) else 127
    assert (decode(data, SPEC) == (left, shade, shade)).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code", "turned"), [(3, "HH", True), (4, "I", True), (1, "BBH", False)])
def test_a_jpegs_orientation_may_be_a_long(order: str, kind: int, code: str, turned: bool) -> None:
    value = struct.pack(f"{order}{code}", *([6] + [0] * (len(code) - 1)))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    exif = b"Exif\0\0" + magic + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)
    data = encode(quarters(96, 64), "JPEG", exif=exif)
    assert jpeg.read_header(data)
    info = decode_with_info(data, SPEC)[1]
    assert (info.width, info.height) == ((64, 96) if turned else (96, 64))


def test_texts_and_raw_files_are_told_from_the_formats_that_they_look_like() -> None:
    with pytest.raises(UnsupportedMedia, match="the file is a text"):
        formats.require_image(b"BMW is a German car maker.\n" * 10)
    with pytest.raises(UnsupportedMedia, match="a camera's raw file"):
        formats.require_image(b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0" + bytes(64), b"Exif\0\0II*\0", b"Exif\0\0not a TIFF file"],
    ids=["zeros", "cut short", "text"],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_whose_exif_cannot_be_read_is_taken_as_upright(format: str, exif: bytes) -> None:
    spec = ImageSpec(resize_short_side=64, height=64, width=64)
    pictures = [encode(quarters(64, 64), format, **options) for options in ({"exif": exif}, {})]
    with_exif, without = (decode(data, spec) for data in pictures)
    assert (with_exif == without).all()
