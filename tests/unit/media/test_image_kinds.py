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
from app.media.colour import to_rgb
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


def big_tiff(samples: bytes, tags: Mapping[int, int], order: str = "<") -> bytes:
    """The same in the form for files beyond 4 GiB, of one sample a pixel."""
    entries = {
        WIDTH: 32, HEIGHT: 32, COMPRESSION: 1, SAMPLES: 1, ROWS: 32, STRIP_AT: 16, STRIP_BYTES: len(samples), **tags,
    }  # fmt: skip
    directory = struct.pack(f"{order}Q", len(entries))
    for tag, value in sorted(entries.items()):
        directory += struct.pack(f"{order}HHQH6x", tag, 3, 1, value)
    magic = b"II+\0" if order == "<" else b"MM\0+"
    return magic + struct.pack(f"{order}HHQ", 8, 0, 16 + len(samples)) + samples + directory + bytes(8)


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


@pytest.mark.parametrize(("photometric", "seen"), [(1, FOUR_GREYS), (0, FOUR_GREYS[::-1])])
def test_tiffs_in_the_form_for_large_files_are_read(photometric: int, seen: list[int]) -> None:
    samples = stripes(FOUR_GREYS, "u1").tobytes()
    assert greys(big_tiff(samples, {BITS: 8, PHOTOMETRIC: photometric})) == seen


