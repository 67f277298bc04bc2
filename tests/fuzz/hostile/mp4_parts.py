"""MP4, MOV, AVIF and HEIC with structure: boxes, their sizes, the tables that say where and when frames are."""

from __future__ import annotations

import struct
from random import Random

from mutation import any_of, number, packed, replaced

_CONTAINERS = frozenset(
    (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"mvex", b"moof", b"traf", b"iprp",
     b"ipco")
)  # fmt: skip
_DEPTH = 10  # of boxes that are looked into
_TABLES = (b"stts", b"ctts", b"stsz", b"stsc", b"stco", b"stss", b"elst", b"trun", b"sidx", b"iloc", b"ipma", b"iinf")
_HEADERS = (b"mvhd", b"mdhd", b"tkhd", b"stsd", b"vmhd", b"hdlr", b"tfhd", b"tfdt", b"trex", b"ispe", b"pixi", b"av1C",
            b"avcC", b"pitm")  # fmt: skip
_URLS = (b"file:///etc/passwd\0", b"http://127.0.0.1:9/x.mp4\0", b"concat:/etc/passwd|x\0", b"subfile,,start,0,,:x\0")


def boxes_of(data: bytes, start: int = 0, end: int | None = None, depth: int = 0) -> list[tuple[bytes, int, int]]:
    """(kind, start, end) of every box, those inside of the usual containers included."""
    end = len(data) if end is None else min(end, len(data))
    found: list[tuple[bytes, int, int]] = []
    at = start
    while at + 8 <= end and len(found) < 2000:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        size = end - at if size < 8 else size
        found.append((kind, at, min(at + size, end)))
        if kind in _CONTAINERS and depth < _DEPTH:
            found += boxes_of(data, at + 8, at + size, depth + 1)
        elif kind == b"meta" and depth < _DEPTH:
            found += boxes_of(data, at + 12, at + size, depth + 1)
        at += size
    return found


def _one(draw: Random, data: bytes, kinds: tuple[bytes, ...]) -> tuple[int, int] | None:
    found = [(start, end) for kind, start, end in boxes_of(data) if kind in kinds]
    return draw.choice(found) if found else None


def size(draw: Random, data: bytes) -> bytes:
    found = boxes_of(data)
    return replaced(data, draw.choice(found)[1], packed(draw, 4, ">")) if found else data


def long_size(draw: Random, data: bytes) -> bytes:
    """A size of 64 bits."""
    found = boxes_of(data)
    if not found:
        return data
    kind, start, end = draw.choice(found)
    claimed = draw.choice((end - start + 8, 0, 15, number(draw, 8)))
    return data[:start] + struct.pack(">I4sQ", 1, kind, claimed) + data[start + 8 :]


def kind(draw: Random, data: bytes) -> bytes:
    found = boxes_of(data)
    name = draw.choice((b"moov", b"mdat", b"free", b"moof", b"cmov", b"uuid", b"meta", b"\0\0\0\0", *_TABLES))
    return replaced(data, draw.choice(found)[1] + 4, name) if found else data


