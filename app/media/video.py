"""A video file's bytes to rows, uint8 [T, H, W, 3]: open, find the frames, decode those, scale and crop them.

Colours: the matrix and range that the file names are honoured; where it names none, BT.601 limited range is assumed, as
libswscale, OpenCV and the loaders that Hiera was trained with do. HDR is not tone-mapped.
Shape: rotation and mirroring (the display matrix) are honoured. Pixels that are not square (the sample aspect ratio)
are taken as they are stored: the protocol that the accuracies were measured with does so, and Kinetics copies carry
wrong ratios. Scaling: bilinear and antialiased, since libswscale widens the filter when it shrinks. SlowFast's is not
antialiased, but it starts from videos that were shrunk to 256 to 340 pixels beforehand, where that makes no odds.
"""

from __future__ import annotations

import math
import struct
from contextlib import suppress

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from app.errors import LimitExceeded
from app.media.container import VideoFile, broken_media
from app.media.frames import FrameReader
from app.media.geometry import Orientation, resized
from app.media.limits import MediaLimits
from app.media.reader import Data
from app.media.resize import turn_upright
from app.media.sampling import ClipSample, sample_clips
from app.media.scaler import FrameScaler
from app.media.spec import DecodeInfo, VideoSpec, View
from app.media.timeline import read_timeline

__all__ = ["decode_video"]

CROPS = (1, 3)
_DISPLAY_MATRIX = struct.Struct("=9i")


def decode_video(
    data: Data,
    spec: VideoSpec,
    limits: MediaLimits,
    out: NDArray[np.uint8],
    clips: int = 1,
    crops: int = 1,
    threads: int = 1,
) -> DecodeInfo:
    """Decode `clips` x `crops` views of a video into `out`, uint8 [clips * crops, T, H, W, 3], RGB.

    Rows are ordered by clip, then by crop. One crop is the centre at a short side of `spec.resize_short_side`; three
    are left, centre and right (or top, centre and bottom) at a short side of the crop's own size. `threads` is the
    number of codec threads: more than one serves a request that is alone on the machine.

    Memory: the codec's own pictures, one more frame, and 17 bytes for each frame of the file.

    Raises:
        UnsupportedMedia: not a video that is read, or one without a video stream.
        BrokenMedia: damaged, so that the frames wanted cannot be had, nor frames within half a second of them.
        LimitExceeded: more bytes, streams, frames, seconds or pixels than `limits` allow, or than fit in memory.
    """
    if clips < 1 or crops not in CROPS:
        raise ValueError("clips must be positive, and crops 1 or 3")
    for count in dict.fromkeys((threads, 1)):  # each thread has pictures of its own: one may fit where several do not
        with suppress(MemoryError):
            return _decode(data, spec, limits, out, clips, crops, count)
    raise LimitExceeded("decoding the video takes more memory than one file may take")


def _decode(
    data: Data, spec: VideoSpec, limits: MediaLimits, out: NDArray[np.uint8], clips: int, crops: int, threads: int
) -> DecodeInfo:
    with VideoFile(data, limits) as file, broken_media(f"the {file.format} file is damaged and cannot be decoded"):
        timeline = read_timeline(file, limits)
        samples = sample_clips(spec, timeline.frames, timeline.fps, clips)
        places = _places(samples, [[timeline.time_of(frame) for frame in sample.frames] for sample in samples])
        shaper = _Shaper(spec, crops, limits)
        for time, frame in FrameReader(file, timeline, limits, threads).read(sorted(places)):
            for crop, pixels in enumerate(shaper.crops(frame)):
                for clip, step in places[time]:
                    out[clip * crops + crop, step] = pixels
        return DecodeInfo(
            width=shaper.width,
            height=shaper.height,
            format=file.format,
            frames=timeline.frames,
            duration_s=timeline.duration_s,
            fps=timeline.fps,
            views=tuple(
                View(clip, crop, sample.start_s, sample.end_s)
                for clip, sample in enumerate(samples)
                for crop in range(crops)
            ),
        )


def _places(samples: tuple[ClipSample, ...], times: list[list[int]]) -> dict[int, list[tuple[int, int]]]:
    """Time stamp to where its frame goes: (clip, step) pairs. A frame may go to several places."""
    places: dict[int, list[tuple[int, int]]] = {}
    for clip in range(len(samples)):
        for step, time in enumerate(times[clip]):
            places.setdefault(time, []).append((clip, step))
    return places


class _Shaper:
    """Turns decoded frames into crops: scaled straight to their final size, upright, RGB."""

    def __init__(self, spec: VideoSpec, crops: int, limits: MediaLimits) -> None:
        self._spec = spec
        self._crops = crops
        self._limits = limits
        self._scaler = FrameScaler(spec.interpolation)
        self.width = 0
        self.height = 0

    def crops(self, frame: VideoFrame) -> list[NDArray[np.uint8]]:
        """The crops of one frame, each a view uint8 [H, W, 3]."""
        self._limits.check_video_frame(frame.width, frame.height)  # it may change on the way
        orientation = _orientation(frame)
        self.width, self.height = orientation.size(frame.width, frame.height)
        short_side = self._spec.resize_short_side if self._crops == 1 else max(self._spec.height, self._spec.width)
        scaled = resized(self.width, self.height, short_side)
        pixels = turn_upright(self._scaler.scale(frame, *orientation.size(*scaled)), orientation)
        return [
            pixels[top : top + self._spec.height, left : left + self._spec.width]
            for top, left in self._offsets(*scaled)
        ]

    def _offsets(self, width: int, height: int) -> list[tuple[int, int]]:
        """Top and left of each crop (SlowFast's `uniform_crop`)."""
        down, right = height - self._spec.height, width - self._spec.width
        centre = (math.ceil(down / 2), math.ceil(right / 2))
        if self._crops == 1:
            return [centre]
        if height > width:
            return [(0, centre[1]), centre, (down, centre[1])]
        return [(centre[0], 0), centre, (centre[0], right)]


def _orientation(frame: VideoFrame) -> Orientation:
    """From the display matrix (libavutil/display.h): where the stored axes point on the screen."""
    found = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]  # the stub knows str only
    if found is None or found.buffer_size < _DISPLAY_MATRIX.size:
        return Orientation()
    a, b, _, c, d, *_ = _DISPLAY_MATRIX.unpack_from(memoryview(found))
    if abs(b) > abs(a):  # nearer to a quarter turn
        return Orientation(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
    return Orientation(transpose=False, flip_rows=d < 0, flip_columns=a < 0)
