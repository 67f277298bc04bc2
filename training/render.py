"""Clips of a moving camera, rendered from still photos.

The world is a photo, mirrored endlessly beyond its edges; the camera sees a square (or wider) window of it that moves,
turns and changes size. Axes: x to the right, y down, the photo's square spans -1 to 1 on both. Time `u` runs from 0 at
the first sampled frame of a clip to 1 at the last.

A label names what the CAMERA does: in "pan right" the window moves right and the scene left; in "tilt up" the scene
moves down; in "zoom in" the scene grows; in "roll clockwise" the camera turns clockwise and the picture
counter-clockwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

STATIC, PAN_LEFT, PAN_RIGHT, TILT_UP, TILT_DOWN, ZOOM_IN, ZOOM_OUT, ROLL_CW, ROLL_CCW, SHAKE = range(10)
CLASSES = 10
CLIP_SECONDS = 4 * 16 / 30  # 16 frames at a stride of 4 frames of 1/30 s (SlowFast's protocol)
_WAVES = 4  # sine waves that make up one axis of a hand's tremble


@dataclass(frozen=True)
class Scenes:
    """Everything that decides N clips but the photos' pixels. Lengths of the view are in view widths."""

    label: Tensor  # [N] int64
    photo: Tensor  # [N] index of the world's photo
    half: Tensor  # [N] half of the view's height, in photo units
    centre: Tensor  # [N, 2] where the view is at half time
    angle: Tensor  # [N] the camera's roll at half time, radians
    displacement: Tensor  # [N, 2] of the view during the clip, in view widths
    log_zoom: Tensor  # [N] natural logarithm of (view size at the end / at the start)
    turn: Tensor  # [N] radians that the camera turns clockwise
    ease: Tensor  # [N, 3] start and end of the movement in u, and how much it speeds up and slows down
    wave_size: Tensor  # [N, 3, K] amplitudes of the tremble: x and y in view widths, roll in radians
    wave_cycles: Tensor  # [N, 3, K] per clip
    wave_phase: Tensor  # [N, 3, K]
    # An object before the scene, in view units (the view spans -1 to 1) at half time.
    object_photo: Tensor  # [N] what it looks like
    object_size: Tensor  # [N] half width; 0: there is none
    object_place: Tensor  # [N, 2]
    object_speed: Tensor  # [N, 2] per clip
    object_spin: Tensor  # [N] radians per clip
    object_shape: Tensor  # [N, 2] aspect, and exponent of the superellipse
    object_rides: Tensor  # [N] bool: fixed to the camera, as a dashboard or a watermark is, not to the world

    def __getitem__(self, chosen: Tensor | slice) -> Self:
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def draw_scenes(labels: Tensor, photos: int, generator: torch.Generator, object_share: float = 0.5) -> Scenes:
    """Draw scenes for class ids `labels` [N], with photos numbered 0 to `photos` - 1."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(count, *shape).uniform_(low, high, generator=generator)

    def log_uniform(low: float, high: float) -> Tensor:
        return uniform(math.log(low), math.log(high)).exp()

    def pick(number: int) -> Tensor:
        return torch.randint(number, (count,), generator=generator)

    def sign(minus: int, plus: int) -> Tensor:
        return (labels == plus).float() - (labels == minus).float()

    panning, tilting = sign(PAN_LEFT, PAN_RIGHT), sign(TILT_UP, TILT_DOWN)
    distance = log_uniform(0.08, 1.2)
    # A pan by hand also drifts a little across; the drift stays far below the movement that names the clip.
    drift = distance * uniform(-0.15, 0.15)
    shaking = labels == SHAKE
    tremble = torch.where(shaking, log_uniform(0.018, 0.08), uniform(0.0, 1.0).square() * 0.007)
    tremble = torch.where(labels == STATIC, tremble * 0.6, tremble)
    wave_size = uniform(-1.0, 1.0, 3, _WAVES)
    wave_size = wave_size / wave_size[:, :2].square().sum(dim=(1, 2), keepdim=True).sqrt() * tremble.view(-1, 1, 1)
    # Hertz times seconds; a static camera's tremble is slower than a shaken one's.
    cycles = torch.where(shaking.view(-1, 1, 1), uniform(1.3, 6.0, 3, _WAVES), uniform(0.4, 4.0, 3, _WAVES))
    has_object = uniform(0.0, 1.0) < object_share
    return Scenes(
        label=labels,
        photo=pick(photos),
        half=log_uniform(0.28, 0.9),
        centre=uniform(-0.6, 0.6, 2),
        angle=uniform(-1.0, 1.0).pow(3) * 0.5,
        displacement=torch.stack(
            [panning * distance + tilting.abs() * drift, tilting * distance + panning.abs() * drift], dim=1
        ),
        log_zoom=sign(ZOOM_IN, ZOOM_OUT) * log_uniform(0.09, 0.9),
        turn=sign(ROLL_CCW, ROLL_CW) * log_uniform(math.radians(6), math.radians(100)),
        ease=torch.stack([uniform(-0.3, 0.25), uniform(0.75, 1.3), uniform(0.0, 1.0)], dim=1),
        wave_size=wave_size,
        wave_cycles=cycles * CLIP_SECONDS,
        wave_phase=uniform(0.0, 2 * math.pi, 3, _WAVES),
        object_photo=pick(photos),
        object_size=has_object * log_uniform(0.12, 0.5),
        object_place=uniform(-0.8, 0.8, 2),
        object_speed=uniform(-1.0, 1.0, 2) * uniform(0.0, 1.6, 1),
        object_spin=uniform(-1.0, 1.0).pow(3) * 2.0,
        object_shape=torch.stack([uniform(0.6, 1.6), log_uniform(1.5, 6.0)], dim=1),
        object_rides=uniform(0.0, 1.0) < 0.15,
    )


def camera_path(scenes: Scenes, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the camera is at times `u` [N, T].

    Returns:
        x and y of the view's centre and half of its height in photo units, and the clockwise roll in radians, each
        [N, T].
    """
    start, end, smooth = scenes.ease[:, :, None].unbind(dim=1)  # [N, 1]
    part = ((u - start) / (end - start)).clamp(0.0, 1.0)
    eased = part + smooth * (part * part * (3.0 - 2.0 * part) - part)
    # However the movement is cut by the clip's ends, the whole displacement lies inside the clip.
    first, last = ((edge - start) / (end - start) for edge in (torch.zeros(1), torch.ones(1)))
    first, last = (p.clamp(0.0, 1.0) for p in (first, last))
    first, last = (p + smooth * (p * p * (3.0 - 2.0 * p) - p) for p in (first, last))
    done = (eased - first) / (last - first) - 0.5  # -0.5 to 0.5 within the clip

    phase = 2 * math.pi * scenes.wave_cycles[:, :, :, None] * u[:, None, None, :] + scenes.wave_phase[:, :, :, None]
    tremble = (scenes.wave_size[:, :, :, None] * phase.sin()).sum(dim=2)  # [N, 3, T]

    half = scenes.half[:, None] * (scenes.log_zoom[:, None] * done).exp()
    roll = scenes.angle[:, None] + scenes.turn[:, None] * done + tremble[:, 2]
    # Movements are along the camera's own axes, so that a pan stays a pan when the camera is held askew.
    move_x = scenes.displacement[:, :1] * done + tremble[:, 0]
    move_y = scenes.displacement[:, 1:] * done + tremble[:, 1]
    cos, sin = scenes.angle[:, None].cos(), scenes.angle[:, None].sin()
    width = 2.0 * scenes.half[:, None]
    x = scenes.centre[:, :1] + width * (cos * move_x - sin * move_y)
    y = scenes.centre[:, 1:] + width * (sin * move_x + cos * move_y)
    return x, y, half, roll


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos(), angle.sin()
    return cos * x - sin * y, sin * x + cos * y


