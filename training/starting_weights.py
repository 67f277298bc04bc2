"""Where fine-tuning starts: a classifier's or a pretrained backbone's weights, and the terms that they carry along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from app.errors import PackageError
from app.repository.store import read_labels
from export.catalog import Licence, Variant
from export.checkpoints import DECODER, input_size_of, load_classifier, read_checkpoint
from export.download import WeightsSource, fetch
from export.errors import NoWeights
from export.hiera import CONFIGS, Hiera, create_model
from training.record import record_beside

HEAD = "head."


@dataclass(frozen=True)
class Start:
    """A model to go on from.

    Attributes:
        model: in fp32 on the CPU, with a head for the wanted classes and the input that the weights are for.
        source: what its weights are, in words.
        head_kept: whether the head is the checkpoint's; else it is new.
        licence: the name of the licence of the weights; None where it is not known.
    """

    model: Hiera
    source: str
    head_kept: bool
    licence: str | None


def starting_model(
    variant: Variant,
    weights: Path | None,
    classes: tuple[str, ...],
    drop_path: float,
    source: WeightsSource,
    say: Callable[[str], None],
) -> Start:
    """Read the weights to start from; without `weights`, the official ones are fetched as `hiera-export build` does.

    A head is kept only where a labels file beside the weights (`<stem>.txt`) has these very classes: the number alone
    would not tell that it is of the same ones.

    Args:
        weights: of any layout that `export.checkpoints` reads, also of masked pretraining alone.
        classes: in the head's order.

    Raises:
        NoWeights: there is no official file.
        DownloadFailed, CheckpointError: in the words of each.
    """
    licence: Licence | None = None
    if weights is None:
        if variant.download is None:
            raise NoWeights(
                f"{variant.name} is a demo model, which no one publishes: pass what to start from, --weights"
            )
        say(f"official weights: {source.url(variant.download)}")
        weights, licence = fetch(variant.download, source), variant.download.licence
    config = CONFIGS[variant.name]
    checkpoint = read_checkpoint(weights, config)
    if checkpoint.note:
        say(checkpoint.note)
    model = create_model(variant.name, len(classes), drop_path, input_size_of(checkpoint.state, config))
    state = {name: tensor for name, tensor in checkpoint.state.items() if not name.startswith(DECODER)}
    kept = checkpoint.num_classes == len(classes) and _labels_beside(weights) == classes
    if not kept:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}
        state |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(HEAD)}
    load_classifier(model, replace(checkpoint, state=state, pretraining_only=False), weights.name)
    return Start(model, weights.name, kept, licence.name if licence else _licence_beside(weights))


def _licence_beside(weights: Path) -> str | None:
    licence = record_beside(weights).get("licence")
    return licence if isinstance(licence, str) else None


def _labels_beside(weights: Path) -> tuple[str, ...] | None:
    try:
        return read_labels(weights.with_suffix(".txt"))
    except PackageError:  # there is none, or it holds something else
        return None
