"""`python -m training.objects --data DIR`: the micro image classifier, Hiera on CIFAR-10's ten classes.

`python -m training.objects evaluate --data DIR` measures the package that ships.

CIFAR-10 is Krizhevsky 2009. A served photo is shrunk to 32 pixels by an antialiased bicubic filter, so it is sharper
than CIFAR's images and its object is often smaller: the augmentation covers both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from app.errors import RequestError
from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.spec import ImageSpec
from export.hiera import create_model
from export.media_files import read_media
from training.archives import ArchiveError, read_pictures
from training.classifier import add_classifier_arguments, classifier_of, load_weights
from training.demo_command import add_recipe_arguments, run_recipe
from training.flags import within
from training.loop import Batch, LoopSettings, train
from training.record import accuracy_by_class, earlier_runs, facts_of, predict, read_labels, save

NAME = "hiera_demo_objects"
ARCHIVE = "cifar10.tar.xz"
SIZE = 32
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PREPROCESSING = {
    "input_size": [SIZE, SIZE],
    "resize_short_side": SIZE,
    "interpolation": "bicubic",
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
}


def load_cifar10(archive: Path, splits: Sequence[str] = ("train", "test")) -> dict[str, tuple[Tensor, Tensor]]:
    """Read `<split>/<class>/*.jpg` out of the archive.

    Returns:
        For each of `splits`: uint8 images [N, 3, 32, 32] and int64 class ids [N], in order of file name.

    Raises:
        ArchiveError: it cannot be read, or holds something else.
    """
    class_ids = {name: index for index, name in enumerate(read_labels("objects"))}
    found: dict[str, list[tuple[str, int, np.ndarray[Any, Any]]]] = {split: [] for split in splits}

    def wanted(name: str) -> bool:
        parts = name.split("/")
        return len(parts) >= 3 and parts[-3] in splits

    for name, picture in read_pictures(archive, wanted):
        split, label = name.split("/")[-3:-1]
        if label not in class_ids or picture.size != (SIZE, SIZE):
            raise ArchiveError(
                f"{archive}: {name} is none of CIFAR-10's images, which have {SIZE}x{SIZE} pixels and stand in folders "
                f"called {', '.join(class_ids)}"
            )
        found[split].append((name, class_ids[label], np.asarray(picture)))
    read = {}
    for split, items in found.items():
        if not items:
            raise ArchiveError(f"{archive} holds no {split}/<class>/*.jpg")
        items.sort(key=lambda item: item[0])
        images = torch.from_numpy(np.stack([pixels for _, _, pixels in items])).permute(0, 3, 1, 2).contiguous()
        read[split] = images, torch.tensor([label for _, label, _ in items])
    return read


def normalise(images: Tensor) -> Tensor:
    """uint8 or 0..255 float [N, 3, H, W] to float32 with ImageNet's mean and deviation taken out."""
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (images.float() / 255.0 - mean) / std


def read_photo(path: Path) -> Tensor:
    """A photo as the server decodes it: short side to 32 by antialiased bicubic, centre square; uint8 [3, 32, 32].

    Raises:
        RequestError: it is no image, damaged or too large; the message names it.
        OSError: it cannot be opened.
    """
    row, limits = np.empty((SIZE, SIZE, 3), dtype=np.uint8), MediaLimits()
    try:
        data = read_media(path, limits)
        decode_image(data, ImageSpec(resize_short_side=SIZE, height=SIZE, width=SIZE), limits, row)
    except RequestError as error:
        raise type(error)(f"{path}: {error}") from error
    return torch.from_numpy(row).permute(2, 0, 1)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip, shift, scale, sharpness and colour, a different one for each image.

    Args:
        images: uint8 [N, 3, H, W].

    Returns:
        float32 [N, 3, H, W], 0 to 255.
    """
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, 1).uniform_(low, high, generator=generator)

    def chance(probability: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < probability

    x = images.float()
    # Most images move by whole pixels and stay as sharp as they are; the others are scaled, mostly made smaller.
    free = chance(0.35)
    scale = torch.where(free, uniform(-0.2, 0.4).exp(), torch.ones(1))
    aspect = torch.where(free, uniform(-0.15, 0.15).exp(), torch.ones(1))
    flip = torch.where(chance(0.5), -1.0, 1.0)
    shift = [uniform(-4.0, 4.0), uniform(-4.0, 4.0)]
    shift = [torch.where(free, s, s.round()) * 2.0 / size for s, size in zip(shift, (width, height), strict=True)]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = (flip * scale * aspect).flatten()
    theta[:, 1, 1] = (scale / aspect).flatten()
    theta[:, 0, 2], theta[:, 1, 2] = shift[0].flatten(), shift[1].flatten()
    grid = F.affine_grid(theta, [count, 3, height, width], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = x + torch.where(chance(0.4), uniform(-0.5, 1.2), torch.zeros(1)) * (x - blurred)

    grey = x.mean(dim=1, keepdim=True)
    x = torch.where(chance(0.3), grey + (x - grey) * uniform(0.5, 1.5), x)
    middle = x.mean(dim=(1, 2, 3), keepdim=True)
    x = torch.where(chance(0.3), (x - middle) * uniform(0.7, 1.4) + middle * uniform(0.7, 1.3), x)
    return x.clamp(0.0, 255.0)


class ShuffledBatches:
    """Endless augmented batches, each epoch in a new order."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int, seed: int) -> None:
        self.images, self.labels, self.batch = images, labels, batch
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)

    def __call__(self) -> Batch:
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.images), generator=self.generator)
        chosen, self.order = self.order[: self.batch], self.order[self.batch :]
        return normalise(augment(self.images[chosen], self.generator)), self.labels[chosen]


