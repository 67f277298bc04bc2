"""An image file's bytes to one row, uint8 [H, W, 3].

Ordinary JPEGs go straight through libjpeg-turbo; every other format, and every odd or doubtful JPEG, through Pillow,
which is held to the formats that the file's first bytes announced. Sizes are judged before pixels are allocated.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader

import numpy as np
import pillow_heif
from numpy.typing import NDArray

# All of the plugins, and what they import when first used: a confined worker can open no file later.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
    WebPImagePlugin,
)

from app.errors import BrokenMedia, LimitExceeded, RequestError, UnsupportedMedia
from app.media import formats, jpeg, tiff
from app.media.colour import CONVERT_IT, to_rgb
from app.media.geometry import ORIENTATION_TAG, Orientation, ResizedCrop, center_crop
from app.media.limits import MediaLimits
from app.media.reader import Data, MemoryFile
from app.media.resize import resize_array, resize_image, turn_upright
from app.media.spec import DecodeInfo, ImageSpec

__all__ = ["decode_image"]

_PNG_BITS_AT = 24  # in the header chunk, which comes first
_DECODING_BYTES = 8  # of memory for a pixel, while codecs and Pillow both hold some of it
_PLUGINS = {
    "jpeg": JpegImagePlugin.JpegImageFile.format,
    "png": PngImagePlugin.PngImageFile.format,
    "webp": WebPImagePlugin.WebPImageFile.format,
    "gif": GifImagePlugin.GifImageFile.format,
    "bmp": BmpImagePlugin.BmpImageFile.format,
    "tiff": TiffImagePlugin.TiffImageFile.format,
    "avif": AvifImagePlugin.AvifImageFile.format,
    "heic": pillow_heif.HeifImageFile.format,
}
_IMPORTED_FOR_PLUGINS = (MpoImagePlugin, TiffTags)
_ENDS_EARLY = ("truncated", "end of file")  # in the words of Pillow and of libheif

# What Pillow's plugins raise on damaged files. A MemoryError is not among them.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, OverflowError,
    ZeroDivisionError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip

# `MediaLimits` judges the size, with a limit that is a setting; Pillow's own, a warning at first, would come on top.
Image.MAX_IMAGE_PIXELS = None
# Workers are processes, as many as there are cores; threads inside of them would only be in each other's way.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pillow_heif.register_heif_opener(decode_threads=0, thumbnails=False, depth_images=False, aux_images=False)
# A text or profile of a PNG that unpacks to more than Pillow's 1 MiB is no damage: printers' profiles do. It is not
# used, and unpacked all the same, so there must be a bound.
PngImagePlugin.MAX_TEXT_CHUNK = 4 * 1024 * 1024


def decode_image(data: Data, spec: ImageSpec, limits: MediaLimits, out: NDArray[np.uint8]) -> DecodeInfo:
    """Decode an image, turn it upright, resize and crop it, and write it to `out`, uint8 [height, width, 3], RGB.

    Without DCT scaling (`spec.exact`, or a photo that is not much larger than the row) the row is within one level of
    Pillow's `convert("RGB")`, antialiased resize of the short side, and centre crop; with it, within a mean of one
    level.

    Raises:
        UnsupportedMedia: not an image, or of a kind that is not read.
        BrokenMedia: an image that is damaged or cut short.
        LimitExceeded: the file, its sides or its pixels are more than `limits` allow, or than fit in memory.
    """
    limits.check_bytes(len(data))
    name = formats.require_image(data)
    try:
        info = _decode_plain_jpeg(data, spec, limits, out) if name == "jpeg" else None
        return info or _decode_with_pillow(data, name, spec, limits, out)
    except MemoryError as error:
        raise LimitExceeded("decoding the image takes more memory than one file may take") from error


def _decode_plain_jpeg(data: Data, spec: ImageSpec, limits: MediaLimits, out: NDArray[np.uint8]) -> DecodeInfo | None:
    """The fast path. None, and nothing written, if the file is not plain enough for it."""
    header = jpeg.read_header(data)
    if header is not None and not header.known:
        raise UnsupportedMedia(
            "the jpeg image has 12 bits or is lossless or hierarchical, which is not read; save it with 8 bits"
        )
    if header is None or not header.plain:
        return None
    limits.check_image(header.width, header.height)
    orientation = Orientation.from_exif(header.orientation)
    crop = _crop(header.width, header.height, spec, orientation)
    scaling = 1 if spec.exact else jpeg.scaling_for(header.width, header.height, spec.resize_short_side)
    try:
        pixels = jpeg.decode(data, header, scaling)
    except ValueError:
        return None  # Pillow forgives harmless damage, and knows the words for the rest
    row = resize_array(pixels, crop.reduced(scaling), spec.interpolation)
    out[...] = turn_upright(row, orientation)
    return _info(header.width, header.height, "jpeg", orientation)


def _decode_with_pillow(
    data: Data, name: str, spec: ImageSpec, limits: MediaLimits, out: NDArray[np.uint8]
) -> DecodeInfo:
    width, height = (name == "webp" and formats.webp_size(data)) or (0, 0)
    limits.check_image(width, height)
    if name == "heic" and formats.ends_within_a_box(data):  # libheif leaves tiles that are missing empty
        raise BrokenMedia(_cut_short(name))
    try:
        with _quiet(), BufferedReader(MemoryFile(data)) as file, Image.open(file, formats=(_PLUGINS[name],)) as image:
            limits.check_image(*image.size)
            width, height = image.size
            scaling = 1
            if name == "jpeg" and not spec.exact:
                wanted = jpeg.scaling_for(width, height, spec.resize_short_side)
                scaling = wanted if image.draft(None, (width // wanted, height // wanted)) else 1
            pixels = _load(image, data)
            if name == "tiff":  # Pillow turns these upright by itself, as it loads them
                width, height = image.size
            orientation = _orientation(image)
            crop = _crop(width, height, spec, orientation).reduced(scaling)
            out[...] = turn_upright(resize_image(to_rgb(pixels), crop, spec.interpolation), orientation)
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise LimitExceeded("the image unpacks to more than the server accepts") from error
    except _DAMAGE as error:
        _raise_if_out_of_memory(error, width * height)
        with _quiet(), suppress(*_DAMAGE):
            if name == "tiff" and not width and tiff.tells_size(data):
                raise UnsupportedMedia(f"the tiff image is of a kind that is not read; {CONVERT_IT}") from error
        if name == "heic" and not width and formats.lacks_hevc(data):
            raise UnsupportedMedia("the file is a HEIF image of a kind that is not read; save it as JPEG") from error
        if name == "bmp" and not width and "unsupported" in str(error).lower():
            raise UnsupportedMedia("the bmp image is of a kind that is not read; save it as PNG") from error
        raise BrokenMedia(_what_broke(name, error)) from error
    return _info(width, height, name, orientation)


def _orientation(image: ImageFile.ImageFile) -> Orientation:
    """Upright where its Exif block cannot be read: the picture is sound all the same."""
    try:
        return Orientation.from_exif(image.getexif().get(ORIENTATION_TAG))
    except _DAMAGE:
        return Orientation()


def _load(image: ImageFile.ImageFile, data: Data) -> Image.Image:
    """The pixels, meant as Pillow takes them in other files of their mode."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tiff.check_planes(image)
        image.load()
        return tiff.usual_grey(image)
    bits = data[_PNG_BITS_AT] if isinstance(image, PngImagePlugin.PngImageFile) and image.mode in ("L", "RGB") else 8
    image.load()
    hidden = image.info.get("transparency")
    # Pillow makes eight bits of the pixels' two, four or sixteen, but not of the level or colour that is transparent.
    if bits < 8 and isinstance(hidden, int):
        image.info["transparency"] = hidden * 255 // ((1 << bits) - 1)
    elif bits == 16 and isinstance(hidden, tuple):
        image.info["transparency"] = tuple(level >> 8 for level in hidden)
    has_alpha = isinstance(image, BmpImagePlugin.BmpImageFile) and image.mode == "RGBA"
    if has_alpha and image.getchannel("A").getextrema() == (0, 0):  # left empty by its writer, as browsers take it
        return image.convert("RGB")
    return image


def _raise_if_out_of_memory(error: Exception, pixels: int) -> None:
    """A codec of C without memory often says no more than that it failed; whether there was any shows by asking."""
    if "memory" in str(error).lower():
        raise MemoryError from error
    np.empty(pixels * _DECODING_BYTES, np.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings about odd files: whoever runs the server can do nothing about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _crop(width: int, height: int, spec: ImageSpec, orientation: Orientation) -> ResizedCrop:
    return center_crop(width, height, spec.resize_short_side, spec.width, spec.height, orientation)


def _info(width: int, height: int, name: str, orientation: Orientation) -> DecodeInfo:
    shown_width, shown_height = orientation.size(width, height)
    return DecodeInfo(width=shown_width, height=shown_height, format=name)


def _cut_short(name: str) -> str:
    return f"the {name} image is cut short: the upload may be incomplete"


def _what_broke(name: str, error: BaseException) -> str:
    if any(words in str(error).lower() for words in _ENDS_EARLY) or isinstance(error, EOFError):
        return _cut_short(name)
    return f"the {name} image is damaged and cannot be decoded"
