"""Turns what a user asked for into what a package is to be: which weights, labels, preprocessing and terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from app.repository.manifest import Accuracy, Precision, Preprocessing, Sampling, Weights
from app.repository.store import read_labels, sha256
from export.catalog import OWN_WEIGHTS, RANDOM_WEIGHTS, RESEARCH_ONLY, Licence, Variant, read_label_set
from export.checkpoints import input_size_of, load_classifier, read_checkpoint
from export.download import WeightsSource, fetch
from export.errors import BuildRefused, CheckpointError, NoWeights, WrongLabels, WrongRecord
from export.golden import golden_count, render_rows
from export.hiera import CONFIGS, Hiera, create_model
from export.package import PackageSpec
from export.parity import LARGEST_BATCH, normalise
from export.random_weights import random_model
from export.training_record import TrainingRecord, read_record


@dataclass(frozen=True)
class BuildRequest:
    """One `hiera-export build`. Of `weights` and `random_seed` at most one is set; neither means the official file."""

    variant: Variant
    weights: Path | None = None
    random_seed: int | None = None
    labels: Path | None = None
    precision: Precision = "fp32"
    name: str | None = None
    version: int = 1
    max_batch: int | None = None
    resize_short_side: int | None = None
    sampling: Literal["dense", "uniform"] | None = None
    frame_stride: int | None = None
    target_fps: float | None = None
    licence: str | None = None
    commercial_use: bool = False

    @property
    def package_name(self) -> str:
        return self.variant.name if self.name is None else self.name


@dataclass(frozen=True)
class _Loaded:
    """A model and what can be said of its weights."""

    model: Hiera
    weights: Weights
    description: str
    notice: str
    accuracy: tuple[Accuracy, ...] = ()
    record: TrainingRecord | None = None


def make_spec(request: BuildRequest, source: WeightsSource, say: Callable[[str], None]) -> PackageSpec:
    """Fetch or read the weights and settle everything that the package says of them.

    Args:
        source: where official weights come from.
        say: told of each step, the licence among them.

    Raises:
        BuildRefused, DownloadFailed, CheckpointError, NoWeights, WrongLabels, WrongRecord, PackageError: in the words
            of each.
    """
    refuse_contradictions(request)
    variant = request.variant
    labels = None if request.labels is None else read_labels(request.labels)
    if request.random_seed is not None:
        loaded = _random(variant, request.random_seed, None if labels is None else len(labels))
    elif request.weights is not None:
        loaded = _from_file(request, request.weights, say)
    else:
        loaded = _official(variant, source, say)
    say(loaded.notice)
    preprocessing, sampling = geometry(request, loaded.model.config.input_size, loaded.record, say)
    return PackageSpec(
        variant=variant,
        name=request.package_name,
        version=request.version,
        description=loaded.description,
        model=loaded.model,
        labels=_fitting_labels(labels, variant, loaded.model.config.num_classes),
        weights=loaded.weights,
        preprocessing=preprocessing,
        sampling=sampling,
        accuracy=loaded.accuracy,
        precision=request.precision,
        max_batch=request.max_batch or LARGEST_BATCH[variant.task],
    )


def refuse_contradictions(request: BuildRequest) -> None:
    """Raises BuildRefused for what no server would take, and for options that would be passed over in silence."""
    variant = request.variant
    if request.commercial_use and request.licence is None:
        raise BuildRefused("--commercial-use says what a licence allows: name that with --licence")
    if request.licence is not None and request.weights is None:
        raise BuildRefused("--licence is for your own weights: it goes with --weights")
    of_videos = {
        "--sampling": request.sampling,
        "--frame-stride": request.frame_stride,
        "--target-fps": request.target_fps,
    }
    given = [flag for flag, value in of_videos.items() if value is not None]
    if given and variant.sampling is None:
        raise BuildRefused(f"{given[0]} is for videos, but {variant.name} takes images")
    if request.sampling == "uniform" and len(given) > 1:
        raise BuildRefused(f"{given[1]} is for dense sampling; uniform sampling takes frames from the whole video")
    if request.weights is None:  # else the crop is known when they have been read
        _refuse_small(request, variant.preprocessing)


def _refuse_small(request: BuildRequest, crop: Preprocessing) -> None:
    short_side, most = request.resize_short_side, max(crop.height, crop.width)
    if short_side is not None and short_side < most:
        raise BuildRefused(
            f"--resize-short-side {short_side} is too small: {request.variant.name} takes a crop of "
            f"{crop.height}x{crop.width}, so it must be {most} or more"
        )


def rebuild_random(variant: Variant, seed: int, num_classes: int) -> Hiera:
    """The model of a package whose manifest gives a random seed.

    Raises:
        BuildRefused: torch takes no such seed.
    """
    if not -(2**63) <= seed < 2**64:
        raise BuildRefused(f"{seed} can't be the seed of random weights: torch takes 64 bits")
    row_shape = (*CONFIGS[variant.name].input_size, 3)
    samples = normalise(render_rows(row_shape, golden_count(row_shape)), variant.preprocessing)
    return random_model(variant.name, seed, samples, num_classes)


def load_weights(variant: Variant, path: Path, say: Callable[[str], None] = lambda _: None) -> Hiera:
    """The torch model with a checkpoint's weights: its head as large as theirs, its input the one that they are for.

    Args:
        say: told which weights are taken of a file that holds several.

    Raises:
        CheckpointError: the checkpoint does not fit.
    """
    config = CONFIGS[variant.name]
    checkpoint = read_checkpoint(path, config)
    if checkpoint.note:
        say(checkpoint.note)
    with torch.device("meta"):
        model = create_model(variant.name, checkpoint.num_classes, input_size=input_size_of(checkpoint.state, config))
    load_classifier(model, checkpoint, path.name)
    return model.eval()


def _random(variant: Variant, seed: int, num_classes: int | None) -> _Loaded:
    return _Loaded(
        model=rebuild_random(variant, seed, num_classes or variant.num_classes),
        weights=Weights(
            source=f"random weights, seed {seed}",
            random_seed=seed,
            licence=RANDOM_WEIGHTS.name,
            commercial_use=RANDOM_WEIGHTS.commercial_use,
        ),
        description=f"Random weights, for benchmarks and tests only: {variant.title}",
        notice=RANDOM_WEIGHTS.notice,
    )


def _official(variant: Variant, source: WeightsSource, say: Callable[[str], None]) -> _Loaded:
    if variant.download is None:
        raise NoWeights(
            f"{variant.name} is a demo model, which no one publishes: its recipe is in training/, and its package "
            "comes with the source in model_repo/. Pass the recipe's result with --weights FILE"
        )
    say(f"official weights: {source.url(variant.download)}")
    path = fetch(variant.download, source)
    try:
        model = load_weights(variant, path, say)
    except CheckpointError as error:  # a server that does not say how long a file is may have broken off
        raise CheckpointError(f"{error}\nThis should be the official file: remove {path} to fetch it again") from error
    licence = variant.download.licence
    return _Loaded(
        model=model,
        weights=_weights(variant.download.url, path, licence),
        description=variant.description,
        notice=f"Licence: {licence.notice}",
        accuracy=variant.accuracy,
    )


def _from_file(request: BuildRequest, path: Path, say: Callable[[str], None]) -> _Loaded:
    variant = request.variant
    model = load_weights(variant, path, say)
    record = read_record(path.with_suffix(".json"))
    licence = RESEARCH_ONLY if variant.demo else OWN_WEIGHTS
    if request.licence is not None:
        licence = Licence(request.licence, request.commercial_use, f"as you say, {request.licence}")
    accuracy: tuple[Accuracy, ...] = ()
    if record is not None:
        how = "measured by the training recipe after training, in torch"
        accuracy = (Accuracy(dataset=record.data, top1=round(100 * record.accuracy.top1, 2), how=how),)
    return _Loaded(
        model=model,
        weights=_weights(f"file {path.name}", path, licence),
        # A demo variant with classes of the user's own is no longer what the catalog says of the demo.
        description=variant.description
        if variant.demo and request.labels is None
        else f"{variant.title}, with weights from {path.name}",
        notice=f"Licence: {licence.notice}",
        accuracy=accuracy,
        record=record,
    )


def _weights(source: str, path: Path, licence: Licence) -> Weights:
    return Weights(source=source, sha256=sha256(path), licence=licence.name, commercial_use=licence.commercial_use)


def geometry(
    request: BuildRequest, input_size: tuple[int, ...], record: TrainingRecord | None, say: Callable[[str], None]
) -> tuple[Preprocessing, Sampling | None]:
    """What a package's rows are to be: the user's word before the record's before the catalog's.

    Args:
        input_size: of the graph, which the crop and the frames are.
        record: what lies beside the weights.
        say: told of it where it is not the variant's own.

    Raises:
        WrongRecord: the record is of other inputs.
        BuildRefused: the user's short side is smaller than the crop, or a stride goes with uniform sampling.
    """
    preprocessing, sampling = _of_input(request.variant, input_size)
    if record is not None:
        given = record.preprocessing
        if given.input_size != list(input_size):
            raise WrongRecord(
                f"the training record is of inputs {given.input_size}, and the weights take {list(input_size)}"
            )
        preprocessing = preprocessing.model_copy(update=given.model_dump(include={*Preprocessing.model_fields}))
        if sampling is not None:
            recorded = given.model_dump(include={"mode", "stride", "target_fps"}, exclude_none=True)
            sampling = sampling.model_copy(update=recorded)
    _refuse_small(request, preprocessing)
    if request.resize_short_side is not None:
        preprocessing = preprocessing.model_copy(update={"resize_short_side": request.resize_short_side})
    if preprocessing.resize_short_side < max(preprocessing.height, preprocessing.width):
        raise WrongRecord(
            f"the training record resizes to a short side of {preprocessing.resize_short_side}, and "
            f"{request.variant.name} takes a crop of {preprocessing.height}x{preprocessing.width}"
        )
    if sampling is not None:
        asked = {"mode": request.sampling, "stride": request.frame_stride, "target_fps": request.target_fps}
        sampling = sampling.model_copy(update={key: value for key, value in asked.items() if value is not None})
        if sampling.mode == "uniform" and (request.frame_stride or request.target_fps):
            raise BuildRefused(
                "the training record says uniform sampling, which takes frames from the whole video: "
                "--frame-stride and --target-fps go with --sampling dense"
            )
    if input_size != CONFIGS[request.variant.name].input_size:
        say(_told(preprocessing, sampling))
    return preprocessing, sampling


def _of_input(variant: Variant, input_size: tuple[int, ...]) -> tuple[Preprocessing, Sampling | None]:
    """The catalog's, for an input that may be another: the short side keeps its proportion to the crop."""
    own, (*frames, height, width) = variant.preprocessing, input_size
    short_side = round(own.resize_short_side * min(height, width) / min(own.height, own.width))
    crop = {"height": height, "width": width, "resize_short_side": short_side}
    sampling = variant.sampling
    return own.model_copy(update=crop), sampling and sampling.model_copy(update={"frames": frames[0]})


def _told(crop: Preprocessing, sampling: Sampling | None) -> str:
    """What the build took from weights of another input than the variant's, and which flags say otherwise."""
    text = (
        f"the weights take {crop.height}x{crop.width}, cut from a short side of {crop.resize_short_side} "
        "(--resize-short-side)"
    )
    if sampling is None:
        return text
    if sampling.mode == "uniform":
        return f"{text}, and {sampling.frames} frames of the whole video (--sampling)"
    return (
        f"{text}, and {sampling.frames} frames, stride {sampling.stride} at {sampling.target_fps:g} a second "
        "(--frame-stride, --target-fps)"
    )


def _fitting_labels(labels: tuple[str, ...] | None, variant: Variant, num_classes: int) -> tuple[str, ...]:
    if labels is None:
        if num_classes != variant.num_classes:
            raise WrongLabels(
                f"the head has {num_classes} classes, and {variant.labels.title} has {variant.num_classes}: "
                f"pass --labels FILE with {num_classes} lines, one class a line in the head's order"
            )
        return read_label_set(variant.labels)
    if len(labels) != num_classes:
        raise WrongLabels(f"the labels file has {len(labels)} lines, but the head has {num_classes} classes")
    return labels
