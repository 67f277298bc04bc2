"""Photo and video files to rows, against the textbook pipelines, as ratios of runs that take turns.

python -m benchmarks.preprocessing [--photo FILE] [--video FILE] [--rounds 20] [--output FILE]

The textbook opens a photo with Pillow, converts it to RGB, resizes and crops it; with PyAV it decodes all frames of a
video to RGB, and resizes and crops the ones that are sampled. Both end in the uint8 row that ours ends in.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.load.progress import ProgressBar
from app.load.table import text_table
from app.media.heap import keep_freed_memory
from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.sampling import sample_clips
from app.media.spec import ImageSpec, VideoSpec, row_shape
from app.media.video import decode_video
from benchmarks.media import add_photo_argument, synthetic_video
from benchmarks.results import add_output_argument, median, spread, write_results

IMAGE = ImageSpec(resize_short_side=256, height=224, width=224)
VIDEO = VideoSpec(16, 4, 30.0, "dense", resize_short_side=256, height=224, width=224)
LIMITS = MediaLimits()
TWELVE_MEGAPIXELS = (4000, 3000)

Pipeline = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class Comparison:
    """One file: seconds of each turn of either pipeline, and how far apart their rows are, in levels."""

    name: str
    ours_s: tuple[float, ...]
    textbook_s: tuple[float, ...]
    mean_difference: float
    largest_difference: int
    ours_mib: float | None = None
    textbook_mib: float | None = None

    @property
    def ratios(self) -> list[float]:
        """How many times faster ours is, turn by turn."""
        return [textbook / ours for ours, textbook in zip(self.ours_s, self.textbook_s, strict=True)]


def textbook_image(data: bytes) -> NDArray[np.uint8]:
    """uint8 [224, 224, 3]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return _resize_then_crop(image, Image.Resampling.BICUBIC, round)


def our_image(data: bytes, exact: bool = False) -> NDArray[np.uint8]:
    """uint8 [224, 224, 3]."""
    row = np.empty(row_shape(IMAGE), np.uint8)
    decode_image(data, replace(IMAGE, exact=exact), LIMITS, row)
    return row


def textbook_video(data: bytes, threads: int) -> NDArray[np.uint8]:
    """uint8 [1, 16, 224, 224, 3]."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "AUTO"
        fps = float(stream.average_rate or VIDEO.target_fps)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    (sample,) = sample_clips(VIDEO, len(frames), fps, clips=1)
    return np.stack(
        [
            _resize_then_crop(
                Image.fromarray(np.asarray(frames[number], np.uint8)), Image.Resampling.BILINEAR, math.ceil
            )
            for number in sample.frames
        ]
    )[None]  # [T, H, W, 3] -> [1, T, H, W, 3]


def our_video(data: bytes, threads: int) -> NDArray[np.uint8]:
    """uint8 [1, 16, 224, 224, 3]."""
    rows = np.empty((1, *row_shape(VIDEO)), np.uint8)
    decode_video(data, VIDEO, LIMITS, rows, threads=threads)
    return rows


def _resize_then_crop(
    image: Image.Image, resample: Image.Resampling, rounding: Callable[[float], int]
) -> NDArray[np.uint8]:
    width, height = image.size
    scale = IMAGE.resize_short_side / min(width, height)
    size = (
        (IMAGE.resize_short_side, int(height * scale))
        if width <= height
        else (int(width * scale), IMAGE.resize_short_side)
    )
    left, top = rounding((size[0] - IMAGE.width) / 2), rounding((size[1] - IMAGE.height) / 2)
    return np.asarray(image.resize(size, resample).crop((left, top, left + IMAGE.width, top + IMAGE.height)))


def compare(name: str, ours: Pipeline, textbook: Pipeline, rounds: int) -> Comparison:
    """Run both in turn, `rounds` times, after one turn that is not counted."""
    difference = np.abs(ours().astype(np.int64) - textbook())
    times: tuple[list[float], list[float]] = ([], [])
    with ProgressBar(name) as bar:
        for turn in range(rounds):
            for pipeline, taken in zip((ours, textbook), times, strict=True):
                started = time.perf_counter()
                pipeline()
                taken.append(time.perf_counter() - started)
            bar.show((turn + 1) / rounds, turn + 1)
    return Comparison(name, tuple(times[0]), tuple(times[1]), float(difference.mean()), int(difference.max()))


def peak_growth_mib(pipeline: Pipeline) -> float:
    """By how much the peak of a fresh process's memory grows when the pipeline runs once."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_grow, (pipeline,))


def _grow(pipeline: Pipeline) -> float:
    before = _peak_mib()
    pipeline()
    return _peak_mib() - before


def _peak_mib() -> float:
    """Linux's high-water mark; getrusage's would be the parent's, as long as that is higher."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def enlarged(photo: bytes, form: str = "JPEG", **options: int) -> bytes:
    """A JPEG or HEIC of 12 megapixels of the same scene, coded as cameras do (4:2:0)."""
    with Image.open(io.BytesIO(photo)) as image:
        large = image.convert("RGB").resize(TWELVE_MEGAPIXELS, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, form, quality=90, **options)
    return file.getvalue()


def as_png(photo: bytes) -> bytes:
    """The same pixels as PNG."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as image:
        image.convert("RGB").save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_photo_argument(parser)
    parser.add_argument("--video", type=Path, help="a video (a synthetic 10 s H.264 file of 1920 x 1080)")
    parser.add_argument(
        "--rounds", type=int, default=20, help="turns for each photo; videos and 12 megapixels get a quarter"
    )
    add_output_argument(parser)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the server's media workers do
    photo = arguments.photo.read_bytes()
    large, heic, png = enlarged(photo), enlarged(photo, "HEIF", tile_size=512), as_png(photo)
    rounds, few = arguments.rounds, max(3, arguments.rounds // 4)
    measured = [
        compare(arguments.photo.name, partial(our_image, photo), partial(textbook_image, photo), rounds),
        compare("as PNG", partial(our_image, png), partial(textbook_image, png), rounds),
        compare("12 megapixels", partial(our_image, large), partial(textbook_image, large), few),
        compare("12 megapixels, exact", partial(our_image, large, True), partial(textbook_image, large), few),
        compare("12 megapixels, HEIC", partial(our_image, heic), partial(textbook_image, heic), few),
    ]
    video = (arguments.video or synthetic_video()).read_bytes()
    for threads in (1, 2):
        ours, textbook = partial(our_video, video, threads), partial(textbook_video, video, threads)
        name = f"video, one clip, {threads} codec thread{'s' if threads > 1 else ''}"
        found = compare(name, ours, textbook, few)
        measured.append(replace(found, ours_mib=peak_growth_mib(ours), textbook_mib=peak_growth_mib(textbook)))
    print(text_table(HEADER, [_row(found) for found in measured]))
    method = {"rounds": rounds, "rounds_of_large_files": few, "photo": arguments.photo.name}
    write_results(arguments.output, "preprocessing", method, [asdict(found) for found in measured])


HEADER = ("file", "ours ms", "textbook ms", "times faster", "mean levels", "most", "peak MiB ours", "textbook")


def _row(found: Comparison) -> tuple[str, ...]:
    return (
        found.name,
        f"{1000 * median(found.ours_s):.2f}",
        f"{1000 * median(found.textbook_s):.2f}",
        spread(found.ratios),
        f"{found.mean_difference:.3f}",
        str(found.largest_difference),
        "" if found.ours_mib is None else f"{found.ours_mib:.0f}",
        "" if found.textbook_mib is None else f"{found.textbook_mib:.0f}",
    )


if __name__ == "__main__":
    main()
