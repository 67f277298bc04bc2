"""TIFF with structure: directories whose tags, counts, offsets and successors lie."""

from __future__ import annotations

import struct
from random import Random

from mutation import any_of, number, packed, replaced

_TAGS = (
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 292, 293, 296, 301, 317, 320, 322, 323, 324,
    325, 330, 338, 339, 347, 512, 513, 514, 529, 530, 532, 700, 34377, 34665, 34675, 34853, 37724,
)  # fmt: skip
_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32771, 32946, 34676, 34712, 34925, 50000, 50001, 0)


def _order(data: bytes) -> str:
    return ">" if data[:2] == b"MM" else "<"


def entries_of(data: bytes) -> list[int]:
    """Where each entry of the first directory lies."""
    order = _order(data)
    try:
        (directory,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, directory)
    except struct.error:
        return []
    return [at for at in range(directory + 2, directory + 2 + 12 * count, 12) if at + 12 <= len(data)]


def entry(draw: Random, data: bytes) -> bytes:
    """One entry's tag, type, count or value."""
    found = entries_of(data)
    if not found:
        return data
    offset, width = draw.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2)))
    value = packed(draw, width, _order(data))
    if offset == 0:
        value = struct.pack(_order(data) + "H", draw.choice(_TAGS))
    return replaced(data, draw.choice(found) + offset, value)


def value_of(draw: Random, data: bytes) -> bytes:
    """Size, bits, rows of a strip, offsets: the tags that decide what is allocated and where it is read."""
    wanted = draw.choice((256, 257, 258, 262, 273, 274, 277, 278, 279, 317, 322, 323))
    for at in entries_of(data):
        if struct.unpack_from(_order(data) + "H", data, at)[0] == wanted:
            return replaced(data, at + draw.choice((8, 8, 8, 4)), packed(draw, 4, _order(data)))
    return entry(draw, data)


def compression(draw: Random, data: bytes) -> bytes:
    for at in entries_of(data):
        if struct.unpack_from(_order(data) + "H", data, at)[0] == 259:
            return replaced(data, at + 8, struct.pack(_order(data) + "H", draw.choice(_COMPRESSIONS)))
    return data


def directory(draw: Random, data: bytes) -> bytes:
    """Where the first directory lies, how many entries it has, and which comes next: itself, say."""
    order = _order(data)
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
    except struct.error:
        return data
    match draw.randrange(3):
        case 0:
            return replaced(data, 4, packed(draw, 4, order))
        case 1:
            return replaced(data, start, packed(draw, 2, order))
        case _:
            following = draw.choice((start, 8, number(draw, 4)))
            return replaced(data, start + 2 + 12 * count, struct.pack(order + "I", following))


def many_values(draw: Random, data: bytes) -> bytes:
    """A directory at the end with thousands of entries, or with one that holds millions of values."""
    order = _order(data)
    at = len(data)
    count = draw.choice((1, 500, 5000))
    entry_bytes = struct.pack(order + "HHII", draw.choice(_TAGS), draw.choice((1, 2, 3, 4, 5, 12, 16)), 0, 8)
    rows = b"".join(
        replaced(entry_bytes, 4, struct.pack(order + "I", draw.choice((1, 1000, 50_000_000)))) for _ in range(count)
    )
    body = struct.pack(order + "H", count) + rows + struct.pack(order + "I", draw.choice((0, at)))
    return replaced(data, 4, struct.pack(order + "I", at)) + body


def big(draw: Random, data: bytes) -> bytes:
    """A BigTIFF header in front of the same directory."""
    order = _order(data)
    return data[:2] + struct.pack(order + "HHH", 43, draw.choice((8, 4, 0)), 0) + packed(draw, 8, order) + data[8:]


tiff = any_of((entry, entry, value_of, value_of, value_of, compression, directory, many_values, big))
