"""Opening a video file from memory with libav held on a short lead.

Only the demuxer that the file's first bytes announce and the decoders listed here may run. Nothing is opened beside the
file: no URL, no playlist, no second file that a container names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NoReturn, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from app.errors import BrokenMedia, LimitExceeded, UnsupportedMedia
from app.media import formats
from app.media.limits import MediaLimits
from app.media.reader import Data, MemoryFile

# The format's name (see `formats.require_video`) to libav's demuxer.
DEMUXERS = {"mp4": "mp4", "mov": "mov", "matroska": "matroska", "webm": "webm", "avi": "avi", "gif": "gif"}
DECODERS = (
    "h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "mpeg1video", "mpeg2video", "h263", "msmpeg4v2", "msmpeg4",
    "mjpeg", "prores", "dnxhd", "ffv1", "rawvideo", "gif",
)  # fmt: skip

_READ_BYTES = 256 * 1024
# A title in an odd encoding must not fail the file. From release 19 on av takes any, and knows no such argument.
_ANY_TITLE: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
_CUT_SHORT = "the upload may be incomplete"


class VideoFile:
    """An open video file and the one stream of it that is watched. Use it in a `with` block.

    Raises:
        UnsupportedMedia: not a video that is read, or a file without a picture track.
        BrokenMedia: the container is damaged.
        LimitExceeded: bytes, streams, seconds, frames or pixels beyond `limits`, as far as the headers tell.
    """

    def __init__(self, data: Data, limits: MediaLimits) -> None:
        limits.check_bytes(len(data))
        self.format = formats.require_video(data)
        self._data = data
        self._limits = limits
        self._file = MemoryFile(data)
        try:
            self.container = self._open(self._file, DECODERS)
            self.stream = self._choose_stream()
        except BaseException:
            self._file.close()
            raise

    def reopen(self) -> None:
        """Start again from the first packet."""
        self.container.close()
        self._file.close()
        self._file = MemoryFile(self._data)
        self.container = self._open(self._file, DECODERS)
        self.stream = self._choose_stream()

    def packets(self) -> Iterator[Packet[VideoStream]]:
        """The packets of the stream from where the container stands; ends where the file ends or breaks off."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size > 0 and not packet.is_corrupt:  # the file may end in the middle of the last one
                    yield packet
        except av.FFmpegError as error:
            reraise_if_out_of_memory(error)

    def close(self) -> None:
        self.container.close()
        self._file.close()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, file: MemoryFile, decoders: Sequence[str]) -> InputContainer:
        demuxer = DEMUXERS[self.format]
        options = {
            "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif",
            "codec_whitelist": ",".join(decoders),
            "protocol_whitelist": "none",
            "max_streams": str(self._limits.max_streams + 1),  # one more, so that the check below can say how many
            "max_pixels": str(decoder_pixels(self._limits)),
            # libav would decode a frame just to look at it: 20 ms for 1080p. The headers hold what is needed.
            "skip_frame": "all",
        }
        try:
            with broken_media(self._complaint()):
                # The file-like object needs no more than what MemoryFile has.
                opened = av.open(
                    file,
                    format=demuxer,
                    options=options,
                    buffer_size=_READ_BYTES,
                    io_open=_refuse,
                    **_ANY_TITLE,
                )
        except MemoryError as error:  # which libav also says beyond its `max_streams`
            raise LimitExceeded(
                f"the {self.format} file has more than {self._limits.max_streams} streams, or an index that takes more "
                "memory than one file may take"
            ) from error
        return cast(InputContainer, opened)

    def _choose_stream(self) -> VideoStream:
        limits, container = self._limits, self.container
        limits.check_streams(len(container.streams))
        pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not pictures:
            raise UnsupportedMedia(f"the {self.format} file has no video stream")
        chosen = max(pictures, key=lambda stream: bool(stream.disposition & Disposition.default))
        codec = chosen.codec_context
        if codec is None or codec.codec.name not in DECODERS:
            name = "an unknown way" if codec is None else codec.codec.name
            raise UnsupportedMedia(f"the video is coded in {name}, which is not read; H.264 in MP4 is")
        limits.check_video_frame(*self._size(chosen))
        limits.check_video_length(
            container.duration / av.time_base if container.duration else None, chosen.frames or None
        )
        for stream in container.streams:
            if stream.index != chosen.index:
                stream.discard = Discard.all
        return chosen

    def _size(self, stream: VideoStream) -> tuple[int, int]:
        """Width and height of a stream's frames by the headers; zeros where they do not say it."""
        codec = stream.codec_context
        if codec.width and codec.height:
            return codec.width, codec.height
        # libav forgets a size above its `max_pixels` when it opens the decoder. Without one, it does not.
        with closing(MemoryFile(self._data)) as file, self._open(file, ("none",)) as untouched:
            same = next((other for other in untouched.streams.video if other.index == stream.index), stream)
            return same.codec_context.width, same.codec_context.height

    def declared_seconds(self, start_s: float) -> float | None:
        """How long the video lasts by the headers, if its first frame is shown at `start_s`.

        None where they do not say it of this very stream.
        """
        if self.format in ("matroska", "webm"):  # one duration for all streams, counted from 0
            if self.container.duration and len(self.container.streams) == 1:
                return self.container.duration / av.time_base - max(0.0, start_s)
            return None
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        return None

    def is_whole_avi(self) -> bool:
        """Whether this is an AVI with as many bytes as its RIFF header announces."""
        return self.format == "avi" and 8 + int.from_bytes(self._data[4:8], "little") in (
            len(self._data),
            len(self._data) - 1,  # padded
        )

    def is_whole_gif(self) -> bool:
        """Whether this is a GIF that ends as one should."""
        return self.format == "gif" and self._data[-1:] == b";"

    def _complaint(self) -> str:
        if self.format in ("mp4", "mov"):
            return f"the {self.format} file's index is missing or damaged: {_CUT_SHORT}"
        return f"the {self.format} file is damaged: {_CUT_SHORT}"


def decoder_pixels(limits: MediaLimits) -> int:
    """What libav is told about the largest frame: it counts lines rounded up to 64 pixels, at the largest."""
    return limits.max_video_pixels + 64 * limits.max_side_pixels


@contextmanager
def broken_media(message: str) -> Iterator[None]:
    """Turn libav's errors into BrokenMedia with `message`, but let a lack of memory be one."""
    try:
        yield
    except av.FFmpegError as error:
        reraise_if_out_of_memory(error)
        raise BrokenMedia(message) from error


def reraise_if_out_of_memory(error: Exception) -> None:
    if isinstance(error, MemoryError | BlockingIOError):  # the latter of a thread whose stack has no room
        raise MemoryError from error


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a video may not open another file")
