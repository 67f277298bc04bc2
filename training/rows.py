"""Files to rows for a model: as the server makes them, or cut by chance for training. `app.media` decodes either.

What is cut by chance comes from the largest square in the middle of the picture, a little more than what is served, at
the picture's own size or half as large again as the served short side, whichever is smaller: small pictures are not
blown up first, and large ones lose nothing that a crop would show. A clip begins at one of the places where the server
would put one of up to five clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from app.errors import RequestError
from app.media.geometry import Axis, ResizedCrop
from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.resize import resize_array
from app.media.spec import ImageSpec, MediaSpec, row_shape
from app.media.video import decode_video
from app.repository.manifest import Preprocessing, Sampling
from app.serving.model import media_spec
from export.media_files import read_media
from export.parity import normalise
from training.folders import File
from training.sound_files import LeftOut, draw_sound

Pixels = NDArray[np.uint8]
_LIMITS = MediaLimits()
_PLACES = 5
_LARGER = 1.5  # what is cut from, to what is served
_ASPECT = math.log(4 / 3)


@dataclass(frozen=True)
class Shape:
    """What a model sees of a file: the geometry and sampling of its package."""

    preprocessing: Preprocessing
    sampling: Sampling | None = None

    @property
    def spec(self) -> MediaSpec:
        return media_spec(self.preprocessing, self.sampling)


@dataclass(frozen=True)
class ReadableFile(File):
    """A file that was read once. `short_side` is the picture's, in pixels."""

    short_side: int


@dataclass(frozen=True)
class Augmentation:
    """How training rows differ from served ones. `least_area`: of the square that a crop shows, 0 to 1."""

    least_area: float
    flip: bool


def read_row(path: Path, spec: MediaSpec, clips: int = 1, clip: int = 0) -> tuple[Pixels, int]:
    """Decode a file as the server does.

    Args:
        clips, clip: of a video, which one of so many.

    Returns:
        The row, uint8 [(T,) H, W, 3], and the picture's short side in pixels.

    Raises:
        RequestError: it is not what is wanted, damaged, or too large.
        OSError: it cannot be opened, or is no regular file.
    """
    data = read_media(path, _LIMITS)
    rows = np.empty((clips, *row_shape(spec)), np.uint8)
    if isinstance(spec, ImageSpec):
        info = decode_image(data, spec, _LIMITS, rows[0])
    else:
        info = decode_video(data, spec, _LIMITS, rows, clips=clips)
    return rows[clip], min(info.width, info.height)


def draw_row(file: ReadableFile, spec: MediaSpec, augmentation: Augmentation, rng: np.random.Generator) -> Pixels:
    """Decode a file and cut a row of it by chance, uint8 [(T,) H, W, 3]: one crop and one flip for a whole clip.

    Raises:
        RequestError, OSError: as `read_row`.
    """
    side = min(max(file.short_side, spec.resize_short_side), round(_LARGER * spec.resize_short_side))
    square = replace(spec, resize_short_side=side, height=side, width=side)
    clips = 1 if isinstance(spec, ImageSpec) else int(rng.integers(1, _PLACES + 1))
    picture, _ = read_row(file.path, square, clips, int(rng.integers(clips)))
    left, top, width, height = random_box(side, augmentation.least_area, rng)
    crop = ResizedCrop(
        columns=Axis(side, left, min(left + width, side), spec.width),
        rows=Axis(side, top, min(top + height, side), spec.height),
        rows_first=False,
    )
    frames = picture.reshape(-1, side, side, 3)  # [(T,) S, S, 3] -> [T or 1, S, S, 3]
    row = np.stack([resize_array(frame, crop, spec.interpolation) for frame in frames])
    if augmentation.flip and rng.random() < 0.5:
        row = np.ascontiguousarray(row[:, :, ::-1])
    return row.reshape(row_shape(spec))  # [T or 1, H, W, 3] -> [(T,) H, W, 3]