def test_a_tiff_in_the_form_for_large_files_that_is_of_another_kind_is_not_called_damaged() -> None:
    samples = stripes(FOUR_GREYS, "u1").tobytes()
    data = big_tiff(samples, {BITS: 8, COMPRESSION: 33003})
    with pytest.raises(UnsupportedMedia, match="of a kind that is not read"):
        decode(data, SPEC)
    with pytest.raises(BrokenMedia):
        decode(data[: len(data) // 2], SPEC)
    with pytest.raises(UnsupportedMedia, match="the file is a big-endian BigTIFF image"):
        decode(big_tiff(samples, {BITS: 8}, ">"), SPEC)


def test_grey_tiffs_of_16_bits_may_begin_with_the_high_byte() -> None:
    assert greys(tiff(stripes([0, 21845, 43690, 65535], ">u2").tobytes(), {BITS: (16,)}, ">")) == FOUR_GREYS


@pytest.mark.parametrize(
    ("pixel", "extra", "seen"),
    [
        ((120, 0, 0, 128), 2, (187, 127, 127)),
        ((60, 0, 0, 128), 1, (187, 127, 127)),  # its colours are multiplied by its opacity already
        ((120, 0, 0, 0), 0, (120, 0, 0)),  # what the fourth sample is for is not said
        ((120, 128), 2, (187, 187, 187)),
        ((60, 128), 1, (187, 187, 187)),
    ],
)
def test_a_tiff_says_what_its_further_sample_stands_for(
    pixel: tuple[int, ...], extra: int, seen: tuple[int, int, int]
) -> None:
    samples, photometric = len(pixel), 2 if len(pixel) == 4 else 1
    tags = {BITS: (8,) * samples, SAMPLES: (samples,), PHOTOMETRIC: (photometric,), EXTRA: (extra,)}
    assert (decode(tiff(bytes(pixel) * 32 * 32, tags), SPEC) == seen).all()


@pytest.mark.parametrize(
    ("mode", "seen"),
    [("RGBa", (227, 157, 147)), ("PA", (255, 255, 255)), ("RGBX", (200, 60, 40)), ("HSV", (200, 60, 40))],
)
def test_modes_that_no_file_comes_in_today_would_be_right_too(mode: str, seen: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (4, 4), (200, 60, 40))
    match mode:
        case "RGBa":
            image.putalpha(128)
        case "PA":
            image = image.convert("P")
    image = image.convert(mode)
    if mode == "PA":
        image.putalpha(0)
    row = np.asarray(to_rgb(image)).astype(np.int64)
    assert image.mode == mode
    assert np.abs(row - seen).max() <= 2


def test_a_tiff_in_a_colour_space_without_a_conversion_is_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="of the kind 'LAB' are not read"):
        decode(tiff(bytes((120, 3, 5)) * 32 * 32, {BITS: (8, 8, 8), SAMPLES: (3,), PHOTOMETRIC: (8,)}), SPEC)


def test_grey_tiffs_of_12_bits_reach_white() -> None:
    assert greys(tiff(twelve_bits(stripes([0, 1365, 2730, 4095], "u2")), {BITS: (12,)})) == FOUR_GREYS


def test_planes_of_8_bits_are_read_and_uncompressed_ones_of_16_refused() -> None:
    rgb = {BITS: (8, 8, 8), SAMPLES: (3,), PHOTOMETRIC: (2,), PLANES: (2,)}
    planes = np.stack([stripes(level, "u1") for level in ([255] * 4, [128] * 4, [0] * 4)])
    packed = [zlib.compress((plane.astype("<u2") * 257).tobytes()) for plane in planes]
    strips = b"".join(each.ljust(max(map(len, packed)), b"\0") for each in packed)
    assert (decode(tiff(strips, {**rgb, BITS: (16, 16, 16), COMPRESSION: (8,)}), SPEC) == (255, 128, 0)).all()
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


def test_a_tiff_of_a_kind_that_is_read_whose_pixels_are_spoilt_is_damaged() -> None:
    spoilt = b"\xff" * 200
    with pytest.raises(BrokenMedia, match="the tiff image is damaged"):
        decode(tiff(spoilt, {BITS: (8,), COMPRESSION: (8,)}), SPEC)


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


def bmp(header: bytes) -> bytes:
    """32 x 32 pixels of one colour behind a header of that many bytes."""
    pixels = bytes((10, 60, 200)) * 32 * 32
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + pixels


def bmp_header(size: int = 40, bits: int = 24, compression: int = 0) -> bytes:
    known = struct.pack("<IiiHHIIiiII", size, 32, 32, 1, bits, compression, 32 * 32 * 3, 2835, 2835, 0, 0)
    return known[:size].ljust(size, b"\0")


@pytest.mark.parametrize("size", [40, 52, 56, 64, 108, 124])
def test_bmps_with_headers_of_all_times_are_read(size: int) -> None:
    assert (decode(bmp(bmp_header(size)), SPEC) == (200, 60, 10)).all()
    assert (decode(bmp(struct.pack("<IHHHH", 12, 32, 32, 1, 24)), SPEC) == (200, 60, 10)).all()


@pytest.mark.parametrize(
    "header",
    [bmp_header(16), bmp_header(compression=4), bmp_header(bits=64)],
    ids=["of OS/2", "a JPEG inside", "of 64 bits"],
)
def test_a_bmp_of_another_kind_is_not_called_damaged(header: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="the bmp image is of a kind that is not read; save it as PNG"):
        decode(bmp(header), SPEC)


@pytest.mark.parametrize("marker", sorted(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}))
def test_the_kinds_of_jpeg_are_told_apart(marker: int) -> None:
    """T.81, table B.1: Huffman is the fast way's, arithmetic coding Pillow's; the rest is not read."""
    header = jpeg.read_header(encode(quarters(), "JPEG").replace(b"\xff\xc0", bytes((0xFF, marker))))
    assert header is not None
    assert header.plain == (marker in (0xC0, 0xC1, 0xC2))
    assert header.known == (header.plain or marker in (0xC9, 0xCA))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_jpeg_of_more_than_eight_bits_is_known_as_such(bits: int) -> None:
    data = bytearray(encode(quarters(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = bits
    header = jpeg.read_header(data)
    assert header is not None
    assert (header.plain, header.known) == (bits == 8, bits == 8)


def segments(data: bytes) -> list[bytes]:
    """Those of a JPEG after its first marker; the last one is all from the first scan on."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at:end])
        at = end
    return [*found, data[at:]]


@pytest.mark.parametrize("first", ["Huffman tables", "arithmetic conditioning", "padding"])
def test_what_may_come_before_a_jpegs_frame_header_is_passed_over(first: str) -> None:
    plain = encode(quarters(), "JPEG")
    parts = segments(plain)
    match first:
        case "Huffman tables":  # as cameras have them
            parts.sort(key=lambda part: (part[1] == 0xDA, part[1] == 0xC0))
        case "arithmetic conditioning":
            parts.insert(0, b"\xff\xcc\0\4\0\x10")
        case "padding":
            parts.insert(0, b"\xff\xff\xff")
    data = plain[:2] + b"".join(parts)
    assert jpeg.read_header(data) == jpeg.read_header(plain)
    assert (decode(data, SPEC) == decode(plain, SPEC)).all()


def test_a_jpeg_header_that_is_cut_short_anywhere_is_none() -> None:
    data = encode(quarters(), "JPEG")
    end = data.index(b"\xff\xc0") + 10
    assert not any(jpeg.read_header(data[:size]) for size in range(end))
    assert jpeg.read_header(data[:end])


@pytest.mark.parametrize("at", [5, 7])
def test_a_jpeg_without_height_or_width_is_damaged(at: int) -> None:
    data = bytearray(encode(quarters(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + at : frame + at + 2] = bytes(2)
    with pytest.raises(BrokenMedia, match="the jpeg image is damaged"):
        decode(bytes(data), SPEC)


def app1(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body


def test_of_several_orientations_of_a_jpeg_the_one_that_pillow_takes_counts() -> None:
    plain = encode(quarters(96, 64), "JPEG")
    exifs = [app1(encode_exif(value)) for value in (6, 3)]
    xmp = app1(b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="8"/>')
    other = app1(b"http://ns.adobe.com/xmp/extension/\0more")
    for blocks, turned in (
        (exifs, True),
        (exifs[::-1], False),
        ([xmp, other], True),
        ([other, xmp], True),
        ([exifs[1], xmp], False),
    ):
        info = decode_with_info(plain[:2] + b"".join(blocks) + plain[2:], SPEC)[1]
        assert (info.width, info.height) == ((64, 96) if turned else (96, 64))


def encode_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def test_the_transparent_level_of_a_png_of_one_bit_is_white() -> None:
    levels = np.packbits(np.repeat(np.array([0, 1, 0, 1], np.uint8), 8)).tobytes()
    for hidden, seen in ((0, [255, 255, 255, 255]), (1, [0, 255, 0, 255])):
        data = (
            b"\x89PNG\r\n\x1a\n"
            + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 1, 0, 0, 0, 0))
            + png_chunk(b"tRNS", struct.pack(">H", hidden))
            + png_chunk(b"IDAT", zlib.compress((b"\0" + levels) * 32))
            + png_chunk(b"IEND", b"")
        )
        assert greys(data) == seen


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_a_picture_that_is_wholly_transparent_is_white(format: str) -> None:
    assert (decode(encode(Image.new("RGBA", (32, 32), (200, 0, 0, 0)), format), SPEC) == 255).all()


@pytest.mark.parametrize("hidden", [None, 1])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_transparent_level_of_a_png_of_few_bits_is_white(bits: int, hidden: int | None) -> None:
    most = (1 << bits) - 1
    levels = np.repeat(np.array([0, 1, 2, most]), 8)
    packed = np.packbits((levels[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).ravel()).tobytes()
    data = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, bits, 0, 0, 0, 0))
        + (b"" if hidden is None else png_chunk(b"tRNS", struct.pack(">H", hidden)))
        + png_chunk(b"IDAT", zlib.compress((b"\0" + packed) * 32))
        + png_chunk(b"IEND", b"")
    )
    assert greys(data) == [0, 255 // most if hidden is None else 255, 2 * 255 // most, 255]


def test_the_transparent_colour_of_a_png_of_few_colours_is_white() -> None:
    image = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 8)[None].repeat(32, axis=0))
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    row = decode(encode(image, "PNG", transparency=1), SPEC)
    assert row[16, [4, 12, 20, 28]].tolist() == [[0, 0, 0], [255, 255, 255], [0, 200, 0], [0, 0, 200]]


@pytest.mark.parametrize("hides", [False, True])
def test_the_transparent_colour_of_a_png_of_16_bits_is_white(hides: bool) -> None:
    colours = (np.array([(9, 200, 30), (50, 50, 50), (200, 30, 40), (0, 0, 0)]) * 256 + 17).astype(">u2")
    line = np.repeat(colours, 8, axis=0).tobytes()
    data = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0))
        + (png_chunk(b"tRNS", colours[2].tobytes()) if hides else b"")
        + png_chunk(b"IDAT", zlib.compress((b"\0" + line) * 32))
        + png_chunk(b"IEND", b"")
    )
    row = decode(data, SPEC)
    third = [255, 255, 255] if hides else [200, 30, 40]
    assert row[16, [4, 12, 20, 28]].tolist() == [[9, 200, 30], [50, 50, 50], third, [0, 0, 0]]


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
