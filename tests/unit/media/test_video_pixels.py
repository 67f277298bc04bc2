"""How a sampled frame becomes a crop: scaling, orientation, colours, against Pillow and against arithmetic."""

from __future__ import annotations

import dataclasses
import io
import math
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from clips import Clip, write
from numpy.typing import NDArray
from pictures import quarters, scene
from PIL import Image

from app.media.limits import MediaLimits
from app.media.scaler import FrameScaler
from app.media.spec import Interpolation, VideoSpec
from app.media.video import decode_video

# libswscale converts unscaled YUV 4:2:0 with a small bias, which the textbook's full-size frames have and scaled ones
# lack.
CLOSE = 2.0


def spec(short_side: int, side: int) -> VideoSpec:
    return VideoSpec(2, 1, 30.0, "dense", resize_short_side=short_side, height=side, width=side)


def decode(data: bytes, spec: VideoSpec, crops: int = 1) -> NDArray[np.int64]:
    out = np.zeros((crops, spec.frames, spec.height, spec.width, 3), np.uint8)
    decode_video(data, spec, MediaLimits(), out, 1, crops)
    return out.astype(np.int64)


def a_scene(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """In grey: colours are coded at half the resolution, and each scaler has its own way with that."""
    return np.asarray(scene(width, height).convert("L").convert("RGB"))


def textbook(data: bytes, short_side: int) -> Image.Image:
    """The first frame, decoded to RGB at full size and scaled whole by Pillow."""
    with av.open(io.BytesIO(data), "r") as container:
        image = Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.uint8))
    width, height = image.size
    size = (
        (short_side, math.floor(height / width * short_side))
        if width < height
        else (math.floor(width / height * short_side), short_side)
    )
    return image.resize(size, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("size", [(640, 360), (360, 640), (320, 320), (96, 80)])
def test_one_crop_is_the_centre_of_the_scaled_frame(size: tuple[int, int]) -> None:
    data = write(Clip(frames=3, width=size[0], height=size[1], draw=a_scene, options={"crf": "10"}))
    image = textbook(data, 128)
    left, top = math.ceil((image.width - 112) / 2), math.ceil((image.height - 112) / 2)
    reference = np.asarray(image.crop((left, top, left + 112, top + 112))).astype(np.int64)
    row = decode(data, spec(128, 112))[0, 0]
    assert np.abs(row - reference).mean() < CLOSE
    assert np.abs(np.roll(row, 1, axis=1) - reference).mean() > np.abs(row - reference).mean() + 0.5


@pytest.mark.parametrize(("height", "width"), [(112, 112), (80, 112), (112, 80)])
@pytest.mark.parametrize("size", [(640, 360), (360, 640)])
def test_three_crops_cover_the_frame_from_end_to_end(size: tuple[int, int], height: int, width: int) -> None:
    data = write(Clip(frames=3, width=size[0], height=size[1], draw=a_scene, options={"crf": "10"}))
    image = textbook(data, 112)
    rows = decode(data, dataclasses.replace(spec(128, 112), height=height, width=width), crops=3)[:, 0]
    right, down = image.width - width, image.height - height
    for row, place in zip(rows, (0, 0.5, 1), strict=True):
        across, along = (place, 0.5) if image.width > image.height else (0.5, place)
        left, top = math.ceil(across * right), math.ceil(along * down)
        reference = np.asarray(image.crop((left, top, left + width, top + height))).astype(np.int64)
        assert np.abs(row - reference).mean() < CLOSE


def test_an_unscaled_frame_is_the_decoders_own() -> None:
    data = write(Clip(frames=3, width=128, height=128, draw=a_scene))
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert (decode(data, spec(128, 128))[0, 0] == frame).all()


@pytest.mark.parametrize(("rotation", "corners"), [(0, "RGBW"), (90, "GWRB"), (180, "WBGR"), (270, "BRWG")])
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_rotation_metadata_turns_the_picture_upright(container: str, rotation: int, corners: str) -> None:
    def draw(number: int, width: int, height: int) -> NDArray[np.uint8]:
        return np.asarray(quarters(width, height))

    data = write(Clip(container, frames=3, width=160, height=96, rotation=rotation, draw=draw))
    row = decode(data, spec(64, 64))[0, 0]
    names = {b"\1\0\0": "R", b"\0\1\0": "G", b"\0\0\1": "B", b"\1\1\1": "W"}
    seen = [(row[y, x] > 127).tobytes() for y, x in ((8, 8), (8, 56), (56, 8), (56, 56))]
    assert "".join(names[pixel] for pixel in seen) == corners
    out = np.zeros((1, 2, 64, 64, 3), np.uint8)
    info = decode_video(data, spec(64, 64), MediaLimits(), out)
    assert (info.width, info.height) == ((96, 160) if rotation in (90, 270) else (160, 96))


def test_pixels_are_taken_as_stored_whatever_shape_the_header_gives_them() -> None:
    square = write(Clip(frames=3, width=160, height=96, draw=a_scene))
    with av.open(io.BytesIO(square), "r") as source:
        wide = io.BytesIO()
        with av.open(wide, "w", format="mp4") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            assert isinstance(stream, VideoStream)
            stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    assert (decode(wide.getvalue(), spec(64, 64)) == decode(square, spec(64, 64))).all()


BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)
UNNAMED, NAMED_709, NAMED_601 = 2, 1, 5
LIMITED, FULL = 1, 2