def random_box(side: int, least_area: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, width and height inside a square, in pixels: an area from `least_area` of it to all of it, an aspect
    ratio from 3:4 to 4:3 (Szegedy et al., arXiv 1409.4842; the arithmetic is torchvision's `RandomResizedCrop`)."""
    for _ in range(10):
        area, aspect = side * side * rng.uniform(least_area, 1.0), math.exp(rng.uniform(-_ASPECT, _ASPECT))
        width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if max(width, height) <= side:
            return rng.uniform(0, side - width), rng.uniform(0, side - height), width, height
    return 0.0, 0.0, float(side), float(side)


def examine(files: Sequence[File], spec: MediaSpec, workers: int) -> tuple[list[ReadableFile], list[tuple[Path, str]]]:
    """Read every file once: those that the server could read, and the others with its reason."""
    readable: list[ReadableFile] = []
    others: list[tuple[Path, str]] = []
    reports: Iterable[list[int | str]] = DataLoader(
        _Examined(files, spec), batch_size=16, num_workers=workers, collate_fn=list
    )
    bar = tqdm(desc="reading", total=len(files), unit="file", mininterval=1.0, dynamic_ncols=True, disable=None)
    with bar:
        for reported in reports:
            for report in reported:
                file = files[len(readable) + len(others)]
                if isinstance(report, int):
                    readable.append(ReadableFile(file.path, file.label, report))
                else:
                    others.append((file.path, report))
            bar.update(len(reported))
    return readable, others


class _Examined(Dataset["int | str"]):
    """The short side of each file, or why it cannot be read."""

    def __init__(self, files: Sequence[File], spec: MediaSpec) -> None:
        self.files, self.spec = files, spec

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int | str:
        try:
            return read_row(self.files[index].path, self.spec)[1]
        except (RequestError, OSError) as error:
            return str(error)


class _Rows(Dataset[tuple[Tensor, int]]):
    """Normalised rows, float32 [3, (T,) H, W], and their labels; of draw number n, if they are cut by chance.

    What is cut by chance may lie where nobody has looked yet: of a file that is damaged there, another takes the place.
    """

    def __init__(
        self, files: Sequence[ReadableFile], shape: Shape, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self.files, self.shape, self.augmentation, self.seed = files, shape, augmentation, seed
        self.paths, self.left_out = [file.path for file in files], LeftOut()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, draw: int) -> tuple[Tensor, int]:
        epoch, index = divmod(draw, len(self.files))
        if self.augmentation is None:
            row, label = self._served(self.files[index])
        else:  # by the numbers alone, whichever worker it falls to
            rng, augmentation = np.random.default_rng((self.seed, epoch, index)), self.augmentation

            def cut(at: int) -> tuple[Pixels, int]:
                return draw_row(self.files[at], self.shape.spec, augmentation, rng), self.files[at].label

            row, label = draw_sound(cut, index, self.paths, rng, self.left_out)
        return normalise(row[None], self.shape.preprocessing)[0], label

    def _served(self, file: ReadableFile) -> tuple[Pixels, int]:
        try:
            return read_row(file.path, self.shape.spec)[0], file.label
        except RequestError as error:  # it was read before, so it has changed
            raise type(error)(f"{file.path}: {error}") from error


class _Shuffled(Sampler[int]):
    """Endless draws, each epoch in a new order."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __iter__(self) -> Iterator[int]:
        generator, epoch = torch.Generator().manual_seed(self.seed), 0
        while True:
            for index in torch.randperm(self.count, generator=generator).tolist():
                yield epoch * self.count + index
            epoch += 1


def served_rows(
    files: Sequence[ReadableFile], shape: Shape, batch: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows that the server would make, in order: (normalised float32 [B, 3, (T,) H, W], int64 labels [B]).

    Raises:
        RequestError, OSError: a file cannot be decoded any more; the message names it.
    """
    return iter(DataLoader(_Rows(files, shape), batch_size=batch, num_workers=workers))


def training_rows(
    files: Sequence[ReadableFile], shape: Shape, augmentation: Augmentation, batch: int, workers: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless rows cut by chance, each epoch in a new order: as `served_rows` gives them. `seed` tells all of it.

    Raises:
        FolderError: too many files in a row cannot be decoded.
    """
    rows = _Rows(files, shape, augmentation, seed)
    return iter(DataLoader(rows, batch_size=batch, sampler=_Shuffled(len(files), seed), num_workers=workers))
