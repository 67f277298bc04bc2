"""What is refused, judged from headers before anything is allocated. Every failed check is a `LimitExceeded`."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import LimitExceeded


@dataclass(frozen=True)
class MediaLimits:
    """The largest file that is decoded. Each name carries its unit; the defaults suit phones and cameras of today.

    `max_side_pixels` and `max_aspect_ratio` (longer side over shorter) hold for images and videos alike; `max_pixels`
    is for images, `max_video_pixels` for one frame of a video (default: 8K). `max_frames` counts a video's frames,
    whatever is sampled of them. `max_streams` counts all of a container's streams: sound, subtitles and pictures too.
    """

    max_bytes: int = 512 * 1024 * 1024
    max_pixels: int = 100_000_000
    max_side_pixels: int = 32_768
    max_aspect_ratio: float = 50.0
    max_video_pixels: int = 8192 * 4320
    max_video_seconds: float = 4 * 3600.0
    max_frames: int = 2_000_000
    max_streams: int = 32

    def check_bytes(self, size: int) -> None:
        """Raise LimitExceeded if a file of `size` bytes is too large."""
        if size > self.max_bytes:
            raise LimitExceeded(f"the file has {size:,} bytes; at most {self.max_bytes:,} are accepted")

    def check_image(self, width: int, height: int) -> None:
        """Raise LimitExceeded if an image of `width` x `height` pixels is too large or too narrow."""
        self._check_sides("image", width, height)
        if width * height > self.max_pixels:
            raise LimitExceeded(
                f"the image has {width}x{height} = {width * height:,} pixels; at most {self.max_pixels:,} are accepted"
            )

    def check_video_frame(self, width: int, height: int) -> None:
        """Raise LimitExceeded if a video of `width` x `height` pixels is too large or too narrow."""
        self._check_sides("video", width, height)
        if width * height > self.max_video_pixels:
            raise LimitExceeded(
                f"the video's frames have {width}x{height} = {width * height:,} pixels; "
                f"at most {self.max_video_pixels:,} are accepted"
            )

    def check_video_length(self, duration_s: float | None, frames: int | None) -> None:
        """Raise LimitExceeded if a video is too long. None stands for what the header does not say."""
        if duration_s is not None and duration_s > self.max_video_seconds:
            raise LimitExceeded(
                f"the video lasts {duration_s:,.0f} s; at most {self.max_video_seconds:,.0f} s are accepted"
            )
        if frames is not None and frames > self.max_frames:
            raise LimitExceeded(f"the video has {frames:,} frames or more; at most {self.max_frames:,} are accepted")

    def check_streams(self, streams: int) -> None:
        """Raise LimitExceeded if a container holds too many streams."""
        if streams > self.max_streams:
            raise LimitExceeded(f"the file has {streams} streams; at most {self.max_streams} are accepted")

    def _check_sides(self, kind: str, width: int, height: int) -> None:
        longer, shorter = max(width, height), min(width, height)
        if longer > self.max_side_pixels:
            raise LimitExceeded(
                f"the {kind} is {width}x{height} pixels; a side of at most {self.max_side_pixels:,} is accepted"
            )
        if shorter > 0 and longer > self.max_aspect_ratio * shorter:
            raise LimitExceeded(
                f"the {kind} is {width}x{height} pixels; the longer side may be at most "
                f"{self.max_aspect_ratio:g} times the shorter"
            )
