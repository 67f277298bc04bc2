"""Videos that cannot be had, wholly or in part: what is forgiven, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from clips import Clip, indexed_first, read_number, write
from numpy.typing import NDArray
from pictures import encode, noise
from PIL import Image

from app.errors import BrokenMedia, LimitExceeded, UnsupportedMedia
from app.media.limits import MediaLimits
from app.media.spec import VideoSpec
from app.media.video import decode_video

SPEC = VideoSpec(16, 4, 30.0, "dense", resize_short_side=160, height=160, width=160)
CONTAINERS = {
    "mp4": Clip(frames=300, gop=30, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "matroska": Clip("matroska", frames=300, gop=30),
    "webm": Clip("webm", "libvpx-vp9", frames=150, gop=30, options={"deadline": "realtime", "cpu-used": "8"}),
    "avi": Clip("avi", "mpeg4", frames=300, gop=30),
    "gif": Clip("gif", "gif", frames=60, rate=20, pixel_format="rgb8"),
}


def decode(data: bytes, limits: MediaLimits | None = None, clips: int = 1, crops: int = 1) -> NDArray[np.uint8]:
    out = np.zeros((clips * crops, 16, 160, 160, 3), np.uint8)
    decode_video(data, SPEC, limits or MediaLimits(), out, clips, crops)
    return out


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<html><body>no</body></html>", "an HTML page"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n", "a playlist"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "a text"),
        (b"G" + bytes(187) + b"G" + bytes(187), "an MPEG transport stream"),
        (b"OggS" + bytes(60), "an Ogg file"),
        (encode(Image.new("RGB", (8, 8)), "JPEG"), r"an image \(jpeg\)"),
        (encode(Image.new("RGB", (8, 8)), "WEBP"), r"an image \(webp\)"),
    ],
)
def test_what_is_no_video_is_named_and_the_formats_are_listed(data: bytes, words: str) -> None:
    with pytest.raises(UnsupportedMedia, match=words) as refusal:
        decode(data)
    assert "MP4, MOV, MKV, WebM, AVI or GIF" in str(refusal.value)


def sound_only(container: str, codec: str, cover: bool = False) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        sound = target.add_stream(codec, rate=44100)
        assert isinstance(sound, AudioStream)
        if cover:
            picture = target.add_stream("mjpeg")
            assert isinstance(picture, VideoStream)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            red = VideoFrame.from_ndarray(np.full((64, 64, 3), (255, 0, 0), np.uint8), "rgb24")
            target.mux(picture.encode(red.reformat(format="yuvj420p")))
            target.mux(picture.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        target.mux(sound.encode(silence))
        target.mux(sound.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "aac"), ("avi", "mp3")])
def test_a_file_without_a_video_stream_is_refused(container: str, codec: str) -> None:
    with pytest.raises(UnsupportedMedia, match="has no video stream"):
        decode(sound_only(container, codec))


def test_cover_art_is_no_video() -> None:
    with pytest.raises(UnsupportedMedia, match="has no video stream"):
        decode(sound_only("mp4", "aac", cover=True))


def test_a_codec_that_is_not_on_the_list_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedMedia, match="the video is coded in qtrle, which is not read"):
        decode(write(Clip("mov", "qtrle", frames=4, pixel_format="rgb24")))


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_sound_that_goes_on_after_the_pictures_does_no_harm(container: str) -> None:
    codec = "mpeg4" if container == "avi" else "libx264"
    row = decode(write(Clip(container, codec, frames=9, sound=True)))[0]
    assert [read_number(frame) for frame in row[:4]] == [0, 4, 8, 8]


def test_sound_beside_the_pictures_does_no_harm() -> None:
    row = decode(write(Clip(frames=90, sound=True)))[0]
    assert [read_number(frame) for frame in row[:3]] == [13, 17, 21]


@pytest.mark.parametrize("name", ["matroska", "webm", "avi"])
def test_a_video_cut_off_before_the_clip_is_broken_and_says_how_much_is_there(name: str) -> None:
    data = write(CONTAINERS[name])
    with pytest.raises(BrokenMedia, match=r"breaks off after \d|damaged|incomplete"):
        decode(data[: int(len(data) * 0.3)])


def test_a_header_may_be_a_tenth_off_where_it_counts_no_frames() -> None:
    data = bytearray(write(Clip("matroska", frames=600, gop=30)))
    at = data.index(b"\x44\x89\x88") + 3  # the duration, in milliseconds
    out = np.zeros((2, 16, 160, 160, 3), np.uint8)
    struct.pack_into(">d", data, at, 21_900.0)
    info = decode_video(bytes(data), SPEC, MediaLimits(), out, clips=2)
    assert (info.frames, read_number(out[1, -1])) == (600, 599)
    struct.pack_into(">d", data, at, 22_500.0)
    with pytest.raises(BrokenMedia, match=r"breaks off after 20\.0 of 22\.5 s"):
        decode_video(bytes(data), SPEC, MediaLimits(), out, clips=2)


def test_an_mp4_that_lost_its_end_says_how_far_it_goes(tmp_path: Path) -> None:
    data = indexed_first(write(Clip(frames=300, gop=30)), tmp_path / "fast.mp4")
    with pytest.raises(BrokenMedia, match=r"breaks off after [12]\.\d of 10\.0 s: the upload may be incomplete"):
        decode(data[: int(len(data) * 0.3)])


def test_a_video_cut_off_after_the_clip_is_served(tmp_path: Path) -> None:
    data = indexed_first(write(Clip(frames=300, gop=30)), tmp_path / "fast.mp4")
    numbers = [read_number(frame) for frame in decode(data[: int(len(data) * 0.85)])[0]]
    assert numbers == [read_number(frame) for frame in decode(data)[0]]


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_an_mp4_without_its_index_says_so(container: str) -> None:
    data = write(Clip(container, frames=60))
    words = f"the {container} file's index is missing or damaged: the upload may be incomplete"
    with pytest.raises(BrokenMedia, match=words):
        decode(data[: len(data) - 2500])


def test_damage_outside_of_the_clip_is_forgiven(tmp_path: Path) -> None:
    data = bytearray(indexed_first(write(Clip(frames=300, gop=30)), tmp_path / "fast.mp4"))
    at = int(len(data) * 0.9)
    data[at : at + 400] = bytes(400)
    assert [read_number(frame) for frame in decode(bytes(data))[0]][:2] == [118, 122]


def test_damage_inside_of_the_clip_is_bridged_by_frames_close_by(tmp_path: Path) -> None:
    clean = indexed_first(write(Clip(frames=300, gop=10, options={"bf": "0"})), tmp_path / "fast.mp4")
    with av.open(io.BytesIO(clean), "r") as container:
        packets = [(packet.pos, packet.size, packet.pts) for packet in container.demux(video=0) if packet.size]
    position, size, _ = packets[122]
    assert position is not None
    spoilt = bytearray(clean)
    spoilt[position : position + size] = b"\xff" * size
    numbers = [read_number(frame) for frame in decode(bytes(spoilt))[0]]
    expected = [read_number(frame) for frame in decode(clean)[0]]
    assert [a for a, b in zip(numbers, expected, strict=True) if b < 122] == [b for b in expected if b < 122]
    assert max(abs(a - b) for a, b in zip(numbers, expected, strict=True)) <= 15


def every_frame(spoilt: Sequence[int]) -> list[int]:
    """What is shown of 16 key frames, at 10 a second from the fifth second on, of which some are spoilt."""
    times = [5000 + 100 * number for number in range(16)]
    clip = Clip("matroska", "mjpeg", 16, 10, pixel_format="yuvj420p", times=times, time_base=Fraction(1, 1000))
    data = write(clip)
    with av.open(io.BytesIO(data), "r") as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in spoilt:
        data = data.replace(packets[number], bytes(len(packets[number])))
    out = np.zeros((1, 16, 160, 160, 3), np.uint8)
    decode_video(data, dataclasses.replace(SPEC, stride=1, target_fps=10), MediaLimits(), out)
    return [read_number(frame) for frame in out[0]]


@pytest.mark.parametrize(
    ("spoilt", "shown"),
    [
        ([], [*range(16)]),
        ([7], [*range(7), 6, *range(8, 16)]),  # of two that are as near the one before
        (range(4, 14), [0, 1, 2, 3, *[3] * 5, *[14] * 5, 14, 15]),
        (range(5), [*[5] * 5, *range(5, 16)]),
        (range(11, 16), [*range(11), *[10] * 5]),
    ],
)
def test_the_nearest_frame_within_half_a_second_stands_in(spoilt: Sequence[int], shown: list[int]) -> None:
    assert every_frame(spoilt) == shown


@pytest.mark.parametrize(
    ("spoilt", "at"), [(range(4, 15), r"0\.9"), (range(6), r"0\.0"), (range(10, 16), r"1\.5")], ids=str
)
def test_damage_that_no_frame_is_near_to_is_told_by_its_time_in_the_video(spoilt: range, at: str) -> None:
    with pytest.raises(BrokenMedia, match=f"the video is damaged: nothing near {at} s can be decoded"):
        every_frame(spoilt)


def test_a_video_of_which_nothing_decodes_is_broken(tmp_path: Path) -> None:
    data = bytearray(indexed_first(write(Clip(frames=60)), tmp_path / "fast.mp4"))
    start = data.index(b"mdat") + 4
    data[start:] = np.random.default_rng(0).integers(0, 256, len(data) - start, dtype=np.uint8).tobytes()
    with pytest.raises(BrokenMedia, match="damaged"):
        decode(bytes(data))


@pytest.mark.parametrize("name", list(CONTAINERS))
def test_damage_is_never_more_than_a_domain_error(name: str) -> None:
    data = write(CONTAINERS[name])
    draw = np.random.default_rng(0)
    for _ in range(25):
        spoilt = bytearray(data)
        for at in draw.integers(0, len(data) if draw.integers(2) else 600, draw.integers(1, 12)):
            spoilt[at] = draw.integers(256)
        with suppress(BrokenMedia, LimitExceeded, UnsupportedMedia):
            decode(bytes(spoilt))


def test_each_limit_says_what_was_found_and_what_is_allowed() -> None:
    data = write(Clip(frames=300, gop=30, sound=True))
    for limits, words in (
        (MediaLimits(max_bytes=1000), "at most 1,000"),
        (MediaLimits(max_video_pixels=20_000), "160x160 = 25,600 pixels; at most 20,000"),
        (MediaLimits(max_side_pixels=159), "a side of at most 159"),
        (MediaLimits(max_video_seconds=9), "lasts 10 s; at most 9 s"),
        (MediaLimits(max_frames=299), "300 frames or more; at most 299"),
        (MediaLimits(max_streams=1), "2 streams; at most 1"),
    ):
        with pytest.raises(LimitExceeded, match=words):
            decode(data, limits)
    decode(data, MediaLimits(max_video_pixels=25_600, max_frames=300, max_streams=2, max_video_seconds=11))


@pytest.mark.parametrize("name", list(CONTAINERS))
def test_frames_far_beyond_the_limit_are_called_too_large_and_not_damaged(name: str) -> None:
    """Found by fuzzing: above its own `max_pixels` libav forgets a size that only the container's header tells."""
    clip = dataclasses.replace(CONTAINERS[name], frames=4, width=320, height=320)
    with pytest.raises(LimitExceeded, match=r"320x320 = 102,400 pixels; at most 20,000"):
        decode(write(clip), MediaLimits(max_video_pixels=20_000, max_side_pixels=320))


