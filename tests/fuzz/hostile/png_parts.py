"""PNG and BMP with structure: chunks whose checksums hold although what they say does not."""

from __future__ import annotations

import struct
import zlib
from random import Random

from mutation import any_of, number, packed, replaced

Chunks = list[tuple[bytes, bytes]]
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BOMB_BYTES = 3_000_000


def chunks_of(data: bytes) -> Chunks:
    """The chunks of a sound file (or of the sound beginning of a spoilt one)."""
    found, at = [], len(_SIGNATURE)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def file_of(chunks: Chunks) -> bytes:
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _with(data: bytes, kind: bytes, body: bytes, before: bytes = b"IDAT") -> bytes:
    """With one more chunk, in front of the first one of the kind `before`."""
    chunks = chunks_of(data)
    at = next((index for index, (other, _) in enumerate(chunks) if other == before), len(chunks))
    return file_of([*chunks[:at], (kind, body), *chunks[at:]])


def size(draw: Random, data: bytes) -> bytes:
    sides = struct.pack(">II", number(draw, 4) >> draw.choice((0, 8, 16)), number(draw, 4) >> draw.choice((0, 8, 16)))
    return _change(data, b"IHDR", lambda body: replaced(body, draw.choice((0, 4)), sides[: draw.choice((4, 8))]))


def pixel_kind(draw: Random, data: bytes) -> bytes:
    """Bit depth, colour type, compression, filter or interlace method."""
    return _change(data, b"IHDR", lambda body: replaced(body, draw.randrange(8, 13), packed(draw, 1, ">")))


def body_of_any(draw: Random, data: bytes) -> bytes:
    chunks = chunks_of(data)
    at = draw.randrange(len(chunks)) if chunks else 0
    if chunks:
        kind, body = chunks[at]
        spoilt = draw.choice((body[: len(body) // 2], body * 2, b"", draw.randbytes(40), body + b"\0" * 300))
        chunks[at] = (kind, spoilt)
    return file_of(chunks)


def order(draw: Random, data: bytes) -> bytes:
    chunks = chunks_of(data)
    draw.shuffle(chunks)
    return file_of(chunks * draw.choice((1, 1, 2)))


def drop(draw: Random, data: bytes) -> bytes:
    chunks = chunks_of(data)
    if chunks:
        del chunks[draw.randrange(len(chunks))]
    return file_of(chunks)


def length(draw: Random, data: bytes) -> bytes:
    """One chunk's length alone: everything after it is misread."""
    kind = draw.choice((b"IHDR", b"IDAT", b"PLTE", b"IEND"))
    at = data.find(kind)
    return replaced(data, at - 4, packed(draw, 4, ">")) if at >= 4 else data


def pixels(draw: Random, data: bytes) -> bytes:
    """Well-packed data of the wrong amount: too little, too much, with filters that do not exist, or not packed."""
    raw = draw.choice(
        (b"", b"\0" * 100, bytes([draw.randrange(256)]) * 10_000, draw.randbytes(10_000), b"\0" * _BOMB_BYTES)
    )
    packed_pixels = zlib.compress(raw, draw.choice((0, 9)))
    cut = packed_pixels[: draw.choice((len(packed_pixels), len(packed_pixels) // 2, 2))]
    return _change(data, b"IDAT", lambda body: cut)


def bomb(draw: Random, data: bytes) -> bytes:
    """Text or a colour profile that unpacks to thousands of times its size."""
    packed_zeros = zlib.compress(b"\0" * _BOMB_BYTES * draw.choice((1, 8)), 9)
    kind = draw.choice((b"zTXt", b"iTXt", b"iCCP"))
    head = b"name\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0"
    bombed = data
    for _ in range(draw.choice((1, 3, 30))):
        bombed = _with(bombed, kind, head + packed_zeros)
    return bombed


def large_and_blank(draw: Random, data: bytes) -> bytes:
    """A picture of the size that it says, which fits within the limits or just does not, in few bytes."""
    width, height = draw.choice(((4000, 3000), (10_000, 10_000), (10_000, 10_001), (32_768, 700), (40_000, 40_000)))
    rows = zlib.compressobj(9)
    line = b"\0" * (1 + (width + 7) // 8)
    body = b"".join(rows.compress(line) for _ in range(height if width < 20_000 else 10)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return file_of([(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")])


def animation(draw: Random, data: bytes) -> bytes:
    """An APNG that announces frames that are not there, or lie outside of the picture."""
    sides = [number(draw, 4) >> draw.choice((0, 20, 28)) for _ in range(4)]
    control = struct.pack(">IIIIIHHBB", 0, *sides, 1, 0, draw.randrange(256), draw.randrange(256))
    announced = struct.pack(">II", number(draw, 4), number(draw, 4))
    return _with(_with(data, b"acTL", announced), b"fcTL", control)


def side_notes(draw: Random, data: bytes) -> bytes:
    """Transparency, gamma, EXIF, palettes and the like with any content."""
    kind = draw.choice((b"tRNS", b"gAMA", b"cHRM", b"eXIf", b"PLTE", b"pHYs", b"sBIT", b"bKGD", b"hIST", b"tEXt"))
    before = draw.choice((b"IDAT", b"IEND"))
    return _with(data, kind, draw.randbytes(draw.choice((0, 1, 3, 8, 256, 769))), before)


def _change(data: bytes, kind: bytes, change: object) -> bytes:
    if not callable(change):
        raise TypeError("a change is a function")
    return file_of([(other, change(body) if other == kind else body) for other, body in chunks_of(data)])


png = any_of(
    (size, pixel_kind, pixel_kind, body_of_any, order, drop, length, pixels, bomb, animation, side_notes, side_notes)
)


def bmp(draw: Random, data: bytes) -> bytes:
    """Any of the header's numbers: sizes (also negative), bits, compression, colours, where the pixels begin."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        at, width = draw.choice(((10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4)))
        data = replaced(data, at, packed(draw, width, "<"))
    return data
