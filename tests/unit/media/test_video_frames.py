"""Which frames are taken from real files: each frame carries its number, and the rows are read."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.video.stream import VideoStream
from clips import Clip, numbered, read_number, write
from numpy.typing import NDArray

from app.media.container import VideoFile
from app.media.frames import FrameReader, plan_runs
from app.media.limits import MediaLimits
from app.media.sampling import sample_clips
from app.media.spec import DecodeInfo, SamplingMode, VideoSpec
from app.media.timeline import read_timeline
from app.media.video import decode_video

SIDE = 160
VP9 = {"deadline": "realtime", "cpu-used": "8"}
X265 = {"x265-params": "log-level=none"}
REFRESHED = {"x264-params": "intra-refresh=1:scenecut=0"}  # no picture stands alone but the first one

CLIPS = {
    "mp4, H.264 with B-frames": Clip(frames=300, gop=30),
    "mp4, H.264 in one group": Clip(frames=200),
    "mp4, H.264 with open groups": Clip(frames=300, options={"x264-params": "open-gop=1:keyint=24:bframes=3"}),
    "mp4, H.264 that is refreshed bit by bit": Clip(frames=300, gop=20, options=REFRESHED),
    "mkv, H.264 that is refreshed bit by bit": Clip("matroska", frames=150, rate=10, gop=12, options=REFRESHED),
    "mp4, in fragments": Clip(frames=300, gop=30, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "mp4, HEVC": Clip(codec="libx265", frames=150, gop=30, options=X265),
    "mp4, AV1": Clip(codec="libsvtav1", frames=60, options={"preset": "12", "crf": "20"}),
    "mp4, MPEG-4": Clip(codec="mpeg4", frames=150, max_b_frames=2, gop=24),
    "mov, H.264": Clip("mov", frames=150, gop=30),
    "mkv, H.264": Clip("matroska", frames=300, gop=30),
    "mkv, 24 fps, times rounded to ms": Clip("matroska", frames=200, rate=24, gop=24),
    "mkv, 240 fps, times rounded to ms": Clip("matroska", frames=304, rate=240, gop=48),
    "webm, VP9": Clip("webm", "libvpx-vp9", frames=150, gop=30, options=VP9),
    "webm, VP8": Clip("webm", "libvpx", frames=90, options=VP9),
    "avi, MPEG-4": Clip("avi", "mpeg4", frames=150, gop=24),
    "avi, MPEG-4 with B-frames": Clip("avi", "mpeg4", frames=300, max_b_frames=2, gop=24),
    "avi, H.264 with B-frames": Clip("avi", frames=300, gop=30),
    "avi, MJPEG": Clip("avi", "mjpeg", frames=90, pixel_format="yuvj420p"),
    "gif": Clip("gif", "gif", frames=60, rate=20, pixel_format="rgb8"),
    "one frame": Clip(frames=1),
    "shorter than a clip": Clip(frames=9),
    "25 fps": Clip(frames=200, rate=25),
    "60 fps": Clip(frames=300, rate=60),
}


def dense(mode: SamplingMode = "dense") -> VideoSpec:
    return VideoSpec(16, 4, 30.0, mode, resize_short_side=SIDE, height=SIDE, width=SIDE)


def numbers(data: bytes, spec: VideoSpec, clips: int = 1, threads: int = 1) -> tuple[list[list[int]], DecodeInfo]:
    """The frame numbers that the rows show, a list for each clip."""
    out = np.zeros((clips, spec.frames, SIDE, SIDE, 3), np.uint8)
    info = decode_video(data, spec, MediaLimits(), out, clips, 1, threads)
    return [[read_number(frame) for frame in row] for row in out], info


@pytest.fixture(scope="module", params=list(CLIPS))
def written(request: pytest.FixtureRequest) -> tuple[Clip, bytes]:
    clip = CLIPS[request.param]
    return clip, write(clip)


@pytest.mark.parametrize(("clips", "threads"), [(1, 1), (4, 1), (2, 2)])
def test_the_frames_are_those_of_the_formula(written: tuple[Clip, bytes], clips: int, threads: int) -> None:
    clip, data = written
    taken, info = numbers(data, dense(), clips, threads)
    assert taken == [list(sample.frames) for sample in sample_clips(dense(), clip.frames, clip.rate, clips)]
    assert info.frames == clip.frames
    assert info.fps == pytest.approx(clip.rate)
    assert info.duration_s == pytest.approx(clip.frames / clip.rate, abs=0.002)
    assert info.format == clip.container
    assert (info.width, info.height) == (clip.width, clip.height)


def test_uniform_sampling_spans_the_file(written: tuple[Clip, bytes]) -> None:
    clip, data = written
    taken, info = numbers(data, dense("uniform"))
    assert taken == [list(sample_clips(dense("uniform"), clip.frames, clip.rate, 1)[0].frames)]
    assert info.views[0].start_s == 0
    assert info.views[0].end_s == pytest.approx(clip.frames / clip.rate, abs=0.002)


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
def test_a_varying_frame_rate_is_sampled_by_time(container: str) -> None:
    draw = np.random.default_rng(1)
    times = np.concatenate([[0], np.cumsum(draw.integers(8, 120, 159))])
    clip = Clip(container, frames=160, gop=30, times=times.tolist(), time_base=Fraction(1, 1000))
    taken, info = numbers(write(clip), dense(), clips=3)
    assert info.frames == 160
    assert info.fps is not None
    assert info.duration_s is not None
    assert info.duration_s > times[-1] / 1000
    assert info.fps * info.duration_s == pytest.approx(160)
    for row, sample in zip(taken, sample_clips(dense(), 160, info.fps, 3), strict=True):
        # What is on screen at that moment, worked out another way.
        moments = [(index + 0.5) / info.fps * 1000 for index in sample.frames]
        assert row == [max(number for number in range(160) if times[number] <= moment) for moment in moments]


def test_a_frame_that_stays_long_is_seen_as_long() -> None:
    """Two seconds of one picture between two quick ones: the clip shows it for most of its span."""
    times = [*range(0, 500, 50), *range(2500, 3000, 50)]
    taken, _ = numbers(write(Clip("matroska", frames=20, times=times, time_base=Fraction(1, 1000))), dense("uniform"))
    assert taken[0].count(9) >= 10


def test_a_single_frame_that_says_nothing_about_its_rate_is_a_video() -> None:
    data = write(Clip("webm", "libvpx", frames=1, options=VP9))
    silent, found = re.subn(rb"\x23\xe3\x83\x84....", b"\xec\x86" + bytes(6), data, flags=re.DOTALL)
    assert found == 1  # the default duration, which recordings of browsers lack; a void in its place
    taken, info = numbers(silent, dense())
    assert taken == [[0] * 16]
    assert (info.frames, info.fps) == (1, 30.0)
    assert info.duration_s == pytest.approx(1 / 30)


def test_times_that_do_not_start_at_zero_make_no_difference() -> None:
    times = [5000 + 40 * number for number in range(100)]
    clip = Clip("matroska", frames=100, rate=25, times=times, time_base=Fraction(1, 1000))
    taken, info = numbers(write(clip), dense(), clips=2)
    assert info.fps == pytest.approx(25)
    assert taken == [list(sample.frames) for sample in sample_clips(dense(), 100, 25.0, 2)]


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_far_clips_are_reached_by_seeking(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 frames, 4 clips of 16 need some 400 at most: from the key frame before each to its last frame. All
    packets are read once, for their times; then no more than those."""
    data = write(Clip(kind, "mpeg4" if kind == "avi" else "libx264", frames=1000, gop=30))
    fed = packets_read = 0
    decode, packets = FrameReader._decode, VideoFile.packets

    def count(self: FrameReader, packet: object) -> object:
        nonlocal fed
        fed += 1
        return decode(self, packet)  # type: ignore[arg-type]

    def count_packets(self: VideoFile) -> Iterator[object]:
        nonlocal packets_read
        for packet in packets(self):
            packets_read += 1
            yield packet

    monkeypatch.setattr(FrameReader, "_decode", count)
    monkeypatch.setattr(VideoFile, "packets", count_packets)
    taken, _ = numbers(data, dense(), clips=4)
    assert taken == [list(sample.frames) for sample in sample_clips(dense(), 1000, 30.0, 4)]
    assert fed < 500
    assert packets_read < 1500


