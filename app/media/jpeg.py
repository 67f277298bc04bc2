"""JPEG at the codec's speed: the header read here, the pixels by libjpeg-turbo, scaled down while decoding."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from app.media.geometry import ORIENTATION_TAG
from app.media.reader import Data

# Scaled by the decoder, the short side stays at least this many times the size that it is resized to. Over 47 sharp
# photos the row is then 0.5 levels off on average and 1.0 in the worst one; at a margin of 1.4 that would be 1.7 and
# 3.5.
SCALING_MARGIN = 2.8
_SCALINGS = (8, 4, 2)

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_APP1 = 0xE1
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 without DHT, JPG and DAC
_HUFFMAN_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive
_KNOWN_FRAMES = _HUFFMAN_FRAMES | {0xC9, 0xCA}  # the last two coded arithmetically; the others lossless, hierarchical
_OTHER_BITS = (12, 16)
_SHORT, _LONG = 3, 4
_UPRIGHT = 1


@dataclass(frozen=True)
class JpegHeader:
    """What the markers before the first scan say. `orientation` is EXIF's, 1 to 8.

    `plain`: three components of 8 bits, coded by Huffman, and no orientation in any place but EXIF's.
    `known`: of a kind that libjpeg-turbo reads through Pillow.
    """

    width: int
    height: int
    orientation: int
    plain: bool
    known: bool


def read_header(data: Data) -> JpegHeader | None:
    """Read the markers of a JPEG file up to its frame header. None if they cannot be followed."""
    view = memoryview(data)
    at, orientation, elsewhere = 2, None, False
    try:
        while view[at] == 0xFF:
            marker = view[at + 1]
            if marker == 0xFF:  # padding
                at += 1
                continue
            length = int.from_bytes(view[at + 2 : at + 4], "big")
            if length < 2 or marker in (_START_OF_SCAN, _END_OF_IMAGE):
                return None
            body = view[at + 4 : at + 2 + length]
            if marker in _FRAME_HEADERS:
                bits, height, width, components = struct.unpack_from(">BHHB", body)
                plain = marker in _HUFFMAN_FRAMES and bits == 8 and components == 3 and not elsewhere
                if width == 0 or height == 0:
                    return None
                known = marker in _KNOWN_FRAMES and bits not in _OTHER_BITS
                return JpegHeader(width, height, orientation or _UPRIGHT, plain, known)
            if marker == _APP1 and orientation is None:
                block = bytes(body)
                if block.startswith(b"Exif\0\0"):
                    orientation = exif_orientation(block[6:])
                else:
                    elsewhere = elsewhere or b"Orientation" in block  # XMP, which Pillow reads
            at += 2 + length
    except (IndexError, struct.error):
        return None
    return None


def exif_orientation(exif: bytes) -> int | None:
    """The orientation, 1 to 8, in the first directory of an EXIF block (a TIFF header and so on); None without one."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == ORIENTATION_TAG:
                code = {_SHORT: "H", _LONG: "I"}.get(kind)
                value = struct.unpack_from(f"{order}{code}", exif, entry + 8)[0] if code else _UPRIGHT
                return value if 1 <= value <= 8 else None
    except struct.error:
        return None
    return None


def scaling_for(width: int, height: int, short_side: int) -> int:
    """By how much the decoder may divide the size (1, 2, 4 or 8) for a resize of the short side to `short_side`."""
    return next((scaling for scaling in _SCALINGS if min(width, height) >= scaling * short_side * SCALING_MARGIN), 1)


def decode(data: Data, header: JpegHeader, scaling: int) -> NDArray[np.uint8]:
    """Decode to RGB, uint8 [ceil(height / scaling), ceil(width / scaling), 3].

    Raises:
        ValueError: the file is damaged, or libjpeg-turbo has a remark to make about it.
    """
    # simplejpeg takes the smallest size that is no smaller than this one.
    height, width = -(-header.height // scaling), -(-header.width // scaling)
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    return pixels
