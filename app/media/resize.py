"""Antialiased resize and crop in one go, reading only the part of the source that the crop shows.

Two ways to the same pixels: over an array with SIMD (fast_image_resize), and over an image that Pillow decoded. Both
run one axis after the other and round to 8 bits in between, as Pillow's own resize does, so that each is within one
level of resizing the whole image with Pillow and cropping it then. Where the first is not installed (there is no wheel
of it for Linux on Arm) the second does both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.media.geometry import Axis, Orientation, ResizedCrop
from app.media.spec import Interpolation

try:
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
except ModuleNotFoundError:
    HAS_SIMD = False
else:
    HAS_SIMD = True

_CHANNELS = 3

# Radius in output pixels; Catmull-Rom is the cubic with a = -0.5, which is Pillow's bicubic.
_SUPPORT: dict[Interpolation, float] = {"bicubic": 2.0, "bilinear": 1.0}
_FILTERS = {"bicubic": FilterType.catmull_rom, "bilinear": FilterType.bilinear} if HAS_SIMD else {}
_PILLOW_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resize_array(pixels: NDArray[np.uint8], crop: ResizedCrop, interpolation: Interpolation) -> NDArray[np.uint8]:
    """Resize and crop RGB `pixels`, uint8 [height, width, 3] as stored. Returns uint8 [rows.out, columns.out, 3]."""
    support = _SUPPORT[interpolation]
    top, bottom = crop.rows.reach(support)
    height, width = bottom - top, pixels.shape[1]
    rows = _within(crop.rows, top, height)
    if not HAS_SIMD:
        image = Image.fromarray(pixels[top:bottom])
        return resize_image(image, ResizedCrop(crop.columns, rows, crop.rows_first), interpolation)
    # The rows are one run of bytes, and only those in reach are copied.
    source = ImageData(width, height, PixelType.U8x3, pixels[top:bottom].tobytes())
    resizer, algorithm = Resizer(), ResizeAlg.convolution(_FILTERS[interpolation])

    def run(image: ImageData, columns: Axis, rows: Axis) -> ImageData:
        result = ImageData(columns.out, rows.out, PixelType.U8x3)
        box = CropBox(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        resizer.resize(image, result, ResizeOptions(algorithm, use_alpha=False, crop_box=box))
        return result

    if crop.rows_first:
        left, right = crop.columns.reach(support)
        columns = _within(crop.columns, left, right - left)
        between = run(source, Axis(width, left, right, right - left), rows)
        result = run(between, columns, _whole(rows.out))
    else:
        between = run(source, crop.columns, _whole(height))
        result = run(between, _whole(crop.columns.out), rows)
    flat = np.frombuffer(result.get_buffer(), dtype=np.uint8)
    return flat.reshape(crop.rows.out, crop.columns.out, _CHANNELS)  # [H*W*3] -> [H, W, 3]


def resize_image(image: Image.Image, crop: ResizedCrop, interpolation: Interpolation) -> NDArray[np.uint8]:
    """Resize and crop an RGB image without copying it first. Returns uint8 [rows.out, columns.out, 3]."""
    resample = _PILLOW_FILTERS[interpolation]
    columns, rows = crop.columns, crop.rows
    if crop.rows_first:
        image = image.resize((image.width, rows.out), resample, box=(0, rows.start, image.width, rows.stop))
        image = image.resize((columns.out, rows.out), resample, box=(columns.start, 0, columns.stop, rows.out))
    else:
        image = image.resize((columns.out, image.height), resample, box=(columns.start, 0, columns.stop, image.height))
        image = image.resize((columns.out, rows.out), resample, box=(0, rows.start, columns.out, rows.stop))
    return np.asarray(image)


def turn_upright(pixels: NDArray[np.uint8], orientation: Orientation) -> NDArray[np.uint8]:
    """A view of `pixels`, uint8 [height, width, 3] as stored, the right way up."""
    if orientation.transpose:
        pixels = pixels.transpose(1, 0, 2)  # [h, w, 3] -> [w, h, 3]
    if orientation.flip_rows:
        pixels = pixels[::-1]
    if orientation.flip_columns:
        pixels = pixels[:, ::-1]
    return pixels


def _within(axis: Axis, first: int, length: int) -> Axis:
    """The same axis counted from source pixel `first`, of which `length` are kept."""
    return Axis(length, axis.start - first, axis.stop - first, axis.out)


def _whole(length: int) -> Axis:
    return Axis(length, 0, length, length)
