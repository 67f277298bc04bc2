"""When each frame of a video is shown: found by reading the packets' time stamps, without decoding anything.

Frame numbers mean equal slices of time here: number i is the frame on screen in the middle of [i, i + 1) / fps. At a
constant rate that is frame i itself, however the container rounds its time stamps; at a varying one it is what a viewer
sees at that moment.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from app.errors import BrokenMedia, UnsupportedMedia
from app.media.container import VideoFile
from app.media.limits import MediaLimits

_ASSUMED_FPS = 30.0  # of a single frame that says nothing about its rate; any would do
_PATIENCE_S = 0.5
_REORDERED_FRAMES = 16


@dataclass(frozen=True)
class Timeline:
    """All of a stream's packets: 17 bytes each, the only thing that grows with a video's length.

    Attributes:
        times: int64 [packets], in the order of the file; when each is shown, in units of `time_base` seconds.
        decode_times: int64 [packets]; the time stamp to seek by.
        keys: bool [packets]; where decoding can start.
        shown: int64 [<= packets]; `times` in order, without what an edit list hides.
        frames, fps, duration_s: number of frames, mean rate and length, by the time stamps.
        seen_s: length up to where the file breaks off; `duration_s` if it does not.
        whole: the file ends as one should, so that what is missing was never told apart.
    """

    times: NDArray[np.int64]
    decode_times: NDArray[np.int64]
    keys: NDArray[np.bool_]
    shown: NDArray[np.int64]
    time_base: float
    frames: int
    fps: float
    duration_s: float
    seen_s: float
    whole: bool = False

    @property
    def tolerance(self) -> int:
        """How far, in units of the time base, a frame may be from the one that it stands in for."""
        return int(max(_PATIENCE_S, 2 / self.fps) / self.time_base)

    def time_of(self, frame: int) -> int:
        """The time stamp of frame number `frame`.

        Raises:
            BrokenMedia: the file breaks off before it.
            UnsupportedMedia: the file is all there, and its frames cannot be told apart.
        """
        wanted_s = (frame + 0.5) / self.fps
        if wanted_s > self.seen_s + self.tolerance * self.time_base:
            if self.whole:
                raise UnsupportedMedia("the animation's frames have no timing, which is not read; send it as MP4")
            raise BrokenMedia(
                f"the video breaks off after {self.seen_s:.1f} of {self.duration_s:.1f} s: the upload may be incomplete"
            )
        place = np.searchsorted(self.shown, self.shown[0] + wanted_s / self.time_base, side="right") - 1
        return int(self.shown[place])


def is_timed_by_decoding(file: VideoFile) -> bool:
    """Whether the container knows only the order of decoding (AVI), not when a frame is shown."""
    return file.format == "avi"


def packet_time(file: VideoFile, packet: Packet[VideoStream]) -> int | None:
    """When the packet's frame is shown, in units of the stream's time base; in AVI, its place in the order."""
    if is_timed_by_decoding(file):
        return packet.dts if packet.dts is not None else packet.pts
    return packet.pts if packet.pts is not None else packet.dts


def read_timeline(file: VideoFile, limits: MediaLimits) -> Timeline:
    """Read all packets of `file`, which must stand at its start. Leaves it at its end.

    Raises:
        BrokenMedia: there is no packet.
        LimitExceeded: more frames or seconds than `limits` allow.
    """
    times, decode_times, keys, hidden = array("q"), array("q"), bytearray(), bytearray()
    last_duration = 0
    for packet in file.packets():
        time = packet_time(file, packet)
        if time is None:  # neither stamp is there: right after the one before
            time = times[-1] + max(1, last_duration) if times else 0
        times.append(time)
        decode_times.append(packet.dts if packet.dts is not None else time)
        keys.append(packet.is_keyframe)
        hidden.append(packet.is_discard)
        last_duration = packet.duration or last_duration
        if len(times) > limits.max_frames:
            limits.check_video_length(None, len(times))
    shown = np.sort(np.frombuffer(times, np.int64)[~np.frombuffer(hidden, np.bool_)])
    if shown.size == 0:
        raise BrokenMedia("the video holds no frames: the upload may be incomplete")
    time_base = float(file.stream.time_base or 1 / 1000)
    timeline = _measure(file, shown, last_duration * time_base, time_base, len(times))
    limits.check_video_length(timeline.duration_s, timeline.frames)
    keys[0] = True  # there is no other place to start
    return Timeline(
        times=np.frombuffer(times, np.int64),
        decode_times=np.frombuffer(decode_times, np.int64),
        keys=np.frombuffer(keys, np.bool_),
        shown=shown,
        time_base=time_base,
        frames=timeline.frames,
        fps=timeline.fps,
        duration_s=timeline.duration_s,
        seen_s=timeline.seen_s,
        whole=file.is_whole_gif(),
    )


@dataclass(frozen=True)
class _Measures:
    frames: int
    fps: float
    duration_s: float
    seen_s: float


def _measure(
    file: VideoFile, shown: NDArray[np.int64], last_frame_s: float, time_base: float, packets: int
) -> _Measures:
    count = int(shown.size)
    span_s = float(shown[-1] - shown[0]) * time_base  # from the first frame's start to the last frame's
    declared_fps = float(file.stream.average_rate or 0)
    if last_frame_s <= 0:
        last_frame_s = span_s / (count - 1) if span_s > 0 else 1 / (declared_fps or _ASSUMED_FPS)
    seen_s = span_s + last_frame_s
    # A file that breaks off lacks some of the frames before its last one, which were to be stored after it.
    missing = max(0, file.stream.frames - packets)
    slack = 0.1 + 2 * time_base * declared_fps + min(missing, _REORDERED_FRAMES)
    if count == 1 or span_s <= 0:
        fps = declared_fps or 1 / last_frame_s
    elif abs(declared_fps * span_s - (count - 1)) <= slack:
        fps = declared_fps  # a constant rate, and free of the rounding of the time stamps
    else:
        fps = count / seen_s
    declared_s = _declared_seconds(file, float(shown[0]) * time_base, declared_fps or fps, missing)
    if declared_s <= seen_s + (2 / fps if file.stream.frames else max(1.0, 0.1 * seen_s)):
        return _Measures(count, fps, seen_s, seen_s)
    frames = max(count, round(fps * declared_s))
    # An AVI that is all there ends in frames without bytes, which say that the picture stays.
    return _Measures(frames, fps, declared_s, declared_s if file.is_whole_avi() else seen_s)


def _declared_seconds(file: VideoFile, start_s: float, fps: float, missing: int) -> float:
    """How long the video should last by the headers; 0 where they say nothing that could tell that it breaks off.

    Args:
        start_s: when its first frame is shown.
        missing: frames that the headers count and the file does not have.
    """
    declared_s = file.declared_seconds(start_s) or 0.0
    if not file.stream.frames:
        return declared_s
    if not missing:  # durations alone are often a little off
        return 0.0
    if declared_s and file.format in ("mp4", "mov"):
        return declared_s  # of what the edit list leaves; the frames are counted without it
    declared_s = max(declared_s, file.stream.frames / fps)
    # An AVI counts frames without bytes before its first picture, too.
    return declared_s - max(0.0, start_s) if is_timed_by_decoding(file) else declared_s