def table(draw: Random, data: bytes) -> bytes:
    """The number of a table's entries, or one of its numbers."""
    found = _one(draw, data, _TABLES)
    if found is None:
        return data
    start, end = found
    at = start + 12 if draw.random() < 0.4 else start + 8 + 4 * draw.randrange(max(1, (end - start - 8) // 4))
    return replaced(data, at, packed(draw, 4, ">"))


def table_from_scratch(draw: Random, data: bytes) -> bytes:
    """A table of another length, with any numbers, in the place of the old one; the boxes around it grow along."""
    found = _one(draw, data, (b"stts", b"ctts", b"stsz", b"stsc", b"stco", b"elst", b"stss"))
    if found is None:
        return data
    start, end = found
    name = data[start + 4 : start + 8]
    columns = {b"stts": 2, b"ctts": 2, b"stsc": 3, b"elst": 3}.get(name, 1)
    rows = draw.choice((0, 1, 12, 5000))
    claimed = draw.choice((rows, rows, number(draw, 4)))
    head = struct.pack(">I", 0) if name == b"stsz" else b""
    body = b"\0\0\0\0" + head + struct.pack(">I", claimed) + packed(draw, 4, ">") * columns * rows
    return _grown(data, start, end, struct.pack(">I", 8 + len(body)) + name + body)


def header(draw: Random, data: bytes) -> bytes:
    """Time scales, durations, matrices, sizes, codecs and their configuration."""
    found = _one(draw, data, _HEADERS)
    if found is None:
        return data
    start, end = found
    at = draw.randrange(start + 8, max(start + 9, end))
    return replaced(data, at, packed(draw, draw.choice((1, 2, 4)), ">"))


def codec(draw: Random, data: bytes) -> bytes:
    """Another codec's name over the same frames."""
    at = data.find(b"stsd")
    names = (b"avc1", b"hvc1", b"hev1", b"mp4v", b"vp08", b"vp09", b"av01", b"apch", b"AVdn", b"raw ", b"jpeg", b"s263",
             b"encv", b"tmcd", b"mp4a", b"rle ", b"SVQ3")  # fmt: skip
    return replaced(data, at + 16, draw.choice(names)) if at >= 0 else data


def other_file(draw: Random, data: bytes) -> bytes:
    """A data reference that names another file: it must never be opened."""
    found = _one(draw, data, (b"dref",))
    if found is None:
        return data
    url = draw.choice(_URLS)
    entry = struct.pack(">I4sI", 12 + len(url), draw.choice((b"url ", b"urn ", b"alis")), 0) + url
    body = struct.pack(">II", 0, 1) + entry
    return _grown(data, *found, struct.pack(">I4s", 8 + len(body), b"dref") + body)


def arrangement(draw: Random, data: bytes) -> bytes:
    """A box left out, moved into another, or repeated."""
    found = boxes_of(data)
    if len(found) < 2:
        return data
    _, start, end = draw.choice(found)
    at = draw.choice(found)[1]
    match draw.randrange(3):
        case 0:
            return _grown(data, start, end, b"")
        case 1:
            return _grown(data, at, at, data[start:end])
        case _:
            return _grown(data, end, end, data[start:end] * draw.choice((1, 40)))


def nested(draw: Random, data: bytes) -> bytes:
    """Boxes in boxes in boxes."""
    name = draw.choice((b"moov", b"trak", b"udta", b"meta", b"moof"))
    inner = b""
    for _ in range(draw.choice((10, 100, 3000))):
        inner = struct.pack(">I4s", 8 + len(inner), name) + inner
    at = draw.choice([start for _, start, _ in boxes_of(data)] or [0])
    return data[:at] + inner + data[at:]


def many_streams(draw: Random, data: bytes) -> bytes:
    """The one track again and again, up to and beyond the number of streams that are allowed."""
    found = _one(draw, data, (b"trak",))
    if found is None:
        return data
    start, end = found
    return _grown(data, end, end, data[start:end] * draw.choice((1, 31, 32, 300)))


def _grown(data: bytes, start: int, end: int, new: bytes) -> bytes:
    """`new` in the place of [start, end), and every box around that place as much larger."""
    growth = len(new) - (end - start)
    changed = bytearray(data)
    for _, outer, outer_end in boxes_of(data):
        if outer < start and end <= outer_end:
            claimed = int.from_bytes(data[outer : outer + 4], "big")
            struct.pack_into(">I", changed, outer, max(0, claimed + growth) & 0xFFFFFFFF)
    return bytes(changed[:start] + new + changed[end:])


mp4 = any_of(
    (size, long_size, kind, table, table, table, table_from_scratch, table_from_scratch, header, header, header, codec,
     other_file, arrangement, nested, many_streams)
)  # fmt: skip
still = any_of((size, long_size, kind, table, table, header, header, header, arrangement, nested))
