"""Endless batches of clips for training: rendered scenes, their mirror images, and what a camera does to pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training import render
from training.archives import ArchiveError, read_pictures
from training.loop import Batch
from training.render import CLASSES, CLIP_SECONDS, PhotoBank

FRAMES, SIZE = 16, 64
MEAN, STD = 0.45, 0.225
FRAME_RATES = (8.0, 10.0, 12.0, 15.0, 20.0, 24.0, 25.0, 30.0, 30.0, 50.0, 60.0)


def load_photos(archive: Path) -> tuple[Tensor, Tensor]:
    """Centre squares of the archive's photos, uint8 [P, 3, 256, 256]: (training, held out).

    Every tenth photo in order of name is held out, the first one too.

    Raises:
        ArchiveError: it cannot be read, or holds no photo or a damaged one.
    """
    squares: dict[str, Tensor] = {}
    for name, photo in read_pictures(archive):
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        square = photo.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
        squares[name] = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    if not squares:
        raise ArchiveError(f"{archive} holds no photos (*.jpg)")
    photos = torch.stack([squares[name] for name in sorted(squares)])
    held_out = torch.arange(len(photos)) % 10 == 0
    return photos[~held_out].contiguous(), photos[held_out].contiguous()


def normalise(clips: Tensor) -> Tensor:
    """0..255 [N, T, 3, H, W] to the model's float32 [N, 3, T, H, W]."""
    return ((clips.float() / 255.0 - MEAN) / STD).transpose(1, 2)


def _swap(*pairs: tuple[int, int]) -> Tensor:
    """A permutation of the class ids that exchanges each pair."""
    ids = torch.arange(CLASSES)
    for a, b in pairs:
        ids[a], ids[b] = b, a
    return ids


_PANS, _TILTS = (render.PAN_LEFT, render.PAN_RIGHT), (render.TILT_UP, render.TILT_DOWN)
_ZOOMS, _ROLLS = (render.ZOOM_IN, render.ZOOM_OUT), (render.ROLL_CW, render.ROLL_CCW)
# What a class becomes when the clip [N, T, 3, H, W] is changed along these axes.
MIRRORED = _swap(_PANS, _ROLLS)  # left and right
UPENDED = _swap(_TILTS, _ROLLS)  # top and bottom
TRANSPOSED = _swap((_PANS[0], _TILTS[0]), (_PANS[1], _TILTS[1]), _ROLLS)  # x and y exchanged
REVERSED = _swap(_PANS, _TILTS, _ZOOMS, _ROLLS)  # time runs backwards