class PhotoBank:
    """Square photos at several sizes, so that a view is sampled from one with little more detail than it shows."""

    SIZES = (64, 90, 128, 181, 256)

    def __init__(self, photos: Tensor) -> None:
        """`photos`: uint8 [P, 3, 256, 256]."""
        self.levels = {self.SIZES[-1]: photos}
        for size in self.SIZES[:-1]:
            parts = [
                F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True).round().byte()
                for part in torch.split(photos, 64)
            ]
            self.levels[size] = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.levels[self.SIZES[-1]])

    def level(self, half: float, pixels: int) -> int:
        """The smallest size that still has a texel for each of the `pixels` which a view of height 2 * `half` has."""
        return next((size for size in self.SIZES if half * size >= pixels), self.SIZES[-1])


def render(bank: PhotoBank, scenes: Scenes, u: Tensor, height: int, width: int) -> Tensor:
    """Draw the frames at times `u` [N, T]: float32 [N, T, 3, height, width], 0 to 255."""
    frames = torch.empty(len(u), u.shape[1], 3, height, width)
    levels = torch.tensor([bank.level(float(half), height) for half in scenes.half])
    for size in torch.unique(levels).tolist():
        chosen = levels == size
        frames[chosen] = _render_level(bank, size, scenes[chosen], u[chosen], height, width)
    return frames


