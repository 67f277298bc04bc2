"""Which frames of a video a model looks at. Pure arithmetic over frame numbers; nothing here knows a file.

Dense sampling follows SlowFast's test protocol for Kinetics (`slowfast/datasets/decoder.py`, `get_start_end_idx` and
`temporal_sampling`), uniform sampling the middle frames of equal parts, as its SSv2 loader does at test time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.media.spec import VideoSpec


@dataclass(frozen=True)
class ClipSample:
    """The frames of one clip, by number from 0, and the span of the video in seconds that they stand for."""

    frames: tuple[int, ...]
    start_s: float
    end_s: float


def sample_clips(spec: VideoSpec, frames: int, fps: float, clips: int) -> tuple[ClipSample, ...]:
    """Choose `spec.frames` frames for each of `clips` temporal clips of a video of `frames` frames at `fps`.

    A video that is shorter than a clip repeats its last frame.
    """
    if frames < 1 or fps <= 0 or clips < 1:
        raise ValueError("frames, fps and clips must be positive")
    if spec.mode == "uniform":
        return tuple(_uniform_clip(spec, frames, fps, clip, clips) for clip in range(clips))
    return tuple(_dense_clip(spec, frames, fps, clip, clips) for clip in range(clips))


def _dense_clip(spec: VideoSpec, frames: int, fps: float, clip: int, clips: int) -> ClipSample:
    span = max(1.0, spec.stride * spec.frames / spec.target_fps * fps)
    room = max(frames - span, 0.0)
    start = room / 2 if clips == 1 else clip * room / (clips - 1)
    numbers = np.linspace(start, start + span - 1, spec.frames).clip(0, frames - 1).astype(np.int64)
    return ClipSample(tuple(numbers.tolist()), start / fps, min(start + span, frames) / fps)


def _uniform_clip(spec: VideoSpec, frames: int, fps: float, clip: int, clips: int) -> ClipSample:
    # One clip takes the middle of each part; several take evenly spread places in it.
    place = (clip + 0.5) / clips
    numbers = ((np.arange(spec.frames) + place) * frames / spec.frames).clip(0, frames - 1).astype(np.int64)
    return ClipSample(tuple(numbers.tolist()), 0.0, frames / fps)