def one_colour(matrix: tuple[float, float], full: bool, named: int, range: int | None) -> bytes:
    """A video of (200, 60, 40), converted to YUV here by the standard's arithmetic."""
    red, green, blue = 200.0, 60.0, 40.0
    kr, kb = matrix
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))
    planes = (luma, 128 + cb, 128 + cr) if full else (16 + luma * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        stream.codec_context.colorspace = named
        if range is not None:
            stream.codec_context.color_range = range
        for _ in (1, 2, 3):
            frame = VideoFrame(96, 96, "yuv420p")
            frame.colorspace = named
            if range is not None:
                frame.color_range = range
            for plane, level in zip(frame.planes, planes, strict=True):
                plane.update(bytes([round(level)]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("side", [96, 64])  # unscaled and scaled go different ways in libswscale
@pytest.mark.parametrize(
    ("matrix", "full", "named", "range"),
    [
        (BT601, False, NAMED_601, LIMITED),
        (BT709, False, NAMED_709, LIMITED),
        (BT709, False, NAMED_709, None),
        (BT601, True, NAMED_601, FULL),
        (BT709, True, NAMED_709, FULL),
        (BT601, False, UNNAMED, None),
    ],
)
def test_the_matrix_and_the_range_of_the_file_are_used(
    matrix: tuple[float, float], full: bool, named: int, range: int | None, side: int
) -> None:
    row = decode(one_colour(matrix, full, named, range), spec(side, side))[0, 0]
    assert np.abs(row.reshape(-1, 3).mean(axis=0) - (200, 60, 40)).max() <= 3


# Of ITU-T H.273. The last two are BT.2020 of constant luminance, which is read as that of the ordinary kind, and ICtCp.
@pytest.mark.parametrize(("named", "read_as"), [(8, UNNAMED), (10, 9), (14, UNNAMED)])
def test_a_matrix_that_libswscale_refuses_is_read_as_the_nearest(named: int, read_as: int) -> None:
    odd, known = (decode(one_colour(BT601, False, number, LIMITED), spec(64, 64)) for number in (named, read_as))
    assert (odd == known).all()


def test_the_matrices_that_libswscale_knows_are_told_apart() -> None:
    """BT.709, FCC, SMPTE 240M and BT.2020; the others are BT.601, as is what is read where none is named."""

    def read_as(named: int) -> NDArray[np.uint8]:
        frame = VideoFrame(64, 64, "yuv420p")
        for plane, level in zip(frame.planes, (100, 90, 180), strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        frame.colorspace = named
        return FrameScaler("bilinear").scale(frame, 32, 32)

    for named in (NAMED_709, 4, 7, 9):
        assert (read_as(named) != read_as(UNNAMED)).any(), named


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_frames_are_scaled_as_the_model_asks_for(interpolation: Interpolation) -> None:
    data = write(Clip(frames=1, width=640, height=360, draw=a_scene, options={"crf": "10"}))
    with av.open(io.BytesIO(data), "r") as container:
        frame = next(container.decode(video=0))
    image = Image.fromarray(frame.to_ndarray(format="rgb24").astype(np.uint8))
    row = FrameScaler(interpolation).scale(frame, 80, 45).astype(np.int64)
    off = {
        name: np.abs(row - np.asarray(image.resize((80, 45), resample)).astype(np.int64)).mean()
        for name, resample in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC))
    }
    assert min(off, key=lambda name: off[name]) == interpolation, off


def two_moments(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A bar that moves between the two fields of a frame, and has edges in each."""
    picture = np.zeros((height, width, 3), np.uint8)
    for field in (0, 1):
        left = 16 * number + 8 * field
        picture[field::2, left : left + width // 3] = 255
    return picture


@pytest.mark.parametrize("size", [(320, 240), (96, 96)])  # the second is not scaled, but its colours are
def test_a_frame_of_two_fields_is_taken_as_one_picture(size: tuple[int, int]) -> None:
    clips = [
        write(
            Clip(frames=3, width=size[0], height=size[1], draw=two_moments, options={"qp": "0", "x264-params": fields})
        )
        for fields in ("interlaced=0", "interlaced=1")  # without loss: the same pixels in both
    ]
    marked = []
    for data in clips:
        with av.open(io.BytesIO(data), "r") as container:
            marked.append(next(container.decode(video=0)).interlaced_frame)
    assert marked == [False, True]
    plain, interlaced = (decode(data, spec(96, 96)) for data in clips)
    assert (plain == interlaced).all()


def test_frames_of_two_fields_may_change_their_size_and_their_format_on_the_way() -> None:
    kept = FrameScaler("bilinear")
    for width, height, pixels in ((320, 240, "yuv420p"), (96, 96, "yuv420p"), (96, 96, "yuv444p")):
        clip = Clip(frames=2, width=width, height=height, pixel_format=pixels, draw=two_moments)
        plain, interlaced = (
            next(frames_of(write(dataclasses.replace(clip, options={"qp": "0", "x264-params": fields}))))
            for fields in ("interlaced=0", "interlaced=1")
        )
        assert interlaced.interlaced_frame
        expected = FrameScaler("bilinear").scale(plain, 64, 64)
        assert (kept.scale(interlaced, 64, 64) == expected).all()
        interlaced.time_base = Fraction(0)  # which stands for none
        assert (FrameScaler("bilinear").scale(interlaced, 64, 64) == expected).all()


def frames_of(data: bytes) -> Iterator[VideoFrame]:
    with av.open(io.BytesIO(data), "r") as container:
        yield from container.decode(video=0)


def test_red_is_first() -> None:
    data = write(Clip(frames=2, width=64, height=64, draw=lambda *_: np.full((64, 64, 3), (220, 30, 20), np.uint8)))
    red, green, blue = decode(data, spec(64, 64))[0, 0].reshape(-1, 3).mean(axis=0)
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize(
    ("matrix", "corners"),  # a, b, c, d
    [((-1, 0, 0, 1), "GRWB"), ((1, 0, 0, -1), "BWRG"), ((0, 1, 1, 0), "RBGW"), ((0, -1, -1, 0), "WGBR")],
)
def test_a_mirrored_picture_is_mirrored_back(matrix: tuple[int, int, int, int], corners: str) -> None:
    def draw(number: int, width: int, height: int) -> NDArray[np.uint8]:
        return np.asarray(quarters(width, height))

    data = bytearray(write(Clip(frames=3, width=160, height=96, draw=draw)))
    a, b, c, d = (each << 16 for each in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    row = decode(bytes(data), spec(64, 64))[0, 0]
    names = {(True, False, False): "R", (False, True, False): "G", (False, False, True): "B", (True, True, True): "W"}
    seen = [tuple((row[y, x] > 127).tolist()) for y, x in ((8, 8), (8, 56), (56, 8), (56, 56))]
    assert "".join(names[pixel] for pixel in seen) == corners


@pytest.mark.parametrize("default", [0, 1])
@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_of_several_picture_tracks_the_default_one_is_watched(container: str, default: int) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        tracks = []
        for number in (0, 1):
            track = target.add_stream("libx264", rate=30)
            assert isinstance(track, VideoStream)
            track.width, track.height, track.pix_fmt = 64, 64, "yuv420p"
            track.disposition = Disposition.default if number == default else Disposition(0)
            tracks.append(track)
        for track, colour in zip(tracks, ((255, 0, 0), (0, 0, 255)), strict=True):
            for _ in range(3):
                frame = VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), "rgb24")
                target.mux(track.encode(frame.reformat(format="yuv420p")))
            target.mux(track.encode(None))
    row = decode(file.getvalue(), spec(64, 64))[0, 0]
    assert row[32, 32].argmax() == (0, 2)[default]
