"""Rendered clips show the motion that their label names, seen from the camera."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from training import clips, render
from training.record import read_labels
from training.render import PhotoBank, Scenes, camera_path, draw_scenes

U = torch.linspace(0.0, 1.0, 16)[None]


@pytest.fixture(scope="module")
def bank() -> PhotoBank:
    """One photo: two soft dots left and right of the middle, the right one brighter."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    dots = 250 * torch.exp(-((x - 0.12) ** 2 + y**2) / 0.002) + 120 * torch.exp(-((x + 0.12) ** 2 + y**2) / 0.002)
    return PhotoBank(dots.clamp(max=255).byte().expand(1, 3, -1, -1).contiguous())


def plain_scene(label: int, seed: int = 0) -> Scenes:
    """A scene of one class without tremble, object or slant, with the dots in its middle."""
    drawn = draw_scenes(torch.tensor([label]), 1, torch.Generator().manual_seed(seed))
    return replace(
        drawn,
        half=torch.full((1,), 0.5),
        centre=torch.zeros(1, 2),
        angle=torch.zeros(1),
        displacement=drawn.displacement.clamp(-0.4, 0.4),
        turn=drawn.turn.clamp(-1.0, 1.0),
        log_zoom=drawn.log_zoom.clamp(-0.5, 0.5),
        wave_size=drawn.wave_size * (label == render.SHAKE),
        object_size=torch.zeros(1),
    )


def change(frames: Tensor) -> dict[str, float]:
    """How the picture of frames [T, 3, H, W] changes: x, y, size and angle (clockwise is positive)."""

    def measure(frame: Tensor) -> tuple[float, float, float, float]:
        light = frame.mean(dim=0)
        height, width = light.shape
        rows, columns = torch.arange(height).float(), torch.arange(width).float()
        x = float((light.sum(dim=0) * columns).sum() / light.sum())
        y = float((light.sum(dim=1) * rows).sum() / light.sum())
        # The brighter dot lies to the one side of the common centre of light.
        bright = (light - 0.6 * light.max()).clamp(min=0.0)
        bright_x = float((bright.sum(dim=0) * columns).sum() / bright.sum()) - x
        bright_y = float((bright.sum(dim=1) * rows).sum() / bright.sum()) - y
        angle = float(torch.atan2(torch.tensor(bright_y), torch.tensor(bright_x)))
        return x, y, (bright_x**2 + bright_y**2) ** 0.5, angle

    first, last = measure(frames[0]), measure(frames[-1])
    x, y, size, angle = (b - a for a, b in zip(first, last, strict=True))
    return {"x": x, "y": y, "size": size, "angle": (angle + math.pi) % (2 * math.pi) - math.pi}


def seen_class(frames: Tensor) -> int:
    """The class that the dots' movement shows, judged by measuring."""
    moved = change(frames)
    if abs(moved["angle"]) > 0.08:
        return render.ROLL_CCW if moved["angle"] > 0 else render.ROLL_CW
    if max(abs(moved["x"]), abs(moved["y"])) > 2.5:
        if abs(moved["x"]) > abs(moved["y"]):
            return render.PAN_LEFT if moved["x"] > 0 else render.PAN_RIGHT
        return render.TILT_UP if moved["y"] > 0 else render.TILT_DOWN
    if abs(moved["size"]) > 0.3:
        return render.ZOOM_IN if moved["size"] > 0 else render.ZOOM_OUT
    return render.STATIC


@pytest.mark.parametrize("label", [label for label in range(render.CLASSES) if label != render.SHAKE])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_picture_moves_against_the_camera(bank: PhotoBank, label: int, seed: int) -> None:
    assert seen_class(render.render(bank, plain_scene(label, seed), U, 64, 64)[0]) == label


def test_a_pan_to_the_right_moves_the_scene_to_the_left(bank: PhotoBank) -> None:
    label = read_labels("camera_motion").index("pan right")
    assert change(render.render(bank, plain_scene(label), U, 64, 64)[0])["x"] < -3


