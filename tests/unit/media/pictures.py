"""Test pictures, and the textbook pipeline that rows are held against: Pillow, the whole image, step by step."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.spec import DecodeInfo, ImageSpec

SPEC = ImageSpec(resize_short_side=256, height=224, width=224)
EXACT = ImageSpec(resize_short_side=256, height=224, width=224, exact=True)


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with smooth parts, edges and some grain, and no symmetry."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, (x + 2 * y) * 255 / (width + 2 * height)], axis=2)
    blobs = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    edges = np.asarray(blobs.filter(ImageFilter.UnsharpMask(2)), np.float64)
    grain = draw.normal(0, 6, (height, width, 1))
    return Image.fromarray((0.4 * smooth + 0.6 * edges + grain).clip(0, 255).astype(np.uint8))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """The hardest picture to scale: each value by itself."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG with a sound checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Red, green, blue and white: top left, top right, bottom left, bottom right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 255)
    return Image.fromarray(pixels)


def decode(data: bytes, spec: ImageSpec = SPEC, limits: MediaLimits | None = None) -> NDArray[np.int64]:
    """The row, as int64 [H, W, 3] so that differences don't wrap."""
    return decode_with_info(data, spec, limits)[0]


def decode_with_info(
    data: bytes, spec: ImageSpec = SPEC, limits: MediaLimits | None = None
) -> tuple[NDArray[np.int64], DecodeInfo]:
    out = np.empty((spec.height, spec.width, 3), np.uint8)
    info = decode_image(data, spec, limits or MediaLimits(), out)
    return out.astype(np.int64), info


def textbook(data: bytes, spec: ImageSpec = SPEC) -> NDArray[np.int64]:
    """EXIF upright, RGB, resize the whole image, crop: as everyone writes it."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    return resize_then_crop(image, spec)


def resize_then_crop(image: Image.Image, spec: ImageSpec = SPEC) -> NDArray[np.int64]:
    width, height = image.size
    side = spec.resize_short_side
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = round((size[0] - spec.width) / 2.0), round((size[1] - spec.height) / 2.0)
    resample = Image.Resampling.BICUBIC if spec.interpolation == "bicubic" else Image.Resampling.BILINEAR
    cropped = image.resize(size, resample).crop((left, top, left + spec.width, top + spec.height))
    return np.asarray(cropped).astype(np.int64)


def far_off(row: NDArray[np.int64], reference: NDArray[np.int64], levels: int = 1) -> float:
    """The share of values that are more than `levels` apart."""
    return float((np.abs(row - reference) > levels).mean())
