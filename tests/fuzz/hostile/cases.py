"""Case number so-and-so of a seed: the bytes that go to the server, and in which manner. Nothing else decides them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random

import envelopes
from files import image_file, video_file
from mutation import blindly, splice


class Manner(Enum):
    """How the bytes are sent, and what may come back."""

    WHOLE = "whole"  # at once
    PIECES = "pieces"  # cut anywhere
    HALF_CLOSED = "half-closed"  # and then no more is sent, which the server may take for leaving
    LEFT = "left"  # the sender hangs up in the middle, or before the answer
    RESET = "reset"  # likewise, and not politely


@dataclass(frozen=True)
class Case:
    """One request, or what stands in for one.

    Attributes:
        owed: whether the sender can count on an answer: the request is whole and well-formed as HTTP goes.
        cuts: where the bytes are cut; with `LEFT` and `RESET` only what comes before the first is sent.
    """

    seed: int
    number: int
    kind: str
    data: bytes
    manner: Manner
    cuts: tuple[int, ...]
    owed: bool


_Make = Callable[[Random], tuple[str, bytes]]


def _image(draw: Random) -> tuple[str, bytes]:
    kind, data = image_file(draw)
    return f"image: {kind}", envelopes.sound_upload(draw, "image", data)


def _video(draw: Random) -> tuple[str, bytes]:
    kind, data = video_file(draw)
    return f"video: {kind}", envelopes.sound_upload(draw, "video", data)


def _as(kind: str, make: Callable[[Random], bytes]) -> _Make:
    return lambda draw: (kind, make(draw))


def _garbage(draw: Random) -> bytes:
    """Not HTTP, or not for long."""
    choices = (
        lambda: draw.randbytes(draw.choice((0, 1, 100, 5000))),
        lambda: blindly(draw, envelopes.spoilt_target(draw)),
        lambda: blindly(draw, envelopes.any_upload(draw)),
        lambda: splice(draw, envelopes.any_upload(draw), envelopes.spoilt_target(draw)),
        lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(50),
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(200),
        lambda: b"GET / HTTP/" + draw.choice((b"0.9", b"1.0", b"1.1", b"9.9", b"x", b"")) + b"\r\n\r\n",
        lambda: b"\r\n" * draw.choice((1, 100, 20_000)),
        lambda: b"GET /" + b"a" * draw.choice((8000, 40_000)) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * draw.choice((100, 6000)) + b"\r\n",
        lambda: b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n" * draw.choice((2, 20)),
        lambda: b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET /\xff\xfe\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"GET /?" + draw.randbytes(30) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    return draw.choice(choices)()


def _cut_short(draw: Random) -> bytes:
    """A request whose end never comes, and whose sender waits."""
    whole = envelopes.any_upload(draw)
    return whole[: draw.randrange(1, len(whole))]


# How it is made, how often out of a hundred times, and whether an answer is owed.
_KINDS: tuple[tuple[_Make, int, bool], ...] = (
    (_image, 40, True),
    (_video, 25, True),
    (_as("several files", envelopes.several_files), 3, True),
    (_as("multipart", envelopes.spoilt_multipart), 6, True),
    (_as("json", envelopes.spoilt_json), 4, True),
    (_as("query", envelopes.spoilt_query), 4, True),
    (_as("headers", envelopes.spoilt_headers), 5, False),
    (_as("target", envelopes.spoilt_target), 3, False),
    (_as("chunks", envelopes.spoilt_chunks), 2, False),
    (_as("garbage", _garbage), 5, False),
    (_as("cut short", _cut_short), 3, False),
)


def make_case(seed: int, number: int) -> Case:
    """Case `number` of `seed`: the same bytes whenever it is asked for."""
    draw = Random(f"{seed}/{number}")
    make, _, owed = draw.choices(_KINDS, [weight for _, weight, _ in _KINDS])[0]
    kind, data = make(draw)
    manner = draw.choices(tuple(Manner), (80, 10, 3, 4, 3))[0]
    if kind == "cut short" and manner is Manner.PIECES:
        manner = Manner.HALF_CLOSED
    cuts = tuple(sorted(draw.randrange(len(data) + 1) for _ in range(draw.choice((1, 2, 5)))))
    return Case(seed, number, kind, data, manner, cuts, owed and manner in (Manner.WHOLE, Manner.PIECES))
