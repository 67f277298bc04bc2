"""RIFF with structure: WebP's chunks and canvas, AVI's lists, headers and index."""

from __future__ import annotations

import struct
from random import Random

from mutation import any_of, number, packed, replaced

_LISTS = (b"RIFF", b"LIST")
_DEPTH = 8  # of lists that are looked into


def chunks_of(data: bytes, start: int = 0, end: int | None = None, depth: int = 0) -> list[tuple[bytes, int, int]]:
    """(kind, start, end) of every chunk, those inside of lists included; start is where the kind stands."""
    end = len(data) if end is None else min(end, len(data))
    found: list[tuple[bytes, int, int]] = []
    at = start
    while at + 8 <= end and len(found) < 2000:
        kind = data[at : at + 4]
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        found.append((kind, at, min(at + 8 + size, end)))
        if kind in _LISTS and depth < _DEPTH:
            found += chunks_of(data, at + 12, at + 8 + size, depth + 1)
        at += 8 + size + size % 2
    return found


def length(draw: Random, data: bytes) -> bytes:
    found = chunks_of(data)
    return replaced(data, draw.choice(found)[1] + 4, packed(draw, 4, "<")) if found else data


def kind(draw: Random, data: bytes) -> bytes:
    found = chunks_of(data)
    name = draw.choice((b"LIST", b"RIFF", b"JUNK", b"idx1", b"00dc", b"01wb", b"VP8X", b"ANMF", b"ALPH", b"EXIF"))
    return replaced(data, draw.choice(found)[1], name) if found else data


def arrangement(draw: Random, data: bytes) -> bytes:
    """A chunk left out, moved, or repeated many times; the lengths around it stay as they were or follow."""
    found = chunks_of(data)[1:]
    if not found:
        return data
    _, start, end = draw.choice(found)
    at = draw.choice(found)[1]
    match draw.randrange(3):
        case 0:
            changed = data[:start] + data[end:]
        case 1:
            changed = data[:at] + data[start:end] + data[at:]
        case _:
            changed = data[:end] + data[start:end] * draw.choice((2, 40)) + data[end:]
    return replaced(changed, 4, struct.pack("<I", len(changed) - 8)) if draw.random() < 0.5 else changed


def content(draw: Random, data: bytes) -> bytes:
    """A number near the beginning of any chunk's content: that is where headers have theirs."""
    found = [(start, end) for _, start, end in chunks_of(data) if end - start > 8]
    if not found:
        return data
    start, end = draw.choice(found)
    at = draw.randrange(start + 8, min(end, start + 72))
    return replaced(data, at, packed(draw, draw.choice((1, 2, 4)), "<"))


def nested(draw: Random, data: bytes) -> bytes:
    """Lists in lists in lists."""
    depth = draw.choice((10, 200, 2000))
    inner = b""
    for _ in range(depth):
        inner = b"LIST" + struct.pack("<I", 4 + len(inner)) + b"movi" + inner
    return data[:12] + inner + data[12:]


def canvas(draw: Random, data: bytes) -> bytes:
    """An extended header in front of the picture: flags for parts that are not there, a canvas of any size."""
    side = number(draw, 4) & 0xFFFFFF, number(draw, 4) & 0xFFFFFF
    header = bytes((draw.randrange(256), 0, 0, 0)) + side[0].to_bytes(3, "little") + side[1].to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", 10) + header + data[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def frames(draw: Random, data: bytes) -> bytes:
    """An animation: frames anywhere on the canvas, as many as one likes."""
    picture = data[12:]
    flags = bytes((0x02, 0, 0, 0)) + (63).to_bytes(3, "little") * 2
    place = b"".join((number(draw, 4) & draw.choice((0xF, 0xFFFFFF))).to_bytes(3, "little") for _ in range(5))
    frame = place + bytes((draw.randrange(4),)) + picture
    chunks = b"VP8X" + struct.pack("<I", 10) + flags + b"ANIM" + struct.pack("<IIH", 6, 0, number(draw, 2))
    chunks += (b"ANMF" + struct.pack("<I", len(frame)) + frame) * draw.choice((1, 3, 200))
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def picture_size(draw: Random, data: bytes) -> bytes:
    """The size in the picture's own header (VP8 or VP8L)."""
    at = data.find(b"VP8 ")
    if at >= 0:
        return replaced(data, at + 8 + draw.choice((6, 8)), packed(draw, 2, "<"))
    at = data.find(b"VP8L")
    return replaced(data, at + 9, packed(draw, 4, "<")) if at >= 0 else data


def stream_header(draw: Random, data: bytes) -> bytes:
    """AVI: scale, rate, start, length, sample size; or the size and the codec of the pictures; or the file's totals."""
    name = draw.choice((b"strh", b"strh", b"strf", b"avih"))
    at = data.find(name)
    if at < 0:
        return data
    if name == b"strf" and draw.random() < 0.3:
        codec = draw.choice((b"H264", b"MJPG", b"MPG4", b"DIVX", b"\0\0\0\0", b"FFV1", b"VP80", b"HEVC", b"cvid"))
        return replaced(data, at + 8 + 16, codec)
    return replaced(data, at + 8 + 4 * draw.randrange(12), packed(draw, 4, "<"))


def index(draw: Random, data: bytes) -> bytes:
    """AVI: entries of the index that lead elsewhere, or a great many of them."""
    at = data.find(b"idx1")
    if at < 0:
        return data
    if draw.random() < 0.3:
        entry = b"00dc" + struct.pack("<III", 0x10, number(draw, 4), number(draw, 4))
        body = entry * draw.choice((1, 1000, 5000))
        return data[:at] + b"idx1" + struct.pack("<I", len(body)) + body
    size = max(16, int.from_bytes(data[at + 4 : at + 8], "little"))
    return replaced(data, at + 8 + 4 * draw.randrange(size // 4), packed(draw, 4, "<"))


webp = any_of((length, kind, arrangement, content, content, canvas, frames, picture_size))
avi = any_of((length, kind, arrangement, content, nested, stream_header, stream_header, stream_header, index, index))