def _train(options: argparse.Namespace) -> None:
    names = read_labels("objects")
    splits = load_cifar10(options.data / ARCHIVE)
    images, labels = splits["train"]
    # Every 50th training image watches the run; the test set is looked at once, at the end.
    watched = torch.arange(len(images)) % 50 == 0
    if watched.all():
        raise ArchiveError(f"{options.data / ARCHIVE} holds one image to train with: more are needed")
    model, twin = create_model(NAME), create_model(NAME)
    if options.initial:
        load_weights(model, NAME, options.initial)
    batches = ShuffledBatches(images[~watched], labels[~watched], options.batch, options.seed)
    steps_per_epoch = len(batches.images) / options.batch
    before = earlier_runs(options.initial)
    started = time.monotonic()

    def record(state: dict[str, Tensor], step: int, split: str) -> dict[str, Any]:
        twin.load_state_dict(state)
        inputs, truth = (images[watched], labels[watched]) if split == "watched" else splits[split]
        return {
            "name": NAME,
            "data": f"CIFAR-10 ({split}: {len(inputs)} images)",
            "accuracy": accuracy_by_class(predict(twin, normalise(inputs)), truth, names),
            "epochs": round(step / steps_per_epoch, 2),
            **facts_of(options, step, time.monotonic() - started),
            "earlier_runs": before,
            "parameters": sum(p.numel() for p in model.parameters()),
            "preprocessing": PREPROCESSING,
        }

    def checkpoint(state: dict[str, Tensor], step: int) -> str:
        facts = record(state, step, "watched")
        save(state, facts, options.output)
        return f"held-out {facts['accuracy']['top1']:.1%}"

    settings = LoopSettings(steps=max(1, int(options.epochs * steps_per_epoch)), minutes=options.minutes)
    settings = settings.scaled(options.rate)
    state, result = train(model, batches, settings, checkpoint)
    facts = record(state, result.steps, "test") | {"loss": round(result.loss, 4)}
    save(state, facts, options.output)
    print(f"test top-1 {facts['accuracy']['top1']:.2%} after {facts['epochs']} epochs: {options.output}")


def _evaluate(options: argparse.Namespace) -> None:
    names = read_labels("objects")
    classify = classifier_of(options, NAME, normalise)
    photos = [(path.stem, read_photo(path)) for path in options.photos or ()]  # now: the test set takes a while
    images, truth = load_cifar10(options.data / ARCHIVE, ["test"])["test"]
    accuracy = accuracy_by_class(classify(images).argmax(dim=1), truth, names)
    print(f"top-1 {accuracy['top1']:.2%} on CIFAR-10's {accuracy['items']} test images")
    for name, value in accuracy["per_class"].items():
        print(f"  {name:12s} {value:.1%}")
    for stem, photo in photos:
        best = classify(photo[None])[0].topk(3)
        guesses = (f"{names[i]} {p:.0%}" for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True))
        print(f"{stem:40s} {', '.join(guesses)}")


def main(arguments: list[str] | None = None) -> None:
    """Train, test and write the weights and the record; or only test.

    Raises:
        SystemExit: with a message, for whatever the user can mend.
    """
    parser = argparse.ArgumentParser(prog="python -m training.objects", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {ARCHIVE}")
    add_recipe_arguments(parser, NAME, batch=128)
    add_classifier_arguments(parser, NAME)
    parser.add_argument("--photos", type=Path, nargs="*", help="photos for `evaluate` to classify, too")
    parser.add_argument("--epochs", type=within(1e-3), default=25.0)
    options = parser.parse_args(arguments)
    run_recipe(parser, options, _train, _evaluate)


if __name__ == "__main__":
    main()
