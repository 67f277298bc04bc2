"""HEIC, which iPhones write: tiles, turns that the container holds, more bits, several pictures, other codecs."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pillow_heif
import pytest
from pictures import decode, decode_with_info, encode, quarters, scene
from PIL import Image

from app.errors import BrokenMedia, UnsupportedMedia
from app.media.spec import ImageSpec

SMALL = ImageSpec(resize_short_side=32, height=32, width=32)
HEIC = encode(scene(300, 200), "HEIF")


def turned(image: Image.Image, orientation: int) -> bytes:
    """A file whose container turns its pixels, as phones write it, beside an Exif block that says the same."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    return encode(image, "HEIF", quality=90)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_its_container_turns_comes_out_upright_once(orientation: int) -> None:
    shown = quarters(80, 64)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = shown.transpose(undo[orientation]) if orientation in undo else shown
    data = turned(stored, orientation)
    assert (b"irot" in data or b"imir" in data) == (orientation != 1)
    row, info = decode_with_info(data, SMALL)
    assert (info.width, info.height, info.format) == (80, 64, "heic")
    corners = [row[5, 5], row[5, 26], row[26, 5], row[26, 26]]
    for corner, colour in zip(corners, ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)), strict=True):
        assert np.abs(corner - colour).max() <= 12


def test_exif_alone_turns_nothing() -> None:
    """In HEIF the container's own properties say how a picture stands (ISO/IEC 23008-12); Exif only repeats it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(scene(300, 200), "HEIF", exif=exif)
    assert b"irot" not in data
    assert (decode(data) == decode(HEIC)).all()


def test_the_pixels_are_those_of_libavs_decoder() -> None:
    with av.open(io.BytesIO(HEIC), "r", format="mov") as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    with Image.open(io.BytesIO(HEIC)) as image:
        difference = np.abs(np.asarray(image.convert("RGB"), np.int64) - frame)
    assert difference.mean() < 1.5  # swscale and libheif interpolate colours in ways of their own
    assert np.abs(decode(HEIC) - decode(encode(Image.fromarray(frame), "PNG"))).mean() < 1.5


def test_tiles_are_put_together() -> None:
    picture = scene(700, 500)
    data = encode(picture, "HEIF", quality=95, chroma=444, tile_size=256)
    assert b"grid" in data
    row, info = decode_with_info(data)
    assert (info.width, info.height) == (700, 500)
    assert np.abs(row - decode(encode(picture, "PNG"))).mean() < 2


@pytest.mark.parametrize("bits", [10, 12])
def test_more_than_eight_bits_are_scaled(bits: int) -> None:
    levels = np.repeat(np.array([[0, 20000, 40000, 65535]], np.uint16), 16, axis=1).repeat(64, axis=0)
    pixels = np.repeat(levels[..., None], 3, axis=2)
    file = io.BytesIO()
    before = pillow_heif.options.SAVE_HDR_TO_12_BIT
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    try:
        pillow_heif.from_bytes("RGB;16", (64, 64), pixels.tobytes()).save(file, quality=-1, chroma=444)
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = before
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.info["bit_depth"] == bits
    row = decode(file.getvalue(), SMALL)
    assert np.abs(row[16, [4, 12, 20, 28], 0] - (0, 78, 156, 255)).max() <= 2


def test_of_several_pictures_the_primary_one_is_shown() -> None:
    colours = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    data = encode(colours[0], "HEIF", save_all=True, append_images=colours[1:], primary_index=1)
    assert np.abs(decode(data, SMALL)[16, 16] - (0, 255, 0)).max() <= 6


@pytest.mark.parametrize("brand", [b"heix", b"hevc", b"heim", b"mif1", b"msf1"])
def test_other_brands_of_the_same_file_are_read(brand: bytes) -> None:
    assert (decode(HEIC.replace(b"ftypheic", b"ftyp" + brand)) == decode(HEIC)).all()


@pytest.mark.parametrize("codec", [b"avc1", b"j2k1", b"jpeg", b"vvc1", b"unci"])
def test_another_codec_in_the_container_is_called_so(codec: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="a HEIF image of a kind that is not read; save it as JPEG"):
        decode(HEIC.replace(b"hvc1", codec))


def test_a_table_that_names_no_picture_is_damage() -> None:
    with pytest.raises(BrokenMedia, match="the heic image is damaged"):
        decode(HEIC.replace(b"pitm", b"free"))


@pytest.mark.parametrize("tiles", [{}, {"tile_size": 256}])
@pytest.mark.parametrize("left", [20, 200, -20_000, -1])
def test_a_photo_cut_short_is_called_so(tiles: dict[str, int], left: int) -> None:
    """Of tiles, those that are there would be shown, beside black ones, as if nothing were amiss."""
    data = encode(scene(700, 500), "HEIF", **tiles)
    with pytest.raises(BrokenMedia, match="the heic image is cut short: the upload may be incomplete"):
        decode(data[:left])


def test_boxes_may_be_of_any_form_that_the_standard_has() -> None:
    at = HEIC.index(b"mdat") - 4
    to_the_end = HEIC[:at] + bytes(4) + HEIC[at + 4 :]
    assert (decode(to_the_end) == decode(HEIC)).all()
    assert (decode(HEIC + b"\0\0\0\x08free" + b"\0" * 5) == decode(HEIC)).all()  # and what some programs leave behind
    large = HEIC + struct.pack(">I4sQ", 1, b"free", 1 << 40)
    with pytest.raises(BrokenMedia, match="cut short"):
        decode(large)
    assert (decode(large[:-8] + struct.pack(">Q", 16)) == decode(HEIC)).all()
