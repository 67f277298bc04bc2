"""The measuring road: a rendered scene through a real H.264 file and back to 16 frames."""

from __future__ import annotations

import torch

from training import render
from training.render import PhotoBank
from training.video_files import encode_h264, read_clip, render_file


def test_frames_come_back_in_order_and_in_colour() -> None:
    frames = torch.zeros(72, 120, 160, 3, dtype=torch.uint8)
    frames[..., 0] = 200
    frames[..., 1] = (torch.arange(72) * 3).view(-1, 1, 1).byte()
    clip = read_clip(encode_h264(frames, 30, 18)).float()
    assert clip.shape == (16, 3, 64, 64)
    assert bool((clip[:, 1].mean(dim=(1, 2)).diff() > 0).all())
    assert float((clip[:, 0].mean() - 200).abs()) < 8


def test_a_file_holds_the_class_it_was_rendered_for() -> None:
    photos = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    photos = torch.nn.functional.interpolate(photos.float(), size=256, mode="bicubic").clamp(0, 255).byte()
    still = read_clip(render_file(PhotoBank(photos), render.STATIC, seed=3)).float()
    moved = read_clip(render_file(PhotoBank(photos), render.PAN_LEFT, seed=3)).float()
    assert float((moved[0] - moved[-1]).abs().mean()) > 2 * float((still[0] - still[-1]).abs().mean())
