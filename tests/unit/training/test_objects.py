"""The objects recipe reads CIFAR-10 as it is stored and augments reproducibly."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from export.hiera import create_model
from training import objects
from training.record import accuracy_by_class, read_labels, save


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two training images and one test image in CIFAR-10's layout, each a plain colour."""
    path = tmp_path / "cifar10.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for name, colour in (
            ("train/truck/1.jpg", "red"),
            ("train/airplane/2.jpg", "blue"),
            ("test/dog/3.jpg", "lime"),
        ):
            file = io.BytesIO()
            Image.new("RGB", (32, 32), colour).save(file, "JPEG", quality=95, subsampling=0)
            member = tarfile.TarInfo(name)
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
    return path


def test_labels_are_in_the_order_of_the_heads() -> None:
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert read_labels("objects") == classes
    assert len(read_labels("camera_motion")) == 10


def test_the_archive_is_read_by_name_and_class(archive: Path) -> None:
    splits = objects.load_cifar10(archive)
    images, labels = splits["train"]
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [0, 9]
    assert images[0, :, 16, 16].argmax() == 2  # blue, in RGB
    assert splits["test"][1].tolist() == [5]


def test_augmentation_is_reproducible_and_stays_in_range() -> None:
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second, other = (objects.augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert 0.0 <= float(first.min()) <= float(first.max()) <= 255.0


def test_an_epoch_shows_every_image_once() -> None:
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    batches = objects.ShuffledBatches(images, torch.arange(8), 4, seed=0)
    assert sorted(batches()[1].tolist() + batches()[1].tolist()) == list(range(8))


def test_a_photo_becomes_a_normalised_square(tmp_path: Path) -> None:
    Image.new("RGB", (100, 60), (124, 116, 104)).save(tmp_path / "grey.png")
    row = objects.read_photo(tmp_path / "grey.png")
    assert row.shape == (3, 32, 32)
    assert float(objects.normalise(row[None]).abs().max()) < 0.01  # ImageNet's mean colour


def test_saved_weights_load_into_the_model_with_their_record(tmp_path: Path) -> None:
    model = create_model(objects.NAME)
    save(model.state_dict(), {"seed": 1}, tmp_path / "weights.safetensors")
    create_model(objects.NAME).load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert json.loads((tmp_path / "weights.json").read_text()) == {"seed": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.json", "weights.safetensors"]


def test_accuracy_is_counted_for_each_class() -> None:
    counted = accuracy_by_class(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), ["a", "b", "c"])
    assert counted == {"top1": 0.6667, "items": 3, "per_class": {"a": 0.5, "b": 1.0}}


def test_evaluate_measures_the_package_that_ships(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[3])
    photo = archive.with_name("photo.png")
    Image.new("RGB", (64, 48), "green").save(photo)
    objects.main(["evaluate", "--data", str(archive.parent), "--photos", str(photo)])
    printed = capsys.readouterr().out
    assert "on CIFAR-10's 1 test images" in printed
    assert "photo" in printed
