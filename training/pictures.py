"""Photos and videos without labels: found in a folder, decoded by the server's own decoders, cropped at random."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from app.errors import RequestError
from app.media.decoders import load_decoder
from app.media.formats import Kind, sniff
from app.media.limits import MediaLimits
from app.media.spec import DecodeJob, VideoSpec
from app.serving.model import media_spec
from export.catalog import Variant
from export.media_files import read_media
from training.folders import FolderError
from training.rows import random_box
from training.sound_files import LeftOut, draw_sound

_BATCHES_AHEAD = 2
_HEAD_BYTES = 512


def find_files(folder: Path, kind: Kind, left_out: LeftOut) -> list[Path]:
    """The files below `folder` whose first bytes are those of an image, or of a video, in order of name.

    `left_out` is told of those that cannot be opened.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                media = sniff(file.read(_HEAD_BYTES))
        except OSError as error:
            left_out.add(path, error)
            continue
        if media is not None and getattr(media, kind) is not None:
            found.append(path)
    return found


class Pictures:
    """The pixels of files. They stay in memory, once decoded, if those of all files fit in `memory_bytes`.

    A file gives `clips` clips of T frames, spread evenly over a video; an image is one clip of one frame. `left_out` is
    told of files that cannot be decoded.
    """

    def __init__(
        self,
        paths: list[Path],
        variant: Variant,
        clips: int = 1,
        memory_bytes: int = 4 << 30,
        left_out: LeftOut | None = None,
    ) -> None:
        self.paths, self.clips = paths, clips
        self.left_out = left_out or LeftOut()
        # The centre square of a file at the variant's short side: what random crops are cut from.
        side = variant.preprocessing.resize_short_side
        self.spec = replace(media_spec(variant.preprocessing, variant.sampling), height=side, width=side)
        self.size = variant.preprocessing.height, variant.preprocessing.width
        self._limits = MediaLimits()
        self._decode = load_decoder(variant.task, self._limits)
        frames = self.spec.frames if isinstance(self.spec, VideoSpec) else 1
        self._shape = (clips, frames, self.spec.height, self.spec.width, 3)
        fits = len(paths) * math.prod(self._shape) <= memory_bytes
        self._held = np.empty((len(paths), *self._shape), dtype=np.uint8) if fits else None
        self._is_held = np.zeros(len(paths), dtype=bool)

    def read(self, index: int) -> Tensor:
        """The squares of a file, uint8 [clips, T, 3, S, S].

        Raises:
            RequestError: the file is damaged or too large.
            OSError: it cannot be opened.
        """
        rows = np.empty(self._shape, dtype=np.uint8) if self._held is None else self._held[index]
        if not self._is_held[index]:
            video = isinstance(self.spec, VideoSpec)
            out = rows if video else rows[0]  # an image is one row, without an axis for time
            data = memoryview(read_media(self.paths[index], self._limits))
            self._decode(data, DecodeJob(self.spec, self.clips), self._limits, out, 1)
            self._is_held[index] = self._held is not None
        return torch.from_numpy(rows).permute(0, 1, 4, 2, 3)

    def random_crops(self, index: int, smallest: float, seed: int) -> Tensor:
        """A random crop of each clip of a file, mirrored by chance: uint8 [clips, T, 3, H, W]. Another file takes the
        place of one that cannot be decoded.

        Args:
            smallest: the least part of the square's area that a crop covers.

        Raises:
            FolderError: too many files in a row cannot be decoded.
        """
        rng = np.random.default_rng(seed)
        squares = draw_sound(self.read, index, self.paths, rng, self.left_out)
        return torch.stack([_random_crop(clip, self.size, smallest, rng) for clip in squares])

    def centre(self, index: int) -> Tensor | None:
        """The centre of each clip of a file, as it is served: uint8 [clips, T, 3, H, W]; None where that cannot be
        decoded."""
        try:
            squares = self.read(index)
        except (RequestError, OSError) as error:
            self.left_out.add(self.paths[index], error)
            return None
        top, left = ((have - want) // 2 for have, want in zip(squares.shape[-2:], self.size, strict=True))
        return squares[..., top : top + self.size[0], left : left + self.size[1]]

    def epoch(self, batch: int, smallest: float, seed: int, workers: int) -> Iterator[Tensor]:
        """Random crops of every file once, in random order, all of it told by `seed`: uint8 [batch, T, 3, H, W].

        The files that do not fill a last batch are left out. `workers` threads decode ahead of the caller. Raises
        FolderError, as `random_crops`.
        """
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randperm(len(self.paths), generator=generator)
        seeds = torch.randint(1 << 62, (len(ids),), generator=generator)
        files = batch // self.clips
        waiting: deque[list[Future[Tensor]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(ids) - files + 1, files):
                chosen = zip(ids[start : start + files].tolist(), seeds[start : start + files].tolist(), strict=True)
                waiting.append([pool.submit(self.random_crops, index, smallest, seed) for index, seed in chosen])
                if len(waiting) > _BATCHES_AHEAD:
                    yield torch.cat([crops.result() for crops in waiting.popleft()])
            while waiting:
                yield torch.cat([crops.result() for crops in waiting.popleft()])


def held_out_files(pictures: Pictures) -> list[Path]:
    """The files that watch a run, which can all be decoded.

    A thousand show the loss well enough; of a small folder one in fifty does.

    Raises:
        FolderError: no file can be decoded.
    """
    count = len(pictures.paths)
    one_in = max(50, count // 1000)
    runs = (range(start, min(start + one_in, count)) for start in range(0, count, one_in))
    sound = (next((index for index in run if pictures.centre(index) is not None), None) for run in runs)
    watched = [pictures.paths[index] for index in sound if index is not None]
    if count and not watched:
        raise FolderError(f"none of the {count} files can be decoded: see above for why")
    return watched


def _random_crop(frames: Tensor, size: tuple[int, int], smallest: float, rng: np.random.Generator) -> Tensor:
    """uint8 [T, 3, S, S] to [T, 3, *size]; all frames alike."""
    left, top, width, height = (round(edge) for edge in random_box(frames.shape[-1], smallest, rng))
    crop = frames[..., top : top + max(1, height), left : left + max(1, width)]
    crop = F.interpolate(crop, size, mode="bicubic", antialias=True)
    return crop.flip(-1) if rng.random() < 0.5 else crop
