"""`python -m training.finetune VARIANT --data DIR --output FILE`: a classifier of your own photos or clips.

DIR holds a folder of files for each class (`training.folders` has the rules). Training starts from the official
weights, or from `--weights`. With `--head-only` the features stay as they are and a linear head is fitted to them,
which a CPU does in the time of a few looks at each file; without it everything is trained (`training.recipe`), which
wants a GPU for all but small models. What comes of it is FILE, a record and the class names beside it, and the command
that makes a package of them. Held-out files are decoded, sampled and cropped as the server does, so that their accuracy
is the one that will be served.

`--device cuda` is meant to work and has not been tried on a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from app.errors import HieraError
from export.catalog import CC_BY_NC, Variant, find_variant
from export.cli import positive
from export.download import source_from_environment
from export.errors import ExportError
from export.hiera import Hiera
from export.package_spec import BuildRequest, geometry, refuse_contradictions
from export.training_record import read_record
from training.flags import device, weights_file, whole, within
from training.folders import FolderError, read_folder
from training.loop import Diverged
from training.recipe import Recipe, recipe_of
from training.record import earlier_runs, facts_of, save
from training.rows import Augmentation, Shape
from training.starting_weights import Start, starting_model
from training.tuning import Data, Means, fit_linear_head, measure, readable_data, train_whole

_BATCH = {"image": 64, "video": 8}
_MOST_WORKERS = 8
_LEAST_AREA = 0.35
_OF_EVERYTHING = ("epochs", "rate", "layer_decay", "drop_path", "mixup", "cutmix", "least_area")


def _say(text: str) -> None:
    print(text, flush=True)


def _finetune(options: argparse.Namespace) -> None:
    started = time.monotonic()
    variant = find_variant(options.variant)
    request = BuildRequest(
        variant,
        weights=options.weights,
        resize_short_side=options.resize_short_side,
        sampling=options.sampling,
        frame_stride=options.frame_stride,
        target_fps=options.target_fps,
    )
    refuse_contradictions(request)
    folder = read_folder(options.data)
    how = _recipe(options, variant, len(folder.training))
    source = source_from_environment(os.environ)
    start = starting_model(variant, options.weights, folder.classes, how.drop_path, source, _say)
    _say(f"{variant.name} from {start.source}, with {'its own' if start.head_kept else 'a new'} head")
    recorded = read_record(options.weights.with_suffix(".json")) if options.weights else None
    shape = Shape(*geometry(request, start.model.config.input_size, recorded, _say))
    data = readable_data(folder, shape, options.workers, _say)
    files = f"{len(data.training)} files to train with, {len(data.held_out)} held out ({folder.split})"
    _say(f"{len(data.classes)} classes, {files}")

    options.batch = min(options.batch or _BATCH[variant.task], len(data.training))
    before = earlier_runs(options.weights)  # now: the output may take the place of what lies there
    means = Means(torch.device(options.device), options.batch, options.workers, options.seed)
    model = start.model.to(means.device)

    def record(accuracy: dict[str, Any], steps: int, settled: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": variant.name,
            "data": f"{options.data.resolve().name}: {len(data.held_out)} held-out files ({folder.split})",
            "accuracy": accuracy,
            "classes": data.classes,
            "start": {"weights": start.source, "head": "kept" if start.head_kept else "new"},
            "licence": start.licence,
            "files": {"training": len(data.training), "held_out": len(data.held_out), "left_out": data.left_out},
            "flip": options.flip,
            **settled,
            **facts_of(options, steps, time.monotonic() - started),
            "earlier_runs": before,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "preprocessing": _recorded(start.model.config.input_size, shape),
        }

    def write(model: Hiera, steps: int, settled: dict[str, Any]) -> dict[str, Any]:
        accuracy = measure(model, data, means)
        save(model.state_dict(), record(accuracy, steps, settled), options.output)
        labels = "".join(f"{name}\n" for name in data.classes)
        options.output.with_suffix(".txt").write_text(labels, encoding="utf-8")
        return accuracy

    if options.head_only:
        strength = fit_linear_head(model, data, means, options.flip, _say)
        accuracy = write(model, 0, {"method": "a linear head over fixed features", "strength": strength})
    else:
        settled = {"method": "everything", **asdict(how), "least_area": options.least_area}
        augmentation = Augmentation(options.least_area, options.flip)
        steps = train_whole(
            model, data, means, how, augmentation, lambda averaged, step: write(averaged, step, settled)["top1"]
        )
        accuracy = write(model, steps, settled)
    _report(options, variant, start, data, accuracy, time.monotonic() - started)


def _recipe(options: argparse.Namespace, variant: Variant, files: int) -> Recipe:
    """The recipe with what the user changes in it."""
    usual = recipe_of(variant.parameters, files)
    given = {name: value for name in asdict(usual) if (value := getattr(options, name)) is not None}
    how = replace(usual, **given)
    options.rate = how.rate
    return how


def _recorded(input_size: tuple[int, ...], shape: Shape) -> dict[str, Any]:
    """As `export.training_record` reads it."""
    sampling = shape.sampling
    return {
        "input_size": list(input_size),
        **shape.preprocessing.model_dump(mode="json", include={"resize_short_side", "interpolation", "mean", "std"}),
        **({} if sampling is None else sampling.model_dump(include={"mode", "stride", "target_fps"})),
    }


def _report(
    options: argparse.Namespace, variant: Variant, start: Start, data: Data, accuracy: dict[str, Any], seconds: float
) -> None:
    counts = Counter(file.label for file in data.held_out)
    width = max(len(name) for name in data.classes)
    _say(f"\ntop-1 {accuracy['top1']:.2%} on {accuracy['items']} held-out files, after {seconds:.0f} s")
    for label, name in enumerate(data.classes):
        right = accuracy["per_class"].get(name)
        _say(f"  {name:{width}}  " + ("not measured" if right is None else f"{right:6.1%} of {counts[label]}"))
    _say(_licence_notice(options, variant, start))
    _say("A package of it:\n  " + _build_command(options, start))


def _licence_notice(options: argparse.Namespace, variant: Variant, start: Start) -> str:
    if options.weights is None:
        return f"Licence: what comes of these weights stays under their terms. {variant.licence.notice}"
    if start.licence is not None:
        return f"Licence: what comes of {start.source} stays under its terms, {start.licence}."
    return (
        f"Licence: what comes of {start.source} stays under its terms, which are not known here (Meta's weights, "
        f"pretrained ones too: {CC_BY_NC.name}, NOT for commercial use). Add them to the command with --licence NAME."
    )


def _build_command(options: argparse.Namespace, start: Start) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", options.output.stem).lstrip(".-")[:128]
    parts = ["hiera-export", "build", options.variant, "--weights", str(options.output)]
    parts += ["--labels", str(options.output.with_suffix(".txt")), "--name", name or "finetuned"]
    parts += ["--sampling", options.sampling] if options.sampling else []
    parts += ["--licence", start.licence] if start.licence else []
    return shlex.join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.finetune", description=__doc__.partition("\n")[0])
    parser.add_argument("variant", help="of `hiera-export list`")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="<class>/*, or train/ and val/ of those"
    )
    parser.add_argument("--output", type=weights_file, required=True, metavar="FILE", help="a name in .safetensors")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="to start from (default: the official ones)")
    parser.add_argument("--head-only", action="store_true", help="fit a linear head and leave the rest as it is")
    group = parser.add_argument_group("of training everything")
    group.add_argument("--epochs", type=within(1e-3), help="looks at each file (default: 30)")
    group.add_argument("--rate", type=within(0.0), help="highest learning rate for a batch of 256 (default: by size)")
    group.add_argument(
        "--layer-decay", type=within(0.0, 1.0), help="factor on it for each layer down (default: by size)"
    )
    group.add_argument(
        "--drop-path", type=within(0.0, 0.99), help="stochastic depth of the last block (default: by size)"
    )
    group.add_argument("--mixup", type=within(0.0), metavar="ALPHA", help="default: 0.8 from 10,000 files on, else 0")
    group.add_argument("--cutmix", type=within(0.0), metavar="ALPHA", help="default: 1.0 from 10,000 files on, else 0")
    group.add_argument(
        "--least-area", type=within(0.01, 1.0), help=f"of the picture that a crop shows (default: {_LEAST_AREA})"
    )
    parser.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror images count, too")
    rows = parser.add_argument_group("of what the model sees (default: as the weights have it)")
    rows.add_argument("--resize-short-side", type=positive, metavar="PIXELS", help="before the crop")
    rows.add_argument("--sampling", choices=("dense", "uniform"), help="of video frames")
    rows.add_argument("--frame-stride", type=positive, help="source frames between two, at --target-fps")
    rows.add_argument("--target-fps", type=within(0.1))
    parser.add_argument("--batch", type=positive, help="rows at a time (default: 64 images, 8 clips)")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--workers", type=whole(0), help="processes that decode (default: none on a CPU, up to 8 for a GPU)"
    )
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--seed", type=whole(0), default=0)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Train, measure and write.

    Raises:
        SystemExit: with a message, for whatever the user can mend.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.head_only and (given := [name for name in _OF_EVERYTHING if getattr(options, name) is not None]):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        parser.error(f"--head-only trains no more than the head: without it, or without {flags}")
    if options.least_area is None:
        options.least_area = _LEAST_AREA
    if options.workers is None:
        options.workers = 0 if options.device == "cpu" else min(_MOST_WORKERS, os.cpu_count() or 1)
    torch.backends.cudnn.allow_tf32 = False  # what is measured in fp32 is fp32
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    try:
        _finetune(options)
    except (FolderError, Diverged, ExportError, HieraError, OSError) as error:
        raise SystemExit(f"finetune: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("finetune: interrupted") from None


if __name__ == "__main__":
    main()
