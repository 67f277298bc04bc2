"""Which format a file is in, by its first bytes, and what to say when it is one that is not read.

The name and the declared type of an upload are never believed. Recognising a file opens nothing and allocates nothing.
"""

from __future__ import annotations

import codecs
import re
import struct
from dataclasses import dataclass
from typing import Literal

from app.errors import UnsupportedMedia
from app.media.reader import Data

Kind = Literal["image", "video"]

IMAGE_FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")
VIDEO_FORMATS = ("MP4", "MOV", "MKV", "WebM", "AVI", "GIF")

_HEAD_BYTES = 512
_MOST_BOXES = 1000  # side by side; a file has a handful
_HEIF_TABLES_BYTES = 64 * 1024  # a photo of 48 megapixels in tiles has 10 KB of them
_CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # but for tabs and line ends

# ISO base media files ("ftyp" at 4) carry a brand at 8 and the brands that they are compatible with from 16 on.
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_CANON_RAW_BRAND = b"crx "
# QuickTime files from before "ftyp" begin with one of these boxes.
_QUICKTIME_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


@dataclass(frozen=True)
class MediaFormat:
    """A format that is read: its `name` in lower case, as an image and as a video (None where it is not one)."""

    image: str | None = None
    video: str | None = None


_IMAGES = (
    (b"\xff\xd8\xff", MediaFormat(image="jpeg")),
    (b"\x89PNG\r\n\x1a\n", MediaFormat(image="png")),
    (b"GIF87a", MediaFormat(image="gif", video="gif")),
    (b"GIF89a", MediaFormat(image="gif", video="gif")),
    (b"II*\0", MediaFormat(image="tiff")),
    (b"MM\0*", MediaFormat(image="tiff")),
    (b"II+\0", MediaFormat(image="tiff")),
)

_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes; a text may begin with "BM" too

# Files that people do send, so that the answer can name them.
_FOREIGN = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"MM\0+", "a big-endian BigTIFF image"),  # which Pillow takes for another TIFF
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\1\0", "an icon"),
    (b"FLV\1", "a Flash video"),
    (b"OggS", "an Ogg file"),
    (b"\x30\x26\xb2\x75", "a Windows Media file"),
    (b"\0\0\1\xba", "an MPEG program stream"),
    (b"ID3", "an MP3 file"),
    (b"#EXTM3U", "a playlist"),
    (b"fLaC", "a FLAC file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)


def sniff(data: Data) -> MediaFormat | None:
    """The format that the first bytes of `data` announce, or None if it is none that is read."""
    head = bytes(memoryview(data)[:_HEAD_BYTES])
    if head[:4] == b"RIFF":
        return {b"WEBP": MediaFormat(image="webp"), b"AVI ": MediaFormat(video="avi")}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _iso_format(head)
    if head[:4] == b"\x1a\x45\xdf\xa3":  # EBML; the document type stands in its header
        return MediaFormat(video="webm" if b"webm" in head[:64] else "matroska")
    if head[4:8] in _QUICKTIME_BOXES:
        return MediaFormat(video="mov")
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return MediaFormat(image="bmp")
    return next((found for magic, found in _IMAGES if head.startswith(magic)), None)


def require_image(data: Data) -> str:
    """The name of the image format of `data`, in lower case.

    Raises:
        UnsupportedMedia: it is no image that is read; the message says what it seems to be, and what is read.
    """
    found = sniff(data)
    if found is not None and found.image is not None:
        return found.image
    if found is not None:
        raise UnsupportedMedia(f"the file is a video ({found.video}), and an image is wanted: {_one_of(IMAGE_FORMATS)}")
    raise UnsupportedMedia(f"{_describe(data)}; an image is wanted: {_one_of(IMAGE_FORMATS)}")


def require_video(data: Data) -> str:
    """The name of the container of `data`: "mp4", "mov", "matroska", "webm", "avi" or "gif".

    Raises:
        UnsupportedMedia: it is no video that is read; the message says what it seems to be, and what is read.
    """
    found = sniff(data)
    if found is not None and found.video is not None:
        return found.video
    if found is not None:
        raise UnsupportedMedia(f"the file is an image ({found.image}), and a video is wanted: {_one_of(VIDEO_FORMATS)}")
    raise UnsupportedMedia(f"{_describe(data)}; a video is wanted: {_one_of(VIDEO_FORMATS)}")


def webp_size(data: Data) -> tuple[int, int] | None:
    """Width and height in pixels from a WebP file's header (RFC 9649, section 2), None if the header is cut short.

    Pillow's decoder allocates the canvas as soon as a file is opened, so the size must be known before.
    """
    head = bytes(memoryview(data)[:30])
    if len(head) < 30:
        return None
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def ends_within_a_box(data: Data) -> bool:
    """Whether an ISO base media file (ISO/IEC 14496-12, section 4.2) is cut short: its last box claims more bytes."""
    view, at = memoryview(data), 0
    for _ in range(_MOST_BOXES):
        size = int.from_bytes(view[at : at + 4], "big")
        if size == 1:  # it follows in 64 bits
            size = int.from_bytes(view[at + 8 : at + 16], "big")
        if size < 8:  # 0 is as far as the file goes; less than its own header is damage
            return False
        at += size
        if at >= len(view):
            break
    return at > len(view)


def lacks_hevc(data: Data) -> bool:
    """Whether a HEIF file has its table of items ("iinf") and none in H.265 in it ("hvc1"; ISO/IEC 23008-12)."""
    head = bytes(memoryview(data)[:_HEIF_TABLES_BYTES])
    return b"iinf" in head and b"hvc1" not in head


def _iso_format(head: bytes) -> MediaFormat | None:
    box_end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, box_end - 3, 4))]
    if brands[0] in _AVIF_BRANDS or (brands[0] in _HEIF_BRANDS and any(b in _AVIF_BRANDS for b in brands)):
        return MediaFormat(image="avif")
    if brands[0] in _HEIF_BRANDS:
        return MediaFormat(image="heic")
    if brands[0] == _CANON_RAW_BRAND:
        return None
    return MediaFormat(video="mov" if brands[0] == b"qt  " else "mp4")


def _describe(data: Data) -> str:
    head = bytes(memoryview(data)[:_HEAD_BYTES])
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp":
        return "the file is a camera's raw file"
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "the file is a WAV file"
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            return f"the file is {name}"
    if head[:1] == b"G" and len(head) > 188 and head[188:189] == b"G":
        return "the file is an MPEG transport stream"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "the file is an HTML page"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "the file is an SVG drawing"
    return "the file is a text" if _is_text(head) else "the file's format is not known"


def _is_text(head: bytes) -> bool:
    try:
        # The head of a longer file may end within a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < _HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return _CONTROL.search(text) is None


def _one_of(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
