"""A video file while it is opened and read: what its headers alone tell, and what is let go of afterwards."""

from __future__ import annotations

import io
import mmap
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from clips import Clip, write

from app.errors import BrokenMedia, LimitExceeded, UnsupportedMedia
from app.media.container import DECODERS, VideoFile, broken_media
from app.media.limits import MediaLimits

MP4 = Clip(frames=30, sound=True)
MKV = Clip("matroska", frames=30)
AVI = Clip("avi", "mpeg4", frames=30)
GIF = Clip("gif", "gif", frames=20, rate=20, pixel_format="rgb8")


def mapped(data: bytes) -> mmap.mmap:
    """As a worker has an upload. It refuses to be closed while anything holds on to it."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


def test_a_file_that_is_refused_is_let_go_of_while_the_refusal_is_held() -> None:
    memory = mapped(write(Clip("mov", "qtrle", frames=4, pixel_format="rgb24")))
    with pytest.raises(UnsupportedMedia) as refusal:
        VideoFile(memory, MediaLimits())
    memory.close()
    assert refusal


@pytest.mark.parametrize("clip", [MP4, MKV, AVI, GIF], ids=lambda clip: clip.container)
def test_a_file_that_is_closed_or_opened_again_is_let_go_of(clip: Clip) -> None:
    memory = mapped(write(clip))
    with VideoFile(memory, MediaLimits()) as file:
        first, source = file.container, file._file
        packets = [packet.pts for packet in file.packets()]
        file.reopen()
        assert source.closed
        with pytest.raises(AssertionError, match="not open"):
            list(first.demux())
        assert [packet.pts for packet in file.packets()] == packets
        second = file.container
    with pytest.raises(AssertionError, match="not open"):
        list(second.demux())
    memory.close()


class Failing:
    """A container that has been opened, and whose packets cannot be had."""

    def __init__(self, container: object, error: Exception) -> None:
        self._container = container
        self._error = error

    def __getattr__(self, name: str) -> object:
        return getattr(self._container, name)

    def demux(self, stream: object) -> None:
        raise self._error


LACKS = [av.error.MemoryError(12, "no memory"), av.error.BlockingIOError(11, "no room for a thread's stack")]


@pytest.mark.parametrize("lack", LACKS)
def test_a_lack_of_memory_is_not_taken_for_damage_or_the_end_of_the_file(lack: Exception) -> None:
    with VideoFile(write(MKV), MediaLimits()) as file:
        file.container = Failing(file.container, lack)  # type: ignore[assignment]
        with pytest.raises(MemoryError):
            list(file.packets())
    with pytest.raises(MemoryError), broken_media("damaged"):
        raise lack


def test_what_else_libav_complains_of_is_damage_and_the_end_of_the_file() -> None:
    damage = av.error.InvalidDataError(1094995529, "invalid data")
    with VideoFile(write(MKV), MediaLimits()) as file:
        file.container = Failing(file.container, damage)  # type: ignore[assignment]
        assert list(file.packets()) == []
    with pytest.raises(BrokenMedia, match="as it was put"), broken_media("as it was put"):
        raise damage


@pytest.mark.parametrize(
    ("limits", "words"),
    [(MediaLimits(max_video_seconds=3), "lasts 4 s; at most 3 s"), (MediaLimits(max_frames=29), "30 frames or more")],
)
def test_a_video_that_is_too_long_by_its_headers_is_refused_before_it_is_read(limits: MediaLimits, words: str) -> None:
    data = write(MP4)
    with pytest.raises(LimitExceeded, match=words):
        VideoFile(data, limits)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_the_size_of_the_track_that_is_watched_counts(container: str, codec: str) -> None:
    """Above its own `max_pixels` libav forgets that of VP9, and it is looked up anew: the first track has another."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        tracks = []
        for side in (64, 320):
            track = target.add_stream(codec, rate=30)
            assert isinstance(track, VideoStream)
            track.width, track.height, track.pix_fmt = side, side, "yuv420p"
            track.disposition = Disposition.default if side == 320 else Disposition(0)
            tracks.append(track)
        for track in tracks:
            black = VideoFrame.from_ndarray(np.zeros((track.height, track.width, 3), np.uint8), "rgb24")
            target.mux(track.encode(black.reformat(format="yuv420p")))
            target.mux(track.encode(None))
    with pytest.raises(LimitExceeded, match=r"320x320 = 102,400 pixels; at most 20,000"):
        VideoFile(file.getvalue(), MediaLimits(max_video_pixels=20_000, max_side_pixels=320))


