"""The command line of the two recipes of demo models: what both take, and how they end."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from app.errors import HieraError
from export.cli import positive
from export.errors import ExportError
from training.archives import ArchiveError
from training.flags import weights_file, whole, within
from training.loop import Diverged


def add_recipe_arguments(parser: argparse.ArgumentParser, name: str, batch: int) -> None:
    """What `train` of every recipe takes, but for how long it lasts."""
    parser.add_argument("action", nargs="?", choices=("train", "evaluate"), default="train")
    parser.add_argument("--output", type=Path, default=Path(f"{name}.safetensors"), help="what `train` writes")
    parser.add_argument("--minutes", type=within(1e-3), help="end by the clock instead, at the latest after all steps")
    parser.add_argument("--initial", type=Path, help="start from these weights instead of random ones")
    parser.add_argument(
        "--rate", type=within(1e-12), default=1.0, help="factor on the learning rates, to go on with a run"
    )
    parser.add_argument("--batch", type=positive, default=batch)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--threads", type=positive, default=1)


def run_recipe(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    train: Callable[[argparse.Namespace], None],
    evaluate: Callable[[argparse.Namespace], None],
) -> None:
    """Train or evaluate, as `options` say.

    Raises:
        SystemExit: with a message, for whatever the user can mend.
    """
    if options.action == "train":  # `evaluate` writes nothing
        try:
            weights_file(str(options.output))
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --output: {error}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    try:
        (evaluate if options.action == "evaluate" else train)(options)
    except (ArchiveError, Diverged, ExportError, HieraError, OSError) as error:
        raise SystemExit(f"{parser.prog.rpartition('.')[2]}: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"{parser.prog.rpartition('.')[2]}: interrupted") from None