def test_a_tilt_up_moves_the_scene_down(bank: PhotoBank) -> None:
    label = read_labels("camera_motion").index("tilt up")
    assert change(render.render(bank, plain_scene(label), U, 64, 64)[0])["y"] > 3


def test_a_clockwise_roll_turns_the_picture_counter_clockwise(bank: PhotoBank) -> None:
    label = read_labels("camera_motion").index("roll clockwise")
    assert change(render.render(bank, plain_scene(label), U, 64, 64)[0])["angle"] < -0.1


def test_zooming_in_spreads_the_scene(bank: PhotoBank) -> None:
    label = read_labels("camera_motion").index("zoom in")
    assert change(render.render(bank, plain_scene(label), U, 64, 64)[0])["size"] > 0.3


def test_a_shake_goes_to_and_fro() -> None:
    x, _, _, _ = camera_path(plain_scene(render.SHAKE), U)
    steps = x[0].diff()
    assert bool((steps > 0).any())
    assert bool((steps < 0).any())


@pytest.mark.parametrize(
    ("axes", "mapping"),
    [((0,), clips.REVERSED), ((3,), clips.MIRRORED), ((2,), clips.UPENDED), (None, clips.TRANSPOSED)],
    ids=["reversed", "mirrored", "upended", "transposed"],
)
@pytest.mark.parametrize("label", range(render.SHAKE))
def test_a_changed_clip_shows_what_the_mapping_says(
    bank: PhotoBank, axes: tuple[int, ...] | None, mapping: Tensor, label: int
) -> None:
    frames = render.render(bank, plain_scene(label, 1), U, 64, 64)[0]
    changed = frames.transpose(2, 3) if axes is None else frames.flip(axes)
    assert seen_class(changed) == int(mapping[label])


def test_an_object_before_a_static_scene_moves_alone() -> None:
    grey = torch.full((2, 3, 256, 256), 90, dtype=torch.uint8)
    grey[1] = 250
    scene = replace(
        plain_scene(render.STATIC),
        object_photo=torch.tensor([1]),
        object_size=torch.tensor([0.2]),
        object_place=torch.zeros(1, 2),
        object_speed=torch.tensor([[1.0, 0.0]]),
    )
    frames = render.render(PhotoBank(grey), scene, U, 64, 64)[0]
    assert float(frames[0, 0, 32, 16]) > 200  # the object starts a quarter from the left
    assert float(frames[-1, 0, 32, 16]) == pytest.approx(90, abs=1)
    assert float(frames[-1, 0, 32, 48]) > 200
    assert float(frames[:, :, :8].max()) == pytest.approx(90, abs=1)


def test_the_same_seed_gives_the_same_batch() -> None:
    photos = torch.randint(0, 256, (3, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    (first, labels), (second, same), (other, _) = (clips.RenderedBatches(photos, 6, seed)() for seed in (1, 1, 2))
    assert first.shape == (6, 3, 16, 64, 64)
    assert torch.equal(first, second)
    assert torch.equal(labels, same)
    assert not torch.equal(first, other)


def test_times_run_forward_and_stay_in_the_clip() -> None:
    times = clips.sample_times(200, torch.Generator().manual_seed(0))
    assert times.shape == (200, 16)
    assert bool((times.diff(dim=1) >= 0).all())
    assert float(times.min()) >= 0.0
    assert float(times.max()) <= 1.0


def test_degraded_clips_are_whole_levels_of_a_byte() -> None:
    generator = torch.Generator().manual_seed(0)
    degraded = clips.Degrade(generator)(torch.rand(8, 16, 3, 64, 64, generator=generator) * 255)
    assert bool((degraded == degraded.round()).all())
    assert 0.0 <= float(degraded.min()) <= float(degraded.max()) <= 255.0
