"""Resize-then-crop as arithmetic: which part of the source makes which pixel of a row.

Sizes are rounded as torchvision's `Resize` and `CenterCrop` round them (torchvision.transforms.functional), because the
published accuracies were measured so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ORIENTATION_TAG = 0x0112  # of EXIF
# Its value to: whether rows and columns change places, then whether to flip top-bottom and left-right.
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Orientation:
    """How to turn stored pixels upright: first transpose (rows become columns), then flip top-bottom and left-right."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def from_exif(cls, value: object) -> Orientation:
        """From the EXIF tag's value, 1 to 8; anything else counts as upright."""
        return cls(*_ORIENTATIONS.get(value if isinstance(value, int) else 1, _ORIENTATIONS[1]))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, upright, of a stored image of `width` x `height`; or the way back."""
        return (height, width) if self.transpose else (width, height)


@dataclass(frozen=True)
class Axis:
    """One axis of a resize with a crop: source pixels `start` to `stop` (fractions count) become `out` pixels.

    The filter may look beyond `start` and `stop`, as it does when the whole axis is resized and then cropped.
    """

    source: int
    start: float
    stop: float
    out: int

    def reach(self, support: float) -> tuple[int, int]:
        """First and last + 1 of the source pixels that a filter of radius `support` (in output pixels) reads."""
        scale = max((self.stop - self.start) / self.out, 1.0)
        margin = support * scale + 1
        return max(0, math.floor(self.start - margin)), min(self.source, math.ceil(self.stop + margin))

    def flipped(self) -> Axis:
        return Axis(self.source, self.source - self.stop, self.source - self.start, self.out)

    def reduced(self, scaling: int) -> Axis:
        """The same part of an axis whose source pixels were decoded `scaling` at a time to one, any rest to one too."""
        return Axis(-(-self.source // scaling), self.start / scaling, self.stop / scaling, self.out)


@dataclass(frozen=True)
class ResizedCrop:
    """A resize with a crop over the stored pixels. Turn what comes of it by the orientation that it was made for.

    `rows_first`: whether the vertical pass comes before the horizontal one. The passes round and clip in between, so
    that their order shows by some levels at hard edges.
    """

    columns: Axis
    rows: Axis
    rows_first: bool

    def reduced(self, scaling: int) -> ResizedCrop:
        """The same over pixels that were decoded at 1 / `scaling` of the size."""
        return ResizedCrop(self.columns.reduced(scaling), self.rows.reduced(scaling), self.rows_first)


def resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height after resizing the short side to `short_side`, the long side rounded down."""
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def center_crop(
    width: int, height: int, short_side: int, crop_width: int, crop_height: int, orientation: Orientation
) -> ResizedCrop:
    """The centre `crop_width` x `crop_height` after resizing the short side to `short_side`.

    `width` and `height` are as stored. All the arithmetic is done upright and then turned back, so that an image with
    an orientation tag gives the very pixels of the upright image.
    """
    upright_width, upright_height = orientation.size(width, height)
    new_width, new_height = resized(upright_width, upright_height, short_side)
    columns = _crop_axis(upright_width, new_width, crop_width)
    rows = _crop_axis(upright_height, new_height, crop_height)
    rows_first = pillow_resizes_rows_first(upright_width, upright_height, new_width, new_height)
    # Undo the flips, then the transposition.
    columns = columns.flipped() if orientation.flip_columns else columns
    rows = rows.flipped() if orientation.flip_rows else rows
    if orientation.transpose:
        return ResizedCrop(columns=rows, rows=columns, rows_first=not rows_first)
    return ResizedCrop(columns=columns, rows=rows, rows_first=rows_first)


def pillow_resizes_rows_first(width: int, height: int, new_width: int, new_height: int) -> bool:
    """Whether Pillow 13 runs the vertical pass first: where it takes away over twice as many rows as the other columns.

    Earlier Pillows never do. See python-pillow/Pillow pull request 9549. The tests hold this against the Pillow
    installed.
    """
    return height > new_height and height - new_height > 2 * (width - new_width)


def _crop_axis(source: int, resized_to: int, crop: int) -> Axis:
    offset = round((resized_to - crop) / 2)
    scale = source / resized_to
    # Rounding could carry the end past the last pixel.
    return Axis(source, offset * scale, min((offset + crop) * scale, source), crop)
