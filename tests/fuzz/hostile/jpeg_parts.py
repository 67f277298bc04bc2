"""JPEG with structure: segments, frame headers, tables, scans, EXIF directories."""

from __future__ import annotations

import io
import struct
from functools import cache
from random import Random

from mutation import any_of, number, packed, replaced
from PIL import Image

_BARE = frozenset((0xD8, 0xD9, 0x01, *range(0xD0, 0xD8)))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def segments_of(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of each segment; a scan's coded data belongs to its segment."""
    found, at = [], 0
    while at + 2 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        end = at + 2
        if marker not in _BARE:
            end += int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            while end + 1 < len(data) and (data[end] != 0xFF or data[end + 1] in (0, *range(0xD0, 0xD8))):
                end += 1
        if end <= at:
            break
        found.append((marker, at, min(end, len(data))))
        at = end
    return found


def _first(data: bytes, markers: frozenset[int]) -> tuple[int, int] | None:
    return next(((start, end) for marker, start, end in segments_of(data) if marker in markers), None)


def frame(draw: Random, data: bytes) -> bytes:
    """Precision, height, width, components, sampling factors."""
    found = _first(data, _FRAMES)
    if found is None:
        return data
    start, end = found
    anywhere = draw.randrange(start + 4, max(start + 5, end))
    at = draw.choice((start + 4, start + 5, start + 5, start + 7, start + 7, start + 9, anywhere))
    return replaced(data, at, packed(draw, 2 if at in (start + 5, start + 7) else 1, ">"))


def coding(draw: Random, data: bytes) -> bytes:
    """Another kind of frame: progressive, lossless, arithmetic, hierarchical."""
    found = _first(data, _FRAMES)
    return data if found is None else replaced(data, found[0] + 1, bytes([draw.choice(sorted(_FRAMES))]))


def length(draw: Random, data: bytes) -> bytes:
    segments = [start for marker, start, _ in segments_of(data) if marker not in _BARE]
    return replaced(data, draw.choice(segments) + 2, packed(draw, 2, ">")) if segments else data


def segment(draw: Random, data: bytes) -> bytes:
    """A segment left out, doubled, moved or filled with something else."""
    found = segments_of(data)
    if len(found) < 3:
        return data
    parts = [data[start:end] for _, start, end in found]
    at = draw.randrange(1, len(parts))
    match draw.randrange(4):
        case 0:
            del parts[at]
        case 1:
            parts.insert(at, parts[at])
        case 2:
            parts.insert(draw.randrange(1, len(parts)), parts.pop(at))
        case _:
            parts[at] = parts[at][:4] + draw.randbytes(max(0, len(parts[at]) - 4))
    return b"".join(parts)


def scans(draw: Random, data: bytes) -> bytes:
    """The same scan again and again: the decoder walks over the whole picture for each (the progressive bomb)."""
    found = [(start, end) for marker, start, end in segments_of(data) if marker == 0xDA]
    if not found:
        return data
    start, end = draw.choice(found)
    return data[:end] + data[start:end] * draw.choice((1, 10, 100)) + data[end:]


def progressive_bomb(draw: Random, data: bytes) -> bytes:
    """A large blank picture, and one of its scans hundreds of times: kilobytes that cost a decoder a minute."""
    large = _blank(draw.choice((2000, 5000)))
    coded = [(start, end) for marker, start, end in segments_of(large) if marker == 0xDA]
    start, end = draw.choice(coded)
    return large[: coded[-1][1]] + large[start:end] * draw.choice((30, 300, 1000)) + b"\xff\xd9"


@cache
def _blank(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG", progressive=True)
    return file.getvalue()


def scan_data(draw: Random, data: bytes) -> bytes:
    found = [(start, end) for marker, start, end in segments_of(data) if marker == 0xDA]
    if not found:
        return data
    start, end = draw.choice(found)
    at = draw.randrange(start, end)
    spoilt = draw.choice((b"\xff\xd9", b"\xff\xd0", b"\xff\xff", b"\xff\x01", draw.randbytes(20), b""))
    return data[:at] + spoilt + data[draw.choice((at, at + len(spoilt), end)) :]


def comment(draw: Random, data: bytes) -> bytes:
    """Segments of every application, up to their largest size, with any content."""
    marker = draw.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDD, 0xDC, 0xDE))
    name = draw.choice((b"", b"JFIF\0", b"Exif\0\0", b"ICC_PROFILE\0\1\1", b"Adobe", b"MPF\0", b"http://ns.adobe.com/"))
    body = name + draw.randbytes(draw.choice((0, 5, 12, 100, 65_000)))
    return (
        data[:2]
        + (bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body) * draw.choice((1, 2, 20))
        + (data[2:])
    )


def exif(draw: Random, data: bytes) -> bytes:
    """An EXIF directory with any number of entries, which may lead back to itself."""
    order = draw.choice("<>")
    count = draw.choice((0, 1, 3, 60, 65_535))
    entries = b"".join(
        struct.pack(
            order + "HHII",
            draw.choice((0x0112, 0x8769, 0x8825, 0xA005, 0x0201, 0x0202, number(draw, 2))),
            draw.choice((1, 2, 3, 4, 5, 7, 12, 13, 0, 200)),
            draw.choice((1, 1, 2, number(draw, 4))),
            draw.choice((1, 6, 8, 9, number(draw, 4))),
        )
        for _ in range(min(count, 60))
    )
    following = struct.pack(order + "I", draw.choice((0, 8, number(draw, 4))))
    start = draw.choice((8, 8, 8, number(draw, 4)))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    body = b"Exif\0\0" + head + struct.pack(order + "H", count) + entries + following
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


jpeg = any_of((frame, frame, coding, length, segment, segment, scans, scan_data, scan_data, comment, exif, exif))
