"""Every format is decoded inside the sandbox as it is outside: no codec needs what the sandbox denies."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from pool_scenes import a_pool, order, run
from priority import take_ordinary_priority

from app.errors import LimitExceeded
from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.process import FORK_SERVER_COMMAND
from app.media.spec import DecodeJob, ImageSpec, VideoSpec, row_shape, rows_of
from app.media.video import decode_video

IMAGE_JOB = DecodeJob(ImageSpec(resize_short_side=64, height=56, width=56))
VIDEO_JOB = DecodeJob(
    VideoSpec(frames=8, stride=2, target_fps=30, mode="dense", resize_short_side=64, height=56, width=56),
    clips=2,
    crops=3,
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def a_picture(shift: int = 0, width: int = 320, height: int = 200) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([(x + shift) % 256, (y * 2) % 256, (x + y) % 256], axis=2).astype(np.uint8))


def image_file(format: str, mode: str = "RGB", size: tuple[int, int] = (320, 200), **options: Any) -> bytes:
    file = io.BytesIO()
    a_picture(0, *size).convert(mode).save(file, format, **options)
    return file.getvalue()


IMAGES = {
    "jpeg": image_file("JPEG"),
    "jpeg, large": image_file("JPEG", size=(3000, 2000)),
    "jpeg, progressive": image_file("JPEG", progressive=True),
    "jpeg, grey": image_file("JPEG", "L"),
    "jpeg, CMYK": image_file("JPEG", "CMYK"),
    "jpeg, with a colour profile": image_file("JPEG", icc_profile=SRGB),
    "png": image_file("PNG"),
    "png, palette": image_file("PNG", "P"),
    "png, 16 bits": image_file("PNG", "I;16") if "I;16" in Image.MODES else image_file("PNG", "I"),
    "webp": image_file("WEBP"),
    "webp, lossless with transparency": image_file("WEBP", "RGBA", lossless=True),
    "gif": image_file("GIF"),
    "bmp": image_file("BMP"),
    "tiff": image_file("TIFF"),
    "tiff, LZW": image_file("TIFF", compression="tiff_lzw"),
    "tiff, Deflate": image_file("TIFF", compression="tiff_adobe_deflate"),
    "tiff, JPEG": image_file("TIFF", compression="jpeg"),
    "avif": image_file("AVIF"),
    "heic": image_file("HEIF"),
    "heic, of tiles": image_file("HEIF", size=(1500, 1000), tile_size=512),
    "heic, with transparency": image_file("HEIF", "RGBA"),
}


def video_file(
    container: str, codec: str, pixels: str, pictures: Iterable[Image.Image], options: dict[str, str] | None = None
) -> bytes:
    first, *others = map(np.asarray, pictures)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=Fraction(24), options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], pixels
        for picture in (first, *others):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    take_ordinary_priority()
    return file.getvalue()


VIDEOS = {
    "mp4, H.264": ("mp4", "libx264", "yuv420p"),
    "mp4, H.265": ("mp4", "libx265", "yuv420p"),
    "mp4, AV1": ("mp4", "libsvtav1", "yuv420p"),
    "mov, H.264": ("mov", "libx264", "yuv420p"),
    "mkv, H.264 of 10 bits": ("matroska", "libx264", "yuv420p10le"),
    "webm, VP8": ("webm", "libvpx", "yuv420p"),
    "webm, VP9": ("webm", "libvpx-vp9", "yuv420p"),
    "avi, MPEG-4": ("avi", "mpeg4", "yuv420p"),
    "avi, Motion JPEG": ("avi", "mjpeg", "yuvj420p"),
    "gif": ("gif", "gif", "rgb8"),
}


def rows_for(job: DecodeJob) -> NDArray[np.uint8]:
    return np.zeros((rows_of(job), *row_shape(job.spec)), np.uint8)


def test_every_image_format_is_decoded_inside_the_sandbox_as_outside() -> None:
    spec = IMAGE_JOB.spec
    assert isinstance(spec, ImageSpec)

    async def scene() -> None:
        async with a_pool(command=FORK_SERVER_COMMAND) as (pool, counts):
            assert pool.confinement == "seccomp"
            for name, data in IMAGES.items():
                expected = rows_for(IMAGE_JOB)
                info = decode_image(data, spec, MediaLimits(), expected[0])
                with await order(pool, data, IMAGE_JOB) as decoded:
                    np.testing.assert_array_equal(decoded.rows, expected, err_msg=name)
                    assert decoded.info == info
            assert not counts.restarts

    run(scene)


@pytest.mark.parametrize("threads", [1, 4])
def test_every_video_format_is_decoded_inside_the_sandbox_as_outside(threads: int) -> None:
    spec = VIDEO_JOB.spec
    assert isinstance(spec, VideoSpec)
    made = {
        name: video_file(*recipe, map(a_picture, range(0, 200, 5)))
        for name, recipe in VIDEOS.items()
        if recipe[1] in av.codecs_available
    }
    made["mp4, of two fields"] = video_file(
        "mp4", "libx264", "yuv420p", map(a_picture, range(0, 200, 5)), {"x264-params": "interlaced=1"}
    )
    assert len(made) >= 6

    async def scene() -> None:
        async with a_pool(command=FORK_SERVER_COMMAND, codec_threads=threads) as (pool, counts):
            for name, data in made.items():
                expected = rows_for(VIDEO_JOB)
                info = decode_video(data, spec, MediaLimits(), expected, clips=2, crops=3)
                with await order(pool, data, VIDEO_JOB) as decoded:
                    np.testing.assert_array_equal(decoded.rows, expected, err_msg=name)
                    assert decoded.info == info
            assert not counts.restarts

    run(scene)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("room", [24 << 20, 30 << 20, 46 << 20])  # each leaves another remainder in the heap
def test_files_that_need_more_memory_than_a_worker_has_break_a_limit_and_no_worker(room: int, threads: int) -> None:
    codings = {"PNG": {}, "WEBP": {"lossless": True, "method": 0}, "JPEG": {"progressive": True, "subsampling": 0}}
    images = [large_image(format, **options) for format, options in codings.items()]
    jobs = [*((image, IMAGE_JOB) for image in images), (large_video(), VIDEO_JOB)]

    async def scene() -> None:
        options = {"command": FORK_SERVER_COMMAND, "codec_threads": threads}
        async with a_pool(worker_memory_bytes=room, **options) as (pool, counts):
            for data, job in jobs:
                with pytest.raises(LimitExceeded, match="memory"):
                    await order(pool, data, job)
                (await order(pool, IMAGES["jpeg"], IMAGE_JOB)).close()
            assert not counts.restarts

    run(scene)


def test_a_video_is_decoded_by_one_thread_where_several_have_no_room() -> None:
    data = video_file("mp4", "libx264", "yuv420p", [a_picture(shift, 1280, 720) for shift in range(0, 40, 5)])
    spec = VIDEO_JOB.spec
    assert isinstance(spec, VideoSpec)
    expected = rows_for(VIDEO_JOB)
    decode_video(data, spec, MediaLimits(), expected, clips=2, crops=3)

    async def scene() -> None:
        room = {"worker_memory_bytes": 24 << 20, "codec_threads": 8}
        async with a_pool(command=FORK_SERVER_COMMAND, **room) as (pool, counts):
            with await order(pool, data, VIDEO_JOB) as decoded:
                np.testing.assert_array_equal(decoded.rows, expected)
            assert not counts.restarts

    run(scene)


def test_large_files_that_a_worker_has_memory_for_are_decoded() -> None:
    async def scene() -> None:
        async with a_pool(worker_memory_bytes=1 << 30, command=FORK_SERVER_COMMAND) as (pool, counts):
            for data, job in ((large_image("PNG"), IMAGE_JOB), (large_video(), VIDEO_JOB)):
                (await order(pool, data, job)).close()
            assert not counts.restarts

    run(scene)


def large_picture() -> Image.Image:
    return Image.new("RGB", (4000, 3000), (90, 120, 60))


def large_image(format: str, **options: Any) -> bytes:
    """36 MB of pixels, which are decoded as a whole."""
    file = io.BytesIO()
    large_picture().save(file, format, **options)
    return file.getvalue()


def large_video() -> bytes:
    """18 MB a picture, several of them in the decoder."""
    return video_file("avi", "mpeg4", "yuv420p", [large_picture()] * 2)