def _render_level(bank: PhotoBank, size: int, scenes: Scenes, u: Tensor, height: int, width: int) -> Tensor:
    count, times = u.shape
    x, y, half, roll = (value[:, :, None, None] for value in camera_path(scenes, u))  # [N, T, 1, 1]
    aspect = width / height
    view_y = (((torch.arange(height) + 0.5) * 2 / height) - 1).view(1, 1, -1, 1)
    view_x = ((((torch.arange(width) + 0.5) * 2 / width) - 1) * aspect).view(1, 1, 1, -1)
    world_x, world_y = _rotate(view_x, view_y, roll)
    world_x, world_y = x + half * world_x, y + half * world_y  # [N, T, H, W]
    frames = _sample(bank.levels[size][scenes.photo], world_x, world_y)

    chosen = (scenes.object_size > 0).nonzero()[:, 0]
    if len(chosen):
        some = scenes[chosen]
        base = some.half.view(-1, 1, 1, 1)
        # World positions as the view at half time saw them, or this moment's view for an object that rides along.
        seen_x, seen_y = _rotate(
            (world_x[chosen] - some.centre[:, 0].view(-1, 1, 1, 1)) / base,
            (world_y[chosen] - some.centre[:, 1].view(-1, 1, 1, 1)) / base,
            -some.angle.view(-1, 1, 1, 1),
        )
        rides = some.object_rides.view(-1, 1, 1, 1)
        seen_x, seen_y = torch.where(rides, view_x, seen_x), torch.where(rides, view_y, seen_y)
        since = (u[chosen] - 0.5)[:, :, None, None]
        place, speed = some.object_place[:, :, None, None, None], some.object_speed[:, :, None, None, None]
        speed = torch.where(rides[:, None], torch.zeros(1), speed)
        own_x, own_y = _rotate(
            seen_x - place[:, 0] - speed[:, 0] * since,
            seen_y - place[:, 1] - speed[:, 1] * since,
            -some.object_spin.view(-1, 1, 1, 1) * since * ~rides,
        )
        size_x = some.object_size * some.object_shape[:, 0].sqrt()
        size_y = some.object_size / some.object_shape[:, 0].sqrt()
        own_x, own_y = own_x / size_x.view(-1, 1, 1, 1), own_y / size_y.view(-1, 1, 1, 1)
        power = some.object_shape[:, 1].view(-1, 1, 1, 1)
        radius = (own_x.abs().clamp(max=2.0) ** power + own_y.abs().clamp(max=2.0) ** power).clamp(min=1e-6) ** (
            1 / power
        )
        edge = (1.0 - radius) * some.object_size.view(-1, 1, 1, 1) * height / 2  # pixels inside the outline
        cover = (edge + 0.5).clamp(0.0, 1.0)[:, :, None]
        texture = bank.levels[PhotoBank.SIZES[0 if height <= 90 else 2]][some.object_photo]
        thing = _sample(texture, own_x * 0.6, own_y * 0.6)
        frames[chosen] = frames[chosen] + cover * (thing - frames[chosen])
    return frames.view(count, times, 3, height, width)


def _sample(texture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear look-up of uint8 [N, 3, S, S] at positions [N, T, H, W]: float32 [N, T, 3, H, W]."""
    count, times, height, width = x.shape
    grid = torch.stack([x, y], dim=-1).view(count, times * height, width, 2)
    found = F.grid_sample(texture.float(), grid, padding_mode="reflection", align_corners=False)
    return found.view(count, 3, times, height, width).transpose(1, 2)
