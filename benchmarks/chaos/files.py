"""What the clients send: different good files, made on the spot and always the same, and files that are wrong."""

from __future__ import annotations

import io
import random
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.media import synthetic_video

_FORMATS = ("JPEG", "JPEG", "JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class File:
    """A body, where it is sent to, and the content type that its sender claims."""

    name: str
    task: str
    data: bytes
    content_type: str = "application/octet-stream"


def good_photos(count: int) -> list[File]:
    """Pictures of coloured shapes, each another, from 200 to 640 pixels wide, mostly JPEG."""
    return [_photo(number) for number in range(count)]


def good_videos(count: int) -> list[File]:
    """H.264 files of 320 x 240 pixels, from 2 s on, each a second longer."""
    paths = [synthetic_video(320, 240, seconds=2.0 + number, fps=25) for number in range(count)]
    return [File(path.name, "video", path.read_bytes()) for path in paths]


def bad_files(photo: File, video: File) -> list[File]:
    """Broken files, bombs and wrong types; none of them may be answered with 200."""
    noise = random.Random(1).randbytes(20_000)
    middle = len(photo.data) // 2
    scrambled = photo.data[:middle] + noise[:2000] + photo.data[middle + 2000 :]
    return [
        File("half a photo", "image", photo.data[:middle]),
        File("noise in the middle of a photo", "image", scrambled),
        File("noise", "image", noise),
        File("noise that begins like a JPEG", "image", photo.data[:20] + noise),
        File("text", "image", b"not a photo at all " * 50),
        File("nothing", "image", b""),
        File("a video among the photos", "image", video.data),
        File("a PNG bomb", "image", _png_bomb(60_000, 60_000)),
        File(
            "a GIF with a canvas of 4 gigapixels", "image", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0" * 40
        ),
        File("a compressed body", "image", zlib.compress(photo.data), "application/zip"),
        File("half a video", "video", video.data[: len(video.data) // 2]),
        File("a photo among the videos", "video", photo.data),
        File("noise among the videos", "video", noise),
    ]


def _photo(number: int) -> File:
    draw = np.random.default_rng(number)
    width, height = (int(side) for side in draw.integers(200, 640, 2))
    pixels = _gradient(draw, width, height)
    for _ in range(int(draw.integers(2, 7))):
        x, y = int(draw.integers(0, width)), int(draw.integers(0, height))
        w, h = (int(side) for side in draw.integers(20, 200, 2))
        pixels[y : y + h, x : x + w] = draw.integers(0, 256, 3, dtype=np.uint8)
    encoded = io.BytesIO()
    kind = _FORMATS[number % len(_FORMATS)]
    Image.fromarray(pixels).save(encoded, kind)
    return File(f"photo {number} ({kind})", "image", encoded.getvalue())


def _gradient(draw: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3], from one colour to another, corner to corner."""
    first, second = draw.integers(0, 256, (2, 3)).astype(np.float32)
    way = (np.linspace(0, 1, height)[:, None] + np.linspace(0, 1, width)[None, :]) / 2  # [height, width]
    pixels: NDArray[np.float32] = first + way[..., None] * (second - first)
    return pixels.astype(np.uint8)


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large and inflates to 64 MiB from 64 KiB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(64 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