def test_decoding_ends_with_the_last_frame_wanted() -> None:
    data = write(Clip(frames=300, options={"sc_threshold": "0"}))
    with VideoFile(data, MediaLimits()) as file:
        timeline = read_timeline(file, MediaLimits())
        wanted = [timeline.time_of(number) for number in (3, 40)]
        (run,) = plan_runs(timeline, wanted, slack=0)
        assert run.first == 0
        assert run.last < 45
        reader = FrameReader(file, timeline, MediaLimits(), threads=1)
        frames = [np.asarray(frame.to_image()) for _, frame in reader.read(wanted)]  # type: ignore[no-untyped-call]
        assert [read_number(frame) for frame in frames] == [3, 40]


@pytest.mark.parametrize("goes", ["nowhere", "too far"])
def test_a_container_that_cannot_seek_is_read_from_its_start(goes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(Clip("matroska", frames=600, gop=30))
    original = VideoFile._open

    class Stubborn:
        """The container, but without an index that is right."""

        def __init__(self, container: InputContainer) -> None:
            self._container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self._container, name)

        def seek(self, offset: int, stream: VideoStream) -> None:
            if goes == "nowhere":
                raise av.error.PermissionError(1, "cannot seek")
            self._container.seek(offset + 3000, stream=stream)

    monkeypatch.setattr(VideoFile, "_open", lambda self, *how: Stubborn(original(self, *how)))
    taken, _ = numbers(data, dense(), clips=3)
    assert taken == [list(sample.frames) for sample in sample_clips(dense(), 600, 30.0, 3)]


