"""The decoder that a worker of a kind runs, loaded and warmed up: nothing is imported or opened at a job any more.

The imports stand inside, because a worker for photos needs no libav: that is 20 MB and a third of its start.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from app.media.formats import Kind
from app.media.limits import MediaLimits
from app.media.spec import DecodeInfo, DecodeJob, ImageSpec, VideoSpec, row_shape, rows_of

# The file, the job, the limits, the rows to write (uint8 [n, *row_shape]), the codec threads that may be used.
Decode = Callable[[memoryview, DecodeJob, MediaLimits, NDArray[np.uint8], int], DecodeInfo]

_WIDTH, _HEIGHT = 64, 48


def load_decoder(kind: Kind, limits: MediaLimits) -> Decode:
    """The decoder for files of `kind`; it raises UnsupportedMedia, BrokenMedia and LimitExceeded."""
    return _load_image_decoder(limits) if kind == "image" else _load_video_decoder(limits)


def _load_image_decoder(limits: MediaLimits) -> Decode:
    from PIL import Image

    from app.media.image import decode_image

    def decode(
        data: memoryview, job: DecodeJob, limits: MediaLimits, rows: NDArray[np.uint8], threads: int
    ) -> DecodeInfo:
        if not isinstance(job.spec, ImageSpec):
            raise TypeError("a worker for images was given a video's job")
        return decode_image(data, job.spec, limits, rows[0])

    photo = io.BytesIO()
    Image.new("RGB", (_WIDTH, _HEIGHT), (90, 120, 60)).save(photo, "JPEG")
    _try_out(decode, photo.getvalue(), DecodeJob(ImageSpec(resize_short_side=36, height=32, width=32)), limits)
    return decode


def _load_video_decoder(limits: MediaLimits) -> Decode:
    import av

    from app.media.video import decode_video

    def decode(
        data: memoryview, job: DecodeJob, limits: MediaLimits, rows: NDArray[np.uint8], threads: int
    ) -> DecodeInfo:
        if not isinstance(job.spec, VideoSpec):
            raise TypeError("a worker for videos was given an image's job")
        return decode_video(data, job.spec, limits, rows, job.clips, job.crops, threads)

    for module in pkgutil.walk_packages(av.__path__, "av."):  # PyAV imports a stream's class when it meets one
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    clip = io.BytesIO()
    with av.open(clip, "w", format="avi") as output:
        stream = output.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((_HEIGHT, _WIDTH, 3), np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    spec = VideoSpec(frames=2, stride=1, target_fps=8, mode="dense", resize_short_side=36, height=32, width=32)
    _try_out(decode, clip.getvalue(), DecodeJob(spec), limits)
    return decode


def _try_out(decode: Decode, data: bytes, job: DecodeJob, limits: MediaLimits) -> None:
    decode(memoryview(data), job, limits, np.empty((rows_of(job), *row_shape(job.spec)), np.uint8), 1)
