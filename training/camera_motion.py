"""`python -m training.camera_motion --data DIR`: the micro video classifier, which names the camera's motion.

`python -m training.camera_motion evaluate --data DIR` measures the package that ships through real H.264 files.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from export.cli import positive
from export.hiera import create_model
from training.archives import ArchiveError
from training.classifier import Classifier, add_classifier_arguments, classifier_of, load_weights, torch_classifier
from training.clips import FRAMES, MEAN, SIZE, STD, RenderedBatches, load_photos, normalise
from training.demo_command import add_recipe_arguments, run_recipe
from training.loop import LoopSettings, train
from training.record import accuracy_by_class, earlier_runs, facts_of, predict, read_labels, save
from training.video_files import decoded_files

NAME = "hiera_demo_camera_motion"
ARCHIVE = "photos256.tar"
PREPROCESSING = {
    "input_size": [FRAMES, SIZE, SIZE],
    "resize_short_side": SIZE,
    "interpolation": "bilinear",
    "mean": [MEAN] * 3,
    "std": [STD] * 3,
    "frames": FRAMES,
    "stride": 4,
    "target_fps": 30,
}


def measure_files(classify: Classifier, held_out: Tensor, clips: int, seed: int) -> dict[str, Any]:
    """Accuracy over `clips` H.264 files rendered from held-out photos, all classes equally often."""
    rows, labels = decoded_files(held_out, clips, seed)
    return accuracy_by_class(classify(rows).argmax(dim=1), labels, read_labels("camera_motion"))


def _train(options: argparse.Namespace) -> None:
    names = read_labels("camera_motion")
    photos, held_out = load_photos(options.data / ARCHIVE)
    if not len(photos):
        raise ArchiveError(f"{options.data / ARCHIVE} holds one photo, which is held out: more are needed")
    model, twin = create_model(NAME), create_model(NAME)
    if options.initial:
        load_weights(model, NAME, options.initial)
    batches = RenderedBatches(photos, options.batch, options.seed)
    watched_clips, watched_labels = RenderedBatches(held_out, 500, options.seed + 1)()
    before = earlier_runs(options.initial)
    started = time.monotonic()

    def record(state: dict[str, Tensor], step: int, accuracy: dict[str, Any], data: str) -> dict[str, Any]:
        return {
            "name": NAME,
            "data": f"clips rendered from {len(photos)} photos; measured on {data} of {len(held_out)} held-out photos",
            "accuracy": accuracy,
            "epochs": None,
            "clips": step * options.batch,
            **facts_of(options, step, time.monotonic() - started),
            "earlier_runs": before,
            "parameters": sum(p.numel() for p in model.parameters()),
            "preprocessing": PREPROCESSING,
        }

    def checkpoint(state: dict[str, Tensor], step: int) -> str:
        twin.load_state_dict(state)
        accuracy = accuracy_by_class(predict(twin, watched_clips), watched_labels, names)
        save(state, record(state, step, accuracy, "degraded clips (no codec)"), options.output)
        return f"held-out {accuracy['top1']:.1%}"

    settings = LoopSettings(options.steps, options.minutes, checkpoint_every=500, label_smoothing=0.05)
    settings = settings.scaled(options.rate)
    state, result = train(model, batches, settings, checkpoint)
    twin.load_state_dict(state)
    accuracy = measure_files(torch_classifier(twin, normalise), held_out, options.clips, options.seed)
    facts = record(state, result.steps, accuracy, "H.264 files") | {"loss": round(result.loss, 4)}
    save(state, facts, options.output)
    print(f"top-1 {accuracy['top1']:.2%} on {options.clips} H.264 files after {result.steps} steps: {options.output}")


def _evaluate(options: argparse.Namespace) -> None:
    _, held_out = load_photos(options.data / ARCHIVE)
    classify = classifier_of(options, NAME, normalise)
    accuracy = measure_files(classify, held_out, options.clips, options.seed)
    print(f"top-1 {accuracy['top1']:.2%} on {accuracy['items']} H.264 files of held-out photos")
    for name, value in accuracy["per_class"].items():
        print(f"  {name:24s} {value:.1%}")


def main(arguments: list[str] | None = None) -> None:
    """Train and measure, or only measure.

    Raises:
        SystemExit: with a message, for whatever the user can mend.
    """
    parser = argparse.ArgumentParser(prog="python -m training.camera_motion", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {ARCHIVE}")
    add_recipe_arguments(parser, NAME, batch=32)
    add_classifier_arguments(parser, NAME)
    parser.add_argument("--steps", type=positive, default=6000)
    parser.add_argument("--clips", type=positive, default=500, help="H.264 files to measure with")
    options = parser.parse_args(arguments)
    if options.batch % 2:
        parser.error(f"argument --batch: {options.batch} is odd, and each scene is in a batch twice")
    run_recipe(parser, options, _train, _evaluate)


if __name__ == "__main__":
    main()
