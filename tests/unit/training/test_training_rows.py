"""Rows for training: cut by chance from what the server decodes, and told by the seed alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import BLUE, GREEN, RED, image_of, video_of
from PIL import Image

from app.errors import BrokenMedia
from export.catalog import find_variant
from training.folders import File
from training.rows import Augmentation, ReadableFile, Shape, draw_row, examine, random_box, served_rows, training_rows

OBJECTS, MOTION = find_variant("hiera_demo_objects"), find_variant("hiera_demo_camera_motion")
IMAGES = Shape(OBJECTS.preprocessing)
CLIPS = Shape(MOTION.preprocessing, MOTION.sampling)
WHOLE = Augmentation(least_area=1.0, flip=False)


@pytest.fixture
def noise(tmp_path: Path) -> tuple[ReadableFile, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return ReadableFile(tmp_path / "noise.png", 0, short_side=32), pixels


def test_a_small_picture_is_not_blown_up_and_shrunk_again(
    noise: tuple[ReadableFile, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]],
) -> None:
    file, pixels = noise
    np.testing.assert_array_equal(draw_row(file, IMAGES.spec, WHOLE, np.random.default_rng(0)), pixels)


def test_half_of_the_rows_are_mirrored_if_mirror_images_count(
    noise: tuple[ReadableFile, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]],
) -> None:
    file, pixels = noise
    rng = np.random.default_rng(0)
    rows = [draw_row(file, IMAGES.spec, Augmentation(1.0, flip=True), rng) for _ in range(60)]
    mirrored = [np.array_equal(row, pixels[:, ::-1]) for row in rows]
    plain = [np.array_equal(row, pixels) for row in rows]
    assert all(a != b for a, b in zip(mirrored, plain, strict=True))
    assert 15 < sum(mirrored) < 45


def test_crops_lie_inside_and_show_what_they_should_at_least() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(2000):
        left, top, width, height = random_box(100, 0.3, rng)
        assert min(left, top) >= 0
        assert max(left + width, top + height) <= 100.0 + 1e-9
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
        areas.append(width * height / 100**2)
    assert min(areas) >= 0.3 - 1e-9
    assert max(areas) > 0.9
    assert min(areas) < 0.35


def test_a_crop_is_cut_from_the_middle_square_of_an_upright_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 100), RED)
    picture.paste(GREEN, (100, 0, 200, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    file = ReadableFile(tmp_path / "turned.jpg", 0, short_side=100)
    for seed in range(20):
        row = draw_row(file, IMAGES.spec, Augmentation(0.2, flip=True), np.random.default_rng(seed))
        assert row.shape == (32, 32, 3)
        np.testing.assert_allclose(row[1:-1, 1:-1].mean(axis=(0, 1)), GREEN, atol=25)


def test_a_clip_has_one_crop_and_begins_here_or_there(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(video_of(RED, GREEN, BLUE, seconds_each=2.2))
    file = ReadableFile(tmp_path / "clip.mp4", 0, short_side=48)
    rows = [draw_row(file, CLIPS.spec, Augmentation(0.5, True), np.random.default_rng(seed)) for seed in range(12)]
    assert {row.shape for row in rows} == {(16, 64, 64, 3)}
    first = {int(row[0].mean(axis=(0, 1)).argmax()) for row in rows}
    assert first == {0, 1, 2}


@pytest.fixture
def children_as_before() -> Iterator[None]:
    """Torch listens to the ends of child processes from its first worker on. OpenVINO, which other tests load, leaves a
    thread without the stack that signals are handled on: the next child's end would be the end of all tests."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("children_as_before")
def test_rows_are_told_by_the_seed_and_not_by_who_draws_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = []
    for index in range(5):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        files.append(ReadableFile(tmp_path / f"{index}.png", index, 40))

    def draws(seed: int, workers: int) -> tuple[torch.Tensor, list[int]]:
        batches = list(islice(training_rows(files, IMAGES, Augmentation(0.3, True), 3, workers, seed), 4))
        return torch.cat([rows for rows, _ in batches]), torch.cat([labels for _, labels in batches]).tolist()

    (rows, labels), (same, same_labels), (others, _) = draws(1, 0), draws(1, 2), draws(2, 0)
    torch.testing.assert_close(rows, same, rtol=0, atol=0)
    assert labels == same_labels
    assert sorted(labels[:5]) == sorted(labels[5:10]) == [0, 1, 2, 3, 4]
    first, second = (rows[at] for at in range(len(labels)) if labels[at] == labels[0] and at < 10)
    assert not torch.equal(first, second)
    assert not torch.equal(rows, others)


def test_files_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    photo = image_of(RED, (80, 60))
    contents = {"a.jpg": photo, "b.jpg": photo[: len(photo) // 2], "c.txt": b"hello", "d.jpg": photo}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    files = [File(tmp_path / name, 1) for name in (*contents, "e.jpg")]
    readable, others = examine(files, IMAGES.spec, 0)
    assert readable == [ReadableFile(tmp_path / name, 1, 60) for name in ("a.jpg", "d.jpg")]
    assert [path.name for path, _ in others] == ["b.jpg", "c.txt", "e.jpg"]
    assert "cut short" in others[0][1]
    assert "is a text" in others[1][1]
    assert "No such file" in others[2][1]


def test_a_file_that_breaks_later_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_of(RED)[:300])
    with pytest.raises(BrokenMedia):
        next(served_rows([ReadableFile(tmp_path / "a.jpg", 0, 48)], IMAGES, 1, 0))
