"""The two ways from a model and a user's files to a classifier of them, and the measure that both are held to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from export.hiera import Hiera
from training import recipe
from training.folders import Folder, FolderError, held_out_names
from training.linear_head import choose_strength, fit_head
from training.loop import Batch, LoopSettings, train
from training.record import accuracy_by_class
from training.rows import Augmentation, ReadableFile, Shape, examine, served_rows, training_rows

Say = Callable[[str], None]
_CHECKPOINTS = 10
_JUDGES = 5  # one in so many training files of a class chooses the strength of a linear head
_STRENGTH = 0.1  # where there are none


@dataclass(frozen=True)
class Data:
    """Files that can be read, and how a model sees them. `left_out` are the others, with the reason."""

    classes: tuple[str, ...]
    training: list[ReadableFile]
    held_out: list[ReadableFile]
    left_out: list[tuple[str, str]]
    shape: Shape


@dataclass(frozen=True)
class Means:
    """What it is done with: rows in a batch, processes that decode (0: this one), and the seed of what is drawn."""

    device: torch.device
    batch: int
    workers: int
    seed: int


def readable_data(folder: Folder, shape: Shape, workers: int, say: Say) -> Data:
    """Read every file once; `say` is told of those that cannot be read and are left out.

    Raises:
        FolderError: of a class no training file is left, or nothing is left to measure with.
    """
    training, broken = examine(folder.training, shape.spec, workers)
    held_out, broken_too = examine(folder.held_out, shape.spec, workers)
    left_out = [(str(path), reason) for path, reason in broken + broken_too]
    for path, reason in left_out:
        say(f"left out: {path}: {reason}")
    missing = _without_files(folder, training)
    if missing:
        raise FolderError(f"no file to train with is left of {', '.join(missing)}")
    if not held_out:
        raise FolderError("no file is left to measure with: two of a class are the least")
    for name in _without_files(folder, held_out):
        say(f"not measured: no file of {name} is held out")
    return Data(folder.classes, training, held_out, left_out, shape)


def _without_files(folder: Folder, files: list[ReadableFile]) -> list[str]:
    present = {file.label for file in files}
    return [name for label, name in enumerate(folder.classes) if label not in present]


@torch.no_grad()
def features_of(
    model: Hiera, files: list[ReadableFile], shape: Shape, means: Means, mirrored: bool = False
) -> tuple[Tensor, Tensor]:
    """Pooled features in fp32, [N, D], of the rows that the server would make, and labels, int64 [N]; on the CPU."""
    model.eval()
    features, labels = [], []
    bar = tqdm(desc="features", total=len(files), unit="file", mininterval=1.0, dynamic_ncols=True, disable=None)
    with bar:
        for inputs, truth in served_rows(files, shape, means.batch, means.workers):
            inputs = inputs.to(means.device)
            features.append(model.forward_features(inputs.flip(-1) if mirrored else inputs).cpu())
            labels.append(truth)
            bar.update(len(truth))
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def measure(model: Hiera, data: Data, means: Means) -> dict[str, Any]:
    """Accuracy over the held-out files, in fp32, as `accuracy_by_class` gives it."""
    features, labels = features_of(model, data.held_out, data.shape, means)
    predicted = model.head(features.to(means.device)).argmax(dim=1).cpu()
    return accuracy_by_class(predicted, labels, data.classes)


def fit_linear_head(model: Hiera, data: Data, means: Means, mirror: bool, say: Say) -> float:
    """Give `model` the best linear head for its features as they are; with `mirror` also for those of mirror images.

    Returns:
        The strength of the penalty on its weights, which every fifth training file of a class chose.
    """
    plain, labels = features_of(model, data.training, data.shape, means)
    features, truth = plain, labels
    chosen = judges(data)
    if mirror:
        flipped, _ = features_of(model, data.training, data.shape, means, mirrored=True)
        features, truth = torch.cat([plain, flipped]), labels.repeat(2)
    strength, classes = _STRENGTH, len(data.classes)
    if bool(chosen.any()):
        others = ~chosen.repeat(len(truth) // len(labels))
        strength = choose_strength(features[others], truth[others], plain[chosen], labels[chosen], classes, say)
    head = fit_head(features, truth, classes, strength)
    with torch.no_grad():
        model.head.projection.weight.copy_(head.weight)
        model.head.projection.bias.copy_(head.bias)
    return strength


def judges(data: Data) -> Tensor:
    """Which training files choose, bool [N]."""
    # Not by the hash of the bare name, which has held files out already.
    names = ["judge " + file.path.name for file in data.training]
    of_class: dict[int, list[str]] = {}
    for file, name in zip(data.training, names, strict=True):
        of_class.setdefault(file.label, []).append(name)
    # Files of several folders may share a name: they go together, and never all of a class.
    chosen = {label: held_out_names(set(some), _JUDGES) for label, some in of_class.items()}
    return torch.tensor([name in chosen[file.label] for file, name in zip(data.training, names, strict=True)])


def train_whole(
    model: Hiera,
    data: Data,
    means: Means,
    how: recipe.Recipe,
    augmentation: Augmentation,
    keep: Callable[[Hiera, int], float],
) -> int:
    """Train everything in place, and leave the averaged weights in `model`.

    Args:
        keep: told of the averaged model and the step, ten times in a run; its accuracy is shown.

    Returns:
        The steps that were taken.
    """
    steps = max(1, round(how.epochs * len(data.training) / means.batch))
    mix = recipe.Mixing(len(data.classes), how.mixup, how.cutmix, means.seed)
    rows = training_rows(data.training, data.shape, augmentation, means.batch, means.workers, means.seed)

    def next_batch() -> Batch:
        inputs, labels = next(rows)
        return mix(inputs.to(means.device), labels.to(means.device))

    twin = copy.deepcopy(model)

    def on_checkpoint(state: dict[str, Tensor], step: int) -> str:
        twin.load_state_dict(state)
        return f"held-out {keep(twin, step):.1%}"

    settings = LoopSettings(steps, label_smoothing=recipe.LABEL_SMOOTHING, checkpoint_every=-(-steps // _CHECKPOINTS))
    groups = recipe.parameter_groups(model, recipe.scaled_rate(how.rate, means.batch), how.layer_decay)
    optimiser = torch.optim.AdamW(groups, betas=recipe.BETAS)
    state, result = train(model, next_batch, settings, on_checkpoint, [optimiser], recipe.cosine(steps))
    model.load_state_dict(state)
    return result.steps
