"""GIF with structure: the screen, frames beside it, LZW codes, extensions, endless repetition."""

from __future__ import annotations

import struct
from random import Random

from mutation import any_of, number, packed, replaced

_FRAME, _EXTENSION = 0x2C, 0x21


def blocks_of(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of each frame and extension of a sound file."""
    flags = data[10] if len(data) > 10 else 0
    at, found = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), []
    while at < len(data) and data[at] in (_FRAME, _EXTENSION):
        start = at
        if data[at] == _EXTENSION:
            at += 2
        else:
            local = data[at + 9] if at + 9 < len(data) else 0
            at += 11 + (3 << (local & 7) + 1 if local & 0x80 else 0)
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        found.append((start, min(at, len(data))))
    return found


def screen(draw: Random, data: bytes) -> bytes:
    at, width = draw.choice(((6, 2), (8, 2), (10, 1)))
    return replaced(data, at, packed(draw, width, "<"))


def frame(draw: Random, data: bytes) -> bytes:
    """Where a frame lies, how large it is, its flags, and the first size of its codes."""
    frames = [start for start, _ in blocks_of(data) if data[start] == _FRAME]
    if not frames:
        return data
    start = draw.choice(frames)
    if draw.random() < 0.5:
        return replaced(data, start + draw.choice((1, 3, 5, 7)), packed(draw, 2, "<"))
    return replaced(data, start + draw.choice((9, 10)), packed(draw, 1, "<"))


def block(draw: Random, data: bytes) -> bytes:
    """A block left out, moved or repeated many times."""
    found = blocks_of(data)
    if not found:
        return data
    start, end = draw.choice(found)
    at = draw.choice(found)[0]
    match draw.randrange(3):
        case 0:
            return data[:start] + data[end:]
        case 1:
            return data[:at] + data[start:end] + data[at:]
        case _:
            return data[:end] + data[start:end] * draw.choice((2, 50, 500)) + data[end:]


def codes(draw: Random, data: bytes) -> bytes:
    """A frame's sub-blocks: their lengths, or their content."""
    frames = [(start, end) for start, end in blocks_of(data) if data[start] == _FRAME and end - start > 12]
    if not frames:
        return data
    start, end = draw.choice(frames)
    if draw.random() < 0.5:
        return replaced(data, start + 11, packed(draw, 1, "<"))
    return replaced(data, draw.randrange(start + 11, end), draw.randbytes(draw.choice((1, 4, 40))))


def extension(draw: Random, data: bytes) -> bytes:
    found = blocks_of(data)
    at = draw.choice(found)[0] if found else len(data)
    control = bytes((4, draw.randrange(256))) + packed(draw, 2, "<") + bytes((draw.randrange(256), 0))
    loop = b"\x0bNETSCAPE2.0\x03\x01" + packed(draw, 2, "<") + b"\0"
    body = draw.choice((b"\xf9" + control, b"\xff" + loop, b"\xfe\xff" + b"c" * 255 + b"\0", b"\x01\x0c" + b"\0" * 13))
    return data[:at] + (b"\x21" + body) * draw.choice((1, 3, 300)) + data[at:]


def many_large_frames(draw: Random, data: bytes) -> bytes:
    """Frames as large as the screen, each of a few bytes."""
    side, frames = draw.choice((100, 2000, 9000, 65_535)), draw.choice((2, 60, 2000))
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    one = b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, number(draw, 1) & 0x40) + b"\x02\x02\x4c\x01\0"
    return head + (b"\x21\xf9\x04\0\x05\0\0\0" + one) * frames + b";"


gif = any_of((screen, frame, frame, block, block, codes, codes, extension))