@pytest.mark.parametrize(("tracks", "words"), [(5, "5 streams"), (40, "more than 4 streams")])
def test_far_too_many_streams_are_called_so_and_not_a_lack_of_memory(tracks: int, words: str) -> None:
    data = write(Clip(frames=4))
    track = data[data.index(b"trak") - 4 :]
    track = track[: int.from_bytes(track[:4], "big")]
    at = data.index(b"moov") - 4
    grown = int.from_bytes(data[at : at + 4], "big") + (tracks - 1) * len(track)
    many = (data[:at] + grown.to_bytes(4, "big") + data[at + 4 :]).replace(track, track * tracks)
    with pytest.raises(LimitExceeded, match=words):
        decode(many, MediaLimits(max_streams=4))


def test_frames_that_no_header_counts_are_counted() -> None:
    data = write(Clip("matroska", frames=120))
    with pytest.raises(LimitExceeded, match="101 frames or more; at most 100"):  # and no further
        decode(data, MediaLimits(max_frames=100))


def test_a_length_that_no_header_tells_is_measured() -> None:
    clip = Clip("matroska", frames=40, container_options={"live": "1"}, times=range(0, 400, 10), time_base=Fraction(1))
    with pytest.raises(LimitExceeded, match="lasts 390 s; at most 100 s"):
        decode(write(clip), MediaLimits(max_video_seconds=100))


