"""Photos and videos to measure with: a file of one's own, or synthetic ones made on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageFilter

from app.commands.bench import SAMPLE_PHOTO

CACHE = Path(".cache/benchmarks")


def add_photo_argument(parser: argparse.ArgumentParser) -> None:
    """`--photo`; the figures in docs/performance.md are of the Hiera examples' dog.jpg, 500 x 331."""
    parser.add_argument("--photo", type=Path, default=SAMPLE_PHOTO, help="a JPEG (a synthetic one of 500 x 331)")


def synthetic_video(width: int = 1920, height: int = 1080, seconds: float = 10.0, fps: int = 30) -> Path:
    """An H.264 file of a large picture panned with some noise; made once and kept.

    Returns:
        its path, below `.cache/benchmarks`.
    """
    file = CACHE / f"video-{width}x{height}-{seconds:g}s-{fps}fps.mp4"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    frames = round(seconds * fps)
    span = 4 * frames
    noise = draw.integers(0, 256, ((height + span) // 8, (width + span) // 8, 3), dtype=np.uint8)
    scene = Image.fromarray(noise).resize((width + span, height + span), Image.Resampling.BICUBIC)
    scene = scene.filter(ImageFilter.GaussianBlur(3))
    unfinished = file.with_suffix(".part.mp4")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            crop = scene.crop((4 * index, 2 * index, 4 * index + width, 2 * index + height))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(crop), format="rgb24")))
        container.mux(stream.encode())
    unfinished.rename(file)
    return file
