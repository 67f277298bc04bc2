"""Matroska and WebM with structure: element sizes (known, unknown, lying), times, sizes, lacing, compression."""

from __future__ import annotations

import struct
import zlib
from random import Random

from mutation import any_of, number, packed, replaced

_MASTERS = frozenset(
    bytes.fromhex(text)
    for text in ("18538067", "1549a966", "1654ae6b", "ae", "e0", "1f43b675", "a0", "1c53bb6b", "bb", "b7", "114d9b74")
)
_NUMBERS = tuple(  # TimestampScale, Duration, track number and type, PixelWidth and -Height, DefaultDuration, Timestamp
    bytes.fromhex(text) for text in ("2ad7b1", "4489", "d7", "83", "b0", "ba", "23e383", "e7", "b3", "f1", "9b", "42f3")
)
_DEPTH = 8  # of masters that are looked into
_UNKNOWN_SIZE = b"\x01\xff\xff\xff\xff\xff\xff\xff"

Element = tuple[bytes, int, int, int]  # id, start, start of the content, end


def elements_of(data: bytes, start: int = 0, end: int | None = None, depth: int = 0) -> list[Element]:
    """Every element, those inside of the usual masters included."""
    end = len(data) if end is None else min(end, len(data))
    found: list[Element] = []
    at = start
    while at + 2 <= end and len(found) < 2000:
        name_bytes = 9 - data[at].bit_length()
        size_at = at + name_bytes
        if name_bytes > 4 or size_at >= end or data[size_at] == 0:
            break
        size_bytes = 9 - data[size_at].bit_length()
        size = int.from_bytes(data[size_at : size_at + size_bytes], "big") & ((1 << 7 * size_bytes) - 1)
        content = size_at + size_bytes
        name = data[at:size_at]
        found.append((name, at, content, min(content + size, end)))
        if name in _MASTERS and depth < _DEPTH:
            found += elements_of(data, content, content + size, depth + 1)
        at = content + size
    return found


def element(name: bytes, content: bytes) -> bytes:
    return name + (len(content) | 1 << 56).to_bytes(8, "big") + content


def size(draw: Random, data: bytes) -> bytes:
    """A size that lies, in as many bytes as it had or in eight."""
    found = elements_of(data)
    if not found:
        return data
    name, start, content, _ = draw.choice(found)
    lie = (number(draw, 8) >> 8 | 1 << 56).to_bytes(8, "big")
    claimed = draw.choice((_UNKNOWN_SIZE, b"\xff", b"\x80", b"\x00", lie))
    if draw.random() < 0.5:
        return replaced(data, start + len(name), claimed[: content - start - len(name)])
    return data[: start + len(name)] + claimed + data[content:]


def value(draw: Random, data: bytes) -> bytes:
    """A number of the headers, whole or floating (also not a number at all)."""
    found = [(content, end) for name, _, content, end in elements_of(data) if name in _NUMBERS and end > content]
    if not found:
        return data
    content, end = draw.choice(found)
    floats = struct.pack(">d", draw.choice((float("nan"), float("inf"), -1.0, 1e300, 5e-324)))
    new = draw.choice((packed(draw, 8, ">"), b"\0" * 8, b"\xff" * 8, floats))
    return replaced(data, content, new[: end - content] if draw.random() < 0.5 else new[content - end :])


def content(draw: Random, data: bytes) -> bytes:
    found = [(begin, end) for _, _, begin, end in elements_of(data) if end > begin]
    if not found:
        return data
    begin, end = draw.choice(found)
    return replaced(data, draw.randrange(begin, min(end, begin + 32)), packed(draw, draw.choice((1, 2, 4)), ">"))


def name(draw: Random, data: bytes) -> bytes:
    found = elements_of(data)
    if not found:
        return data
    old, start, _, _ = draw.choice(found)
    return replaced(data, start, draw.choice([other for other, _, _, _ in found if len(other) == len(old)]))


def arrangement(draw: Random, data: bytes) -> bytes:
    """An element left out, put elsewhere or repeated; the sizes around it stay."""
    found = elements_of(data)[1:]
    if not found:
        return data
    _, start, _, end = draw.choice(found)
    at = draw.choice(found)[1]
    match draw.randrange(3):
        case 0:
            return data[:start] + data[end:]
        case 1:
            return data[:at] + data[start:end] + data[at:]
        case _:
            return data[:end] + data[start:end] * draw.choice((1, 40)) + data[end:]


def nested(draw: Random, data: bytes) -> bytes:
    """Masters in masters in masters (tags, chapters, clusters)."""
    name = draw.choice((b"\x67\xc8", b"\xb6", b"\x1f\x43\xb6\x75", b"\xae", b"\x18\x53\x80\x67"))
    inner = b""
    for _ in range(draw.choice((10, 100, 2000))):
        inner = element(name, inner)
    at = draw.choice([start for _, start, _, _ in elements_of(data)] or [0])
    return data[:at] + inner + data[at:]


def block(draw: Random, data: bytes) -> bytes:
    """A block's track, time and flags (lacing), and the first bytes of its frame."""
    blocks = (b"\xa3", b"\xa1")
    found = [begin for name, _, begin, end in elements_of(data) if name in blocks and end > begin + 5]
    if not found:
        return data
    begin = draw.choice(found)
    lacing = draw.choice((b"\x02", b"\x04", b"\x06", b"\xff"))
    at, new = draw.choice(((0, b"\x40"), (1, packed(draw, 2, ">")), (3, lacing), (4, b"\xff" * 8)))
    return replaced(data, begin + at, new)


def compressed(draw: Random, data: bytes) -> bytes:
    """A track that says its frames are compressed: what is in them is none, or unpacks to far more."""
    found = [(content, end) for name, _, content, end in elements_of(data) if name == b"\xae"]
    if not found:
        return data
    begin, _ = found[0]
    algorithm = element(b"\x42\x54", bytes((draw.choice((0, 1, 2, 3)),)))
    settings = element(b"\x42\x55", draw.randbytes(draw.choice((0, 4, 1000))))
    encoding = element(b"\x6d\x80", element(b"\x62\x40", element(b"\x50\x34", algorithm + settings)))
    # In the place of the void or of whatever follows: the sizes of the masters are unknown from here on.
    changed = data[:begin] + encoding + data[begin:]
    bomb = zlib.compress(b"\0" * 3_000_000, 9)
    return changed + element(b"\xa3", b"\x81\0\0\x80" + bomb) if draw.random() < 0.3 else changed


mkv = any_of((size, size, value, value, value, content, content, name, arrangement, nested, block, block, compressed))