def test_a_header_that_hides_the_size_of_the_frames_gains_nothing() -> None:
    """The stream's own header says 160x160; the container was edited to say 16x16."""
    data = bytearray(write(Clip(frames=10)))
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    data[at : at + 4] = b"\0\x10\0\x10"
    with pytest.raises((BrokenMedia, LimitExceeded)):
        decode(bytes(data), MediaLimits(max_video_pixels=20_000))


def test_more_crops_than_the_protocol_knows_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="crops 1 or 3"):
        decode(write(Clip(frames=2)), crops=2)


def test_an_animation_without_timing_is_whole_and_not_read() -> None:
    pictures = [noise(40, 30, number) for number in range(30)]
    data = encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    # Without these blocks, which not all programs write, libav takes all that lies between two of them for one frame.
    data = re.sub(rb"\x21\xf9\x04....\x00", b"", data, flags=re.DOTALL)
    with pytest.raises(UnsupportedMedia, match="no timing"):
        decode(data)
    with pytest.raises(BrokenMedia):
        decode(data[: len(data) // 2])


def test_a_video_that_ends_inside_its_last_key_frame_is_served_up_to_there() -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    data = write(Clip(frames=100, gop=10, max_b_frames=0, options={"sc_threshold": "0"}, container_options=fragments))
    cut = data[: data.rindex(b"mdat") + 60]  # what a recorder leaves that crashes
    out = np.zeros((3, 16, 160, 160, 3), np.uint8)
    info = decode_video(cut, dataclasses.replace(SPEC, stride=1), MediaLimits(), out, clips=3)
    assert info.frames == 90
    assert read_number(out[2, -1]) == 89