def test_frames_are_the_ones_that_a_plain_decoder_gives_pixel_for_pixel() -> None:
    """Skipping what no frame refers to must leave no trace in the frames that are kept."""
    data = write(Clip(frames=120, gop=60, options={"bf": "3", "crf": "30"}))
    with av.open(io.BytesIO(data), "r") as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    out = np.zeros((1, 16, SIDE, SIDE, 3), np.uint8)
    decode_video(data, dense(), MediaLimits(), out)
    (sample,) = sample_clips(dense(), 120, 30.0, 1)
    assert all((out[0, step] == plain[number]).all() for step, number in enumerate(sample.frames))


def test_views_are_ordered_by_clip_then_crop_and_say_what_they_span() -> None:
    def draw(number: int, width: int, height: int) -> NDArray[np.uint8]:
        """The number, between a black edge at the top and a white one at the bottom."""
        picture = numbered(number, width, height)
        picture[:24], picture[-24:] = 0, 255
        return picture

    data = write(Clip(frames=300, gop=30, height=240, draw=draw))
    spec = dense()
    out = np.zeros((6, 16, SIDE, SIDE, 3), np.uint8)
    info = decode_video(data, spec, MediaLimits(), out, clips=2, crops=3)
    assert [(view.clip, view.crop) for view in info.views] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [view.start_s for view in info.views] == pytest.approx([0.0] * 3 + [10 - 64 / 30] * 3)
    assert [view.end_s for view in info.views] == pytest.approx([64 / 30] * 3 + [10.0] * 3)
    samples = sample_clips(spec, 300, 30.0, 2)
    for row, view in zip(out, info.views, strict=True):
        assert [read_number(frame) for frame in row] == list(samples[view.clip].frames)
        black, white = bool((row[:, :8] < 128).all()), bool((row[:, -8:] > 127).all())
        assert (black, white) == ((True, False), (False, False), (False, True))[view.crop]
