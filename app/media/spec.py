"""What a model wants to see, and what was found in a file: small frozen records that cross process boundaries.

A *row* is one unit of a batch: an image `uint8 [H, W, 3]`, or one view of a video `uint8 [T, H, W, 3]`, always RGB. A
*view* is one crop of one clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["bicubic", "bilinear"]
SamplingMode = Literal["dense", "uniform"]


@dataclass(frozen=True)
class ImageSpec:
    """How an image becomes a row: short side to `resize_short_side`, then the centre `height` x `width` (pixels).

    `interpolation` is Pillow's, antialiased. `exact=True` forbids the JPEG decoder's own 1/2, 1/4, 1/8 scaling, which
    is several times faster on large photos and moves the result by less than one level on average.
    """

    resize_short_side: int
    height: int
    width: int
    interpolation: Interpolation = "bicubic"
    exact: bool = False

    def __post_init__(self) -> None:
        _check_crop(self.resize_short_side, self.height, self.width)


@dataclass(frozen=True)
class VideoSpec:
    """How a video becomes rows of `frames` frames of `height` x `width` pixels.

    `mode="dense"` takes every `stride`-th frame at `target_fps` frames a second (Kinetics); `mode="uniform"` takes one
    frame from the middle of each of `frames` equal parts of the video (SSv2), and ignores `stride` and `target_fps`.
    `resize_short_side` applies to one crop; three crops cover the frame at a short side of max(`height`, `width`).
    """

    frames: int
    stride: int
    target_fps: float
    mode: SamplingMode
    resize_short_side: int
    height: int
    width: int
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        _check_crop(self.resize_short_side, self.height, self.width)
        if self.frames < 1 or self.stride < 1 or self.target_fps <= 0:
            raise ValueError("frames, stride and target_fps must be positive")


def _check_crop(short_side: int, height: int, width: int) -> None:
    if not 1 <= max(height, width) <= short_side or min(height, width) < 1:
        raise ValueError(f"a crop of {width}x{height} does not fit an image with a short side of {short_side}")


MediaSpec = ImageSpec | VideoSpec


@dataclass(frozen=True)
class DecodeJob:
    """One file's work: `clips` x `crops` rows of a video, or the single row of an image."""

    spec: MediaSpec
    clips: int = 1
    crops: int = 1


@dataclass(frozen=True)
class View:
    """One row of a video: temporal clip `clip`, spatial crop `crop`, and the span that it shows in seconds."""

    clip: int
    crop: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class DecodeInfo:
    """What the file turned out to be. `width` and `height` in pixels, as displayed (after rotation).

    `format` is Pillow's name in lower case ("jpeg", "png", …) or the container's ("mp4", "matroska", …). The rest is
    set for videos alone: `frames` in the file, `duration_s`, the mean rate `fps`, and the views in the order of the
    rows.
    """

    width: int
    height: int
    format: str
    frames: int | None = None
    duration_s: float | None = None
    fps: float | None = None
    views: tuple[View, ...] = ()


def row_shape(spec: MediaSpec) -> tuple[int, ...]:
    """Shape of one uint8 row: `(H, W, 3)` or `(T, H, W, 3)`."""
    if isinstance(spec, ImageSpec):
        return (spec.height, spec.width, 3)
    return (spec.frames, spec.height, spec.width, 3)


def rows_of(job: DecodeJob) -> int:
    """How many rows `job` writes: 1 for an image, `clips * crops` for a video."""
    return 1 if isinstance(job.spec, ImageSpec) else job.clips * job.crops
