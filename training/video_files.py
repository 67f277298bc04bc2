"""Rows from real files to measure with: rendered, encoded as H.264, decoded and sampled as a served video is."""

from __future__ import annotations

import io

import av
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from app.media.limits import MediaLimits
from app.media.spec import VideoSpec
from app.media.video import decode_video
from training.clips import FRAMES, SIZE
from training.render import CLASSES, CLIP_SECONDS, PhotoBank, draw_scenes, render

FORMATS = ((320, 240, 24), (320, 180, 25), (320, 240, 30), (240, 320, 30))  # width, height, frames a second
SPEC = VideoSpec(FRAMES, stride=4, target_fps=30.0, mode="dense", resize_short_side=SIZE, height=SIZE, width=SIZE)


def encode_h264(frames: Tensor, rate: int, crf: int) -> bytes:
    """uint8 RGB frames [F, H, W, 3] as an MP4 file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def read_clip(file: bytes) -> Tensor:
    """The clip in the middle of a video as the server decodes, samples, shrinks and crops it: uint8 [16, 3, 64, 64]."""
    row = np.empty((1, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    decode_video(file, SPEC, MediaLimits(), row)
    return torch.from_numpy(row[0]).permute(0, 3, 1, 2)


def render_file(bank: PhotoBank, label: int, seed: int) -> bytes:
    """One file of 2.2 to 3 seconds whose middle clip shows the class `label`, with a random format and quality."""
    generator = torch.Generator().manual_seed(seed)
    width, height, rate = FORMATS[int(torch.randint(len(FORMATS), (1,), generator=generator))]
    seconds = 2.2 + 0.8 * float(torch.rand(1, generator=generator))
    crf = int(torch.randint(18, 36, (1,), generator=generator))
    scene = draw_scenes(torch.tensor([label]), len(bank), generator)
    frames = round(seconds * rate)
    middle = torch.arange(frames) - (frames - 1) / 2
    u = 0.5 + middle / (CLIP_SECONDS * rate - 1)
    # Views are measured by their height; of an upright picture the served crop is as wide as the picture.
    rendered = render(bank, scene, u[None], height, width)[0]
    return encode_h264(rendered.round().byte().permute(0, 2, 3, 1).contiguous(), rate, crf)


def decoded_files(photos: Tensor, clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Files rendered from `photos`, uint8 [P, 3, 256, 256], and decoded again: rows, uint8 [clips, 16, 3, 64, 64], and
    true class ids [clips]."""
    bank = PhotoBank(photos)
    labels = torch.arange(clips) % CLASSES
    rows = [
        read_clip(render_file(bank, label, seed * 1_000_003 + index))
        for index, label in enumerate(tqdm(labels.tolist(), unit="file", mininterval=5.0, dynamic_ncols=True))
    ]
    return torch.stack(rows), labels