def transform(clips: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    """Reverse, mirror, upend and transpose each clip or not, by chance, and name what it shows then."""
    clips, labels = clips.clone(), labels.clone()
    for axes, mapping in (((1,), REVERSED), ((4,), MIRRORED), ((3,), UPENDED), (None, TRANSPOSED)):
        chosen = torch.rand(len(labels), generator=generator) < 0.5
        clips[chosen] = clips[chosen].transpose(3, 4) if axes is None else clips[chosen].flip(axes)
        labels[chosen] = mapping[labels[chosen]]
    return clips, labels


def sample_times(count: int, generator: torch.Generator) -> Tensor:
    """When the frames of `count` clips were taken, u in [count, 16], for random frame rates.

    A file gives the frame at or before the wanted moment, and a file shorter than a clip repeats its last one.
    """
    rates = torch.tensor(FRAME_RATES)[torch.randint(len(FRAME_RATES), (count, 1), generator=generator)]
    span = CLIP_SECONDS * rates  # frames of the file that a clip covers, HIERA.md
    start = torch.rand(count, 1, generator=generator)
    index = (start + torch.linspace(0.0, 1.0, FRAMES) * (span - 1)).floor()
    ends = torch.empty(count, 1).uniform_(0.5, 1.0, generator=generator)
    ends = torch.where(torch.rand(count, 1, generator=generator) < 0.1, ends, torch.ones(1))
    return (index / (span - 1)).minimum(ends)


class Degrade:
    """Exposure, colour, drift, sharpness, noise and a codec's habits, a different mixture for each clip."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        # Drawing normal numbers for each pixel would cost as much as training; slices of one long row do as well.
        self.noise = torch.randn(1 << 22, generator=generator)

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, 1, 1).uniform_(low, high, generator=self.generator)

    def _chosen(self, count: int, share: float) -> Tensor:
        return (torch.rand(count, generator=self.generator) < share).nonzero()[:, 0]

    def __call__(self, clips: Tensor) -> Tensor:
        """[N, T, 3, H, W], 0 to 255, to the same, rounded as uint8 frames would be."""
        count, times = clips.shape[:2]
        middle = clips.mean(dim=(1, 2, 3, 4), keepdim=True)
        gain = self._uniform(count, -0.35, 0.35).exp()
        u = torch.linspace(-0.5, 0.5, times).view(1, -1, 1, 1, 1)
        gain = gain * (1.0 + self._uniform(count, -1.0, 1.0).pow(3) * 0.5 * u)
        flicker = torch.empty(count, times, 1, 1, 1).uniform_(-1.0, 1.0, generator=self.generator)
        gain = gain * (1.0 + flicker * self._uniform(count, 0.0, 1.0).pow(3) * 0.06)
        contrast = self._uniform(count, 0.45, 1.25)
        clips = clips * (contrast * gain) + middle * (1.0 - contrast) * gain

        some = self._chosen(count, 0.3)
        grey = clips[some].mean(dim=2, keepdim=True)
        clips[some] = grey + (clips[some] - grey) * self._uniform(len(some), 0.0, 1.5)

        some = self._chosen(count, 0.5)
        flat = clips[some].flatten(0, 1)
        soft = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        clips[some] = clips[some] + self._uniform(len(some), -1.0, 0.8) * (clips[some] - soft.view_as(clips[some]))

        some = self._chosen(count, 0.7)
        length = clips[0].numel()
        starts = torch.randint(len(self.noise) - length, (len(some),), generator=self.generator)
        noise = (
            torch.stack([self.noise[start : start + length] for start in starts.tolist()]) if len(some) else flat[:0]
        )
        clips[some] = clips[some] + noise.view_as(clips[some]) * self._uniform(len(some), 0.0, 1.0).square() * 12.0

        some = self._chosen(count, 0.3)
        clips[some] = self._hold_blocks(clips[some])
        return clips.round_().clamp_(0.0, 255.0)

    def _hold_blocks(self, clips: Tensor) -> Tensor:
        """Blocks that hardly changed keep the frame before's pixels, as codecs do at low rates."""
        threshold = self._uniform(len(clips), 0.0, 6.0)[:, 0]
        frames = list(clips.unbind(dim=1))
        for index in range(1, len(frames)):
            change = F.avg_pool2d((frames[index] - frames[index - 1]).abs().mean(dim=1, keepdim=True), 4)
            keep = F.interpolate((change < threshold).float(), scale_factor=4.0)
            frames[index] = frames[index] + keep * (frames[index - 1] - frames[index])
        return torch.stack(frames, dim=1)


class RenderedBatches:
    """Endless batches; each rendered scene is in a batch twice, in two of its mirror images."""

    def __init__(self, photos: Tensor, batch: int, seed: int) -> None:
        self.bank, self.batch = PhotoBank(photos), batch
        self.generator = torch.Generator().manual_seed(seed)
        self.degrade = Degrade(self.generator)

    def __call__(self) -> Batch:
        scenes = self.batch // 2
        labels = torch.randint(CLASSES, (scenes,), generator=self.generator)
        drawn = render.draw_scenes(labels, len(self.bank), self.generator)
        clips = render.render(self.bank, drawn, sample_times(scenes, self.generator), SIZE, SIZE)
        clips, labels = transform(clips.repeat(2, 1, 1, 1, 1), labels.repeat(2), self.generator)
        return normalise(self.degrade(clips)), labels
