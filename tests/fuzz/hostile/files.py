"""One spoilt file: which format, which sample of it, and what is done to it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from random import Random

import ebml_parts
import gif_parts
import jpeg_parts
import mp4_parts
import png_parts
import riff_parts
import tiff_parts
from mutation import Mutator, blindly, splice
from samples import images, videos

_IMAGE_MUTATORS: Mapping[str, Mutator] = {
    "jpeg": jpeg_parts.jpeg,
    "png": png_parts.png,
    "webp": riff_parts.webp,
    "gif": gif_parts.gif,
    "bmp": png_parts.bmp,
    "tiff": tiff_parts.tiff,
    "avif": mp4_parts.still,
    "heic": mp4_parts.still,
}
_VIDEO_MUTATORS: Mapping[str, Mutator] = {
    "mp4": mp4_parts.mp4,
    "mov": mp4_parts.mp4,
    "mkv": ebml_parts.mkv,
    "webm": ebml_parts.mkv,
    "avi": riff_parts.avi,
    "gif": gif_parts.gif,
}
# What costs a worker seconds by design is drawn seldom: a campaign should not wait for it all the time.
_COSTLY: Mapping[str, Mutator] = {
    "png": png_parts.large_and_blank,
    "jpeg": jpeg_parts.progressive_bomb,
    "gif": gif_parts.many_large_frames,
}
_COSTLY_SHARE = 0.01
_SPLICED_SHARE = 0.05


def image_file(draw: Random) -> tuple[str, bytes]:
    """A spoilt image, and a word for how it was made."""
    return _spoilt(draw, images(), _IMAGE_MUTATORS)


def video_file(draw: Random) -> tuple[str, bytes]:
    """A spoilt video, and a word for how it was made."""
    return _spoilt(draw, videos(), _VIDEO_MUTATORS)


def any_file(draw: Random) -> bytes:
    """A file of either kind, spoilt or sound."""
    made = draw.choice((image_file, video_file))
    return made(draw)[1] if draw.random() < 0.7 else draw.choice(sorted(images().values()))


def _spoilt(draw: Random, samples: Mapping[str, bytes], mutators: Mapping[str, Mutator]) -> tuple[str, bytes]:
    form = draw.choice(sorted(mutators))
    data = samples[draw.choice(_samples_of(form, "jpeg" in mutators))]
    chance = draw.random()
    if chance < _COSTLY_SHARE and form in _COSTLY:
        return f"{form}, costly", _COSTLY[form](draw, data)
    if chance < _COSTLY_SHARE + _SPLICED_SHARE:
        return f"{form}, spliced", splice(draw, data, samples[draw.choice(sorted(samples))])
    if chance < 0.4:
        return f"{form}, blindly", blindly(draw, data)
    return f"{form}, by its structure", mutators[form](draw, data)


@cache
def _samples_of(form: str, still: bool) -> tuple[str, ...]:
    names = images() if still else videos()
    return tuple(sorted(name for name in names if name.partition(",")[0] == form))
