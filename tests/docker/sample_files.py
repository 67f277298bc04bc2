"""A photo and a video for the containers: real files, made here."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
from PIL import Image

PHOTO = Path(__file__).parents[2] / "app" / "load" / "sample.jpg"


def photo() -> bytes:
    """A JPEG of 500 x 331 pixels."""
    return PHOTO.read_bytes()


def panning_video(frames: int = 75, side: int = 256, fps: int = 25) -> bytes:
    """An MP4 (H.264) in which a window moves over the photo at a steady speed."""
    scene = np.asarray(Image.open(io.BytesIO(photo())).convert("RGB").resize((side * 3, side * 2)))
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for index in range(frames):
            left = (scene.shape[1] - side) * index // frames
            window = np.ascontiguousarray(scene[side // 2 : side // 2 + side, left : left + side])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()
