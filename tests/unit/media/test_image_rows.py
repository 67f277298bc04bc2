"""What comes of an image file is what the textbook pipeline makes of it."""

from __future__ import annotations

import importlib
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pictures import (
    EXACT,
    SPEC,
    decode,
    decode_with_info,
    encode,
    far_off,
    noise,
    quarters,
    resize_then_crop,
    scene,
    textbook,
)
from PIL import Image, ImageCms, ImageFilter

from app.media import image as image_module
from app.media import resize
from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.spec import ImageSpec, Interpolation

ONE_IN_A_MILLION_OR_SO = 1e-4  # Pillow's own resize of a box is as far off; one value in a row is 7e-6
WHITE = (255, 255, 255)


def small(name: str = "bicubic") -> ImageSpec:
    return ImageSpec(32, 32, 32, interpolation="bilinear" if name == "bilinear" else "bicubic")


@pytest.mark.parametrize("size", [(500, 331), (331, 500), (300, 300), (257, 900), (1000, 300), (640, 480), (120, 90)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_row_is_within_one_level_of_pillows_resize_then_crop(size: tuple[int, int], format: str) -> None:
    data = encode(scene(*size), format)
    assert far_off(decode(data), textbook(data)) <= ONE_IN_A_MILLION_OR_SO


@pytest.mark.parametrize("size", [(500, 331), (300, 901), (701, 300)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_pure_noise_is_within_one_level_too(size: tuple[int, int], format: str) -> None:
    data = encode(noise(*size), format)
    assert far_off(decode(data), textbook(data)) <= ONE_IN_A_MILLION_OR_SO


@pytest.fixture
def without_simd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on Linux on Arm, where the package that resizes with SIMD has no wheel."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cykooz_resizer", None)
        importlib.reload(resize)
        yield
    importlib.reload(resize)


@pytest.mark.usefixtures("without_simd")
@pytest.mark.parametrize("size", [(500, 331), (331, 500), (257, 900), (1000, 300), (120, 90)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_jpeg_is_resized_without_simd_too(size: tuple[int, int], interpolation: Interpolation) -> None:
    assert not resize.HAS_SIMD
    spec = ImageSpec(256, 224, 224, interpolation=interpolation)
    for picture in (scene, noise):
        data = encode(picture(*size), "JPEG")
        assert far_off(decode(data, spec), textbook(data, spec)) <= ONE_IN_A_MILLION_OR_SO


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_bilinear_is_pillows_bilinear(format: str) -> None:
    spec = ImageSpec(256, 224, 224, interpolation="bilinear")
    data = encode(scene(500, 331), format)
    assert far_off(decode(data, spec), textbook(data, spec)) <= ONE_IN_A_MILLION_OR_SO
    assert far_off(decode(data, spec), textbook(data), levels=2) > 0.001


def test_a_crop_need_not_be_square_nor_smaller_than_the_image() -> None:
    data = encode(scene(100, 80), "JPEG")
    spec = ImageSpec(resize_short_side=240, height=160, width=240)
    assert far_off(decode(data, spec), textbook(data, spec)) <= ONE_IN_A_MILLION_OR_SO


@pytest.mark.parametrize("side", [29, 225, 907])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_crop_may_be_all_of_the_image(format: str, side: int) -> None:
    """From these sizes to 224 and back, floating-point numbers end beyond the last pixel."""
    data = encode(scene(side, side), format)
    spec = ImageSpec(resize_short_side=224, height=224, width=224)
    assert far_off(decode(data, spec), textbook(data, spec)) <= ONE_IN_A_MILLION_OR_SO


def test_a_single_pixel_fills_the_row() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), (200, 60, 40)), "PNG")).reshape(-1, 3).tolist() == [[200, 60, 40]] * (
        224 * 224
    )


@pytest.mark.parametrize(("size", "subsampling"), [((1600, 1501), 2), ((1600, 1501), 0), ((1500, 3001), 1)])
def test_a_large_photo_scaled_by_its_decoder_is_within_a_level_on_average(
    size: tuple[int, int], subsampling: int
) -> None:
    data = encode(scene(*size), "JPEG", quality=92, subsampling=subsampling)
    difference = np.abs(decode(data) - textbook(data))
    assert 0 < difference.mean() <= 1.0
    assert far_off(decode(data, EXACT), textbook(data)) <= ONE_IN_A_MILLION_OR_SO


def test_a_large_grey_photo_is_scaled_by_its_decoder_too() -> None:
    data = encode(scene(1601, 1500).convert("L"), "JPEG", quality=92)
    assert 0 < np.abs(decode(data) - textbook(data)).mean() <= 1.0


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_exact_holds_for_photos_that_go_through_pillow(mode: str) -> None:
    data = encode(noise(1601, 1500).convert(mode), "JPEG", quality=92)
    assert far_off(decode(data, EXACT), textbook(data)) <= ONE_IN_A_MILLION_OR_SO
    assert far_off(decode(data), textbook(data)) > 0.001


@pytest.mark.parametrize("size", [(1500, 2400), (2400, 1500)])
def test_what_lies_around_the_crop_of_a_large_photo_counts_as_it_does_in_pillow(size: tuple[int, int]) -> None:
    blots = noise(*size).filter(ImageFilter.BoxBlur(3)).point(lambda level: 255 * (level > 127))
    data = encode(blots, "JPEG", quality=95)
    assert far_off(decode(data, EXACT), textbook(data)) <= ONE_IN_A_MILLION_OR_SO


def test_a_scaled_photo_is_not_shifted() -> None:
    """An odd size leaves the decoder's last pixel half empty, which must not stretch the rest."""
    pixels = np.zeros((3003, 3001, 3), np.uint8)
    pixels[:, 2600:] = 255  # an edge near the right end of the crop
    data = encode(Image.fromarray(pixels), "JPEG", quality=95)
    assert np.abs(decode(data) - textbook(data)).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_gives_the_upright_image(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(scene(404, 330), format, exif=exif)  # an odd number of columns is cropped away
    row, info = decode_with_info(data)
    assert far_off(row, textbook(data)) <= ONE_IN_A_MILLION_OR_SO
    assert (info.width, info.height) == ((330, 404) if orientation >= 5 else (404, 330))


@pytest.mark.parametrize("size", [(400, 300), (300, 901)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_passes_over_a_turned_image_come_in_the_order_of_the_upright_one(
    format: str, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(noise(*size).point(lambda level: 255 * (level > 127)), format, exif=exif)
    assert far_off(decode(data), textbook(data)) <= ONE_IN_A_MILLION_OR_SO


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiff_is_turned_upright_once(compression: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(scene(300, 260), "TIFF", exif=exif, compression=compression)
    row, info = decode_with_info(data)
    assert far_off(row, textbook(data)) <= ONE_IN_A_MILLION_OR_SO
    assert (info.width, info.height) == (260, 300)


def test_a_jpeg_turned_by_xmp_alone_comes_out_upright() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(scene(400, 300), "JPEG", xmp=xmp)
    assert far_off(decode(data), textbook(data)) <= ONE_IN_A_MILLION_OR_SO
    assert np.abs(decode(data) - decode(encode(scene(400, 300), "JPEG"))).mean() > 5


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_every_format_shows_the_quarters_in_their_places(format: str) -> None:
    row, info = decode_with_info(encode(quarters(64, 64), format), small())
    assert info.format == ("heic" if format == "HEIF" else format.lower())
    assert (info.width, info.height) == (64, 64)
    corners = [row[5, 5], row[5, 26], row[26, 5], row[26, 26]]
    for corner, colour in zip(corners, ((255, 0, 0), (0, 255, 0), (0, 0, 255), WHITE), strict=True):
        assert np.abs(corner - colour).max() <= 12


def test_the_first_frame_of_an_animated_gif_is_shown() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, small())[16, 16].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "GIF"),
        ("RGBA", "WEBP"),
        ("RGBA", "TIFF"),
        ("RGBA", "AVIF"),
        ("RGBA", "HEIF"),
    ],
)
def test_transparency_is_laid_on_white(mode: str, format: str) -> None:
    """The left half is fully transparent over black, which must not be seen; the right half is opaque grey."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (32, 0, 64, 64))
    data = encode(image.convert(mode), format, **({"lossless": True} if format == "WEBP" else {}))
    row = decode(data, small())
    assert np.abs(row[16, 5] - WHITE).max() <= 2
    assert np.abs(row[16, 26] - 90).max() <= 4


def test_half_transparent_is_half_white() -> None:
    row = decode(encode(Image.new("RGBA", (40, 40), (0, 100, 200, 128)), "PNG"), small())
    assert np.abs(row[16, 16] - (127, 177, 227)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_colour_that_png_declares_transparent_is_white(mode: str) -> None:
    hidden = (10, 20, 30) if mode == "RGB" else 10
    image = Image.new(mode, (40, 40), hidden)
    row = decode(encode(image, "PNG", transparency=hidden), small())
    assert row[16, 16].tolist() == [255, 255, 255]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(format: str) -> None:
    levels = np.repeat(np.array([[0, 20000, 40000, 65535]], np.uint16), 16, axis=1).repeat(64, axis=0)
    row = decode(encode(Image.fromarray(levels), format), small())
    assert row[16, [4, 12, 20, 28], 0].tolist() == [0, round(20000 / 257), round(40000 / 257), 255]
    assert (row[..., 0] == row[..., 2]).all()


def test_a_transparent_level_of_sixteen_bits_is_white() -> None:
    data = encode(Image.fromarray(np.full((40, 40), 500, np.uint16)), "PNG", transparency=500)
    assert decode(data, small())[16, 16].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_come_out_as_rgb(mode: str) -> None:
    image = scene(300, 300).convert(mode)
    data = encode(image, "PNG")
    assert far_off(decode(data), resize_then_crop(image.convert("RGB"))) <= ONE_IN_A_MILLION_OR_SO


def test_cmyk_comes_out_in_the_right_colours() -> None:
    """Pillow writes CMYK as Adobe does, inverted; taken at face value it would come out as a negative."""
    data = encode(Image.new("CMYK", (64, 64), (0, 200, 255, 10)), "JPEG", quality=95)
    red, green, blue = decode(data, small())[16, 16]
    assert (red, green, blue) == pytest.approx((245, 53, 0), abs=6)


def test_ycbcr_tiff_comes_out_as_rgb() -> None:
    image = Image.new("RGB", (64, 64), (200, 60, 40))
    row = decode(encode(image.convert("YCbCr"), "TIFF"), small())
    assert row[16, 16] == pytest.approx(np.array((200, 60, 40)), abs=3)


def test_a_colour_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = scene(300, 300)
    assert (decode(encode(image, "PNG", icc_profile=profile)) == decode(encode(image, "PNG"))).all()


def test_progressive_jpeg_is_decoded_as_any_other() -> None:
    data = encode(scene(500, 331), "JPEG", progressive=True)
    assert far_off(decode(data), textbook(data)) <= ONE_IN_A_MILLION_OR_SO


@pytest.mark.parametrize("marker", [b"\xff\xc0", b"\xff\xd9"], ids=["frame header", "end"])
def test_bytes_that_are_no_jpeg_data_between_markers_do_not_matter(marker: bytes) -> None:
    """libjpeg warns of them, and Pillow takes no notice; so must we."""
    data = encode(scene(500, 331), "JPEG")
    at = data.rindex(marker)
    spoilt = data[:at] + b"\1\2\3" * 8 + data[at:]
    assert far_off(decode(spoilt), textbook(data)) <= ONE_IN_A_MILLION_OR_SO


def test_the_file_may_be_a_read_only_memory_map(tmp_path: Path) -> None:
    for format in ("JPEG", "PNG"):
        data = encode(scene(300, 280), format)
        (tmp_path / "file").write_bytes(data)
        with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            out = np.empty((224, 224, 3), np.uint8)
            decode_image(memoryview(mapped), SPEC, MediaLimits(), out)
            assert (out == decode(data)).all()


def test_ordinary_jpegs_do_not_need_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("went through Pillow")

    monkeypatch.setattr(image_module, "_decode_with_pillow", refuse)
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (encode(scene(500, 331), "JPEG"), encode(scene(500, 331), "JPEG", progressive=True, exif=exif)):
        decode(data)
