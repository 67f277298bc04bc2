"""Small real videos whose frames carry their own number, so that a test can read off which frames were taken."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from priority import take_ordinary_priority

Draw = Callable[[int, int, int], NDArray[np.uint8]]

BITS = 10


def numbered(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A frame, uint8 [height, width, 3]: the bits of `number` as black and white bars, the highest on the left."""
    bits = [(number >> (BITS - 1 - bit)) & 1 for bit in range(BITS)]
    columns = np.repeat(np.array(bits, np.uint8) * 255, -(-width // BITS))[:width]
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).copy()


def read_number(row: NDArray[np.uint8]) -> int:
    """The number in a frame of `numbered` that was scaled to any size, but shows its whole width."""
    width = row.shape[1]
    centres = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    middle = row[row.shape[0] // 2, centres].mean(axis=-1)
    return int(sum(1 << (BITS - 1 - bit) for bit, level in enumerate(middle) if level > 127))


@dataclass(frozen=True)
class Clip:
    """How to write a video. `times`: when each frame is shown, in ticks of `time_base`; by default one tick a frame."""

    container: str = "mp4"
    codec: str = "libx264"
    frames: int = 90
    rate: int = 30
    width: int = 160
    height: int = 160
    pixel_format: str = "yuv420p"
    options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)
    max_b_frames: int | None = None
    gop: int | None = None
    times: Sequence[int] | None = None
    time_base: Fraction | None = None
    rotation: int = 0
    sample_aspect_ratio: Fraction | None = None
    sound: bool = False
    draw: Draw = numbered


def write(clip: Clip) -> bytes:
    """Write the video that `clip` describes."""
    file = io.BytesIO()
    with av.open(file, "w", format=clip.container, options=dict(clip.container_options)) as container:
        stream = _add_stream(container, clip)
        if clip.sound:
            sound = container.add_stream("aac" if clip.container in ("mp4", "mov") else "mp3", rate=44100)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4 * 44100), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 44100
            for packet in sound.encode(silence):
                container.mux(packet)
            for packet in sound.encode(None):
                container.mux(packet)
        for number in range(clip.frames):
            picture = VideoFrame.from_ndarray(clip.draw(number, clip.width, clip.height), "rgb24")
            frame = picture.reformat(format=clip.pixel_format, interpolation="BICUBIC")
            frame.pts = number if clip.times is None else clip.times[number]
            frame.time_base = clip.time_base or Fraction(1, clip.rate)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    take_ordinary_priority()
    return file.getvalue()


def _add_stream(container: av.container.OutputContainer, clip: Clip) -> VideoStream:
    stream = container.add_stream(clip.codec, rate=clip.rate, options=dict(clip.options))
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, clip.pixel_format
    if clip.time_base is not None:
        stream.codec_context.time_base = clip.time_base
    if clip.max_b_frames is not None:
        stream.codec_context.max_b_frames = clip.max_b_frames
    if clip.gop is not None:
        stream.codec_context.gop_size = clip.gop
    if clip.sample_aspect_ratio is not None:
        stream.codec_context.sample_aspect_ratio = clip.sample_aspect_ratio
    if clip.rotation:
        stream.set_display_rotation(clip.rotation)
    return stream


def indexed_first(data: bytes, path: Path) -> bytes:
    """The same MP4 with its index in front, as for streaming."""
    with (
        av.open(io.BytesIO(data), "r") as source,
        av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return path.read_bytes()
