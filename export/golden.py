"""Renders the rows of golden samples and of parity checks: the same on every machine, and near enough to photos.

A row has the spectrum of natural pictures (amplitude falling as 1/f), shapes with edges, and channels, sides and times
that differ, so that swapped colours, flips and swapped frames change what a model says of it. Every fourth is noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A clip's golden run costs as much as many pictures', so there are fewer.
GOLDEN_IMAGES = 4
GOLDEN_CLIPS = 2
_SHAPES = 5
_NOISE_EVERY = 4


def golden_count(row_shape: tuple[int, ...]) -> int:
    """How many rows a package carries."""
    return GOLDEN_IMAGES if len(row_shape) == 3 else GOLDEN_CLIPS


def render_rows(row_shape: tuple[int, ...], count: int, first: int = 0) -> NDArray[np.uint8]:
    """`count` rows of the endless series for a shape, from the row `first`.

    Args:
        row_shape: (H, W, 3), or (T, H, W, 3) for clips of a moving view.

    Returns:
        uint8 [count, *row_shape].
    """
    return np.stack([render_row(row_shape, index) for index in range(first, first + count)])


def render_row(row_shape: tuple[int, ...], index: int) -> NDArray[np.uint8]:
    """One row of the series, uint8 [*row_shape]."""
    generator = np.random.default_rng(index)
    if index % _NOISE_EVERY == _NOISE_EVERY - 1:
        return generator.integers(0, 256, row_shape, dtype=np.uint8)
    *time, height, width, _ = row_shape
    frames = time[0] if time else 1
    # The view wanders over a larger scene, by a whole number of pixels a frame.
    margin = max(frames - 1, 0)
    step_y, step_x = generator.integers(0, 3), generator.integers(0, 3)
    scene = _scene(generator, height + 2 * margin, width + 2 * margin)
    views = [scene[t * step_y : t * step_y + height, t * step_x : t * step_x + width] for t in range(frames)]
    clip = np.stack([_with_grain(view, generator) for view in views])
    return clip if time else clip[0]


def _scene(generator: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Pixel values [height, width, 3], about 0 to 255."""
    fy = np.fft.fftfreq(height)[:, None, None]
    fx = np.fft.rfftfreq(width)[None, :, None]
    amplitude = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / max(height, width))
    spectrum = amplitude * np.exp(2j * np.pi * generator.random((height, width // 2 + 1, 3)))
    texture = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    texture *= generator.uniform(25.0, 45.0) / texture.std()
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    sky, ground = generator.uniform(20.0, 235.0, (2, 3))
    scene: NDArray[np.float64] = sky * (1.0 - y) + ground * y + texture
    for _ in range(_SHAPES):
        centre_y, centre_x = generator.random(2)
        radius_y, radius_x = generator.uniform(0.05, 0.3, 2)
        inside = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1.0
        scene = np.where(inside, generator.uniform(0.0, 255.0, 3) + 0.3 * texture, scene)
    return scene


def _with_grain(view: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.uint8]:
    return np.clip(np.rint(view + generator.normal(0.0, 3.0, view.shape)), 0, 255).astype(np.uint8)
