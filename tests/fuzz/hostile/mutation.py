"""What can be done to any file without knowing its format, and the numbers that parsers trip over."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from random import Random

Mutator = Callable[[Random, bytes], bytes]

NUMBERS = (
    0, 1, 2, 3, 7, 8, 15, 16, 255, 256, 1000, 16_383, 16_384, 32_767, 32_768, 32_769, 65_535, 65_536, 100_000,
    0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF,
)  # fmt: skip
_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}


def number(draw: Random, width: int) -> int:
    """An unsigned number of `width` bytes, mostly one at the edge of something."""
    most = (1 << 8 * width) - 1
    if draw.random() < 0.3:
        return draw.randint(0, most) >> draw.randrange(0, 8 * width)
    return draw.choice(NUMBERS) & most


def packed(draw: Random, width: int, order: str) -> bytes:
    """`number` as bytes; `order` is struct's, "<" or ">"."""
    return struct.pack(order + _FORMATS[width], number(draw, width))


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with `new` written over it at `at`, never longer than it was."""
    return (data[:at] + new + data[at + len(new) :])[: len(data)]


def somewhere(draw: Random, data: bytes | bytearray) -> int:
    """A place in `data`; the head, where the structure is, as often as all of the rest."""
    return draw.randrange(max(1, min(len(data), 400) if draw.random() < 0.5 else len(data)))


def flip_bits(draw: Random, data: bytes) -> bytes:
    spoilt = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        spoilt[somewhere(draw, spoilt)] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


def set_bytes(draw: Random, data: bytes) -> bytes:
    spoilt = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 2, 8, 64))):
        spoilt[somewhere(draw, spoilt)] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, draw.randrange(256)))
    return bytes(spoilt)


def set_number(draw: Random, data: bytes) -> bytes:
    return replaced(data, somewhere(draw, data), packed(draw, draw.choice((1, 2, 4, 8)), draw.choice("<>")))


def truncate(draw: Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def remove(draw: Random, data: bytes) -> bytes:
    at = somewhere(draw, data)
    return data[:at] + data[at + draw.choice((1, 2, 4, 64, 1000)) :]


def repeat(draw: Random, data: bytes) -> bytes:
    at, size = somewhere(draw, data), draw.choice((1, 4, 64, 1000))
    return data[:at] + data[at : at + size] * draw.choice((2, 3, 30)) + data[at + size :]


def insert(draw: Random, data: bytes) -> bytes:
    at = somewhere(draw, data)
    return data[:at] + draw.randbytes(draw.choice((1, 2, 4, 8, 64, 1000))) + data[at:]


def swap(draw: Random, data: bytes) -> bytes:
    first, second = sorted((somewhere(draw, data), somewhere(draw, data)))
    size = draw.randrange(1, 200)
    return data[:first] + data[second : second + size] + data[first + size : second] + data[first : first + size]


def pad(draw: Random, data: bytes) -> bytes:
    return data + draw.choice((b"\0", b"\xff", b"\r\n", draw.randbytes(8))) * draw.choice((1, 100, 5000))


BLIND: tuple[Mutator, ...] = (flip_bits, set_bytes, set_number, truncate, remove, repeat, insert, swap, pad)


def blindly(draw: Random, data: bytes) -> bytes:
    """One to three changes that know nothing of the format."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        data = draw.choice(BLIND)(draw, data)
    return data


def splice(draw: Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one file with the end of another, or one after the other."""
    if draw.random() < 0.3:
        return data + other
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def any_of(mutators: Mapping[str, Mutator] | Sequence[Mutator]) -> Mutator:
    """One to three of `mutators`, and now and then a blind one on top."""
    chosen = tuple(mutators.values()) if isinstance(mutators, Mapping) else tuple(mutators)

    def mutate(draw: Random, data: bytes) -> bytes:
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            data = draw.choice(chosen)(draw, data)
        return flip_bits(draw, data) if draw.random() < 0.1 else data

    return mutate