def test_nothing_is_read_of_the_tracks_that_are_not_watched() -> None:
    with VideoFile(write(MP4), MediaLimits()) as file:
        assert [stream.discard for stream in file.container.streams] == [Discard.default, Discard.all]


LATE = [1000 + 40 * number for number in range(30)]


@pytest.mark.parametrize(
    ("clip", "start_s", "seconds"),
    [
        (MP4, 0.0, 1.0),  # of its pictures; the sound goes on
        (AVI, 0.0, 1.0),
        (GIF, 0.0, 1.0),
        (MKV, 0.0, 1.0),
        (Clip("webm", "libvpx-vp9", frames=30), 0.0, 1.0),
        (Clip("matroska", frames=30, times=LATE, time_base=Fraction(1, 1000)), 1.0, 1.19),  # one after another
        (MKV, -1.0, 1.0),
        (Clip("matroska", frames=30, sound=True), 0.0, None),  # 4 s, which may be the sound's
    ],
    ids=str,
)
def test_the_headers_say_how_long_the_pictures_last(clip: Clip, start_s: float, seconds: float | None) -> None:
    with VideoFile(write(clip), MediaLimits()) as file:
        assert file.declared_seconds(start_s) == (None if seconds is None else pytest.approx(seconds, abs=0.01))


def test_an_avi_is_whole_with_as_many_bytes_as_its_header_announces() -> None:
    data = write(AVI)
    announced = int.from_bytes(data[4:8], "little")
    assert 8 + announced == len(data)
    padded = data + b"\0"
    for whole, expected in ((data, True), (padded, True), (padded + b"\0", False), (data[:-1], False)):
        with VideoFile(whole, MediaLimits()) as file:
            assert file.is_whole_avi() == expected
    with VideoFile(write(MKV), MediaLimits()) as file:
        assert not file.is_whole_avi()


def test_a_gif_is_whole_with_the_mark_of_its_end() -> None:
    data = write(GIF)
    for whole, expected in ((data, True), (data[:-1], False)):
        with VideoFile(whole, MediaLimits()) as file:
            assert file.is_whole_gif() == expected


# By the decoder: the encoder (of the same name, where none is given), the container and the format of its pixels.
WRITTEN: dict[str, tuple[str, str, str]] = {
    "h264": ("libx264", "mp4", "yuv420p"),
    "hevc": ("libx265", "mp4", "yuv420p"),
    "vp8": ("libvpx", "webm", "yuv420p"),
    "vp9": ("libvpx-vp9", "webm", "yuv420p"),
    "libdav1d": ("libsvtav1", "mp4", "yuv420p"),
    "mpeg4": ("mpeg4", "mp4", "yuv420p"),
    "mpeg1video": ("mpeg1video", "matroska", "yuv420p"),
    "mpeg2video": ("mpeg2video", "matroska", "yuv420p"),
    "h263": ("h263", "avi", "yuv420p"),
    "msmpeg4v2": ("msmpeg4v2", "avi", "yuv420p"),
    "msmpeg4": ("msmpeg4", "avi", "yuv420p"),
    "mjpeg": ("mjpeg", "mov", "yuvj420p"),
    "prores": ("prores_ks", "mov", "yuv422p10le"),
    "dnxhd": ("dnxhd", "mov", "yuv422p"),
    "ffv1": ("ffv1", "matroska", "yuv420p"),
    "rawvideo": ("rawvideo", "avi", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
}
OWN_OPTIONS = {"libx265": {"x265-params": "log-level=none"}, "dnxhd": {"profile": "dnxhr_sq"}}


def test_every_decoder_on_the_list_is_tried_here() -> None:
    assert set(WRITTEN) == set(DECODERS)


@pytest.mark.parametrize("decoder", WRITTEN)
def test_what_a_decoder_on_the_list_is_for_is_read(decoder: str) -> None:
    encoder, container, pixels = WRITTEN[decoder]
    width, height = (352, 288) if encoder in ("h263", "dnxhd") else (160, 160)  # the former know few sizes
    options = OWN_OPTIONS.get(encoder, {})
    clip = Clip(container, encoder, 4, 25, width, height, pixels, options)
    with VideoFile(write(clip), MediaLimits()) as file:
        assert file.stream.codec_context.codec.name == decoder
        assert sum(len(packet.decode()) for packet in file.container.demux(file.stream)) == 4
