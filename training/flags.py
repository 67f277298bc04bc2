"""Types of the training commands' arguments: what they refuse, they name, before anything is read or computed."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from export.formats import is_safetensors


def within(least: float, most: float = math.inf) -> Callable[[str], float]:
    """A finite number from `least` to `most`."""

    def number(text: str) -> float:
        value = float(text)
        if not (least <= value <= most and math.isfinite(value)):
            raise argparse.ArgumentTypeError(
                f"must be {least:g} or more" + ("" if most == math.inf else f", {most:g} at most")
            )
        return value

    return number


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}")
        return value

    return number


def device(text: str) -> str:
    """ "cpu", "cuda" or "cuda:N" that torch has; "auto" is a GPU if there is one."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return "cuda" if gpus else "cpu"
    kind, _, number = text.partition(":")
    if text == "cpu" or (kind == "cuda" and (number or "0").isdigit() and int(number or 0) < gpus):
        return text
    if kind == "cuda":
        raise argparse.ArgumentTypeError(f"{text}: this torch finds {gpus} CUDA devices")
    raise argparse.ArgumentTypeError(f"{text}: must be auto, cpu, cuda or cuda:N")


def weights_file(text: str) -> Path:
    """A file to write weights into, which is tried here: training takes hours."""
    path = Path(text)
    if not is_safetensors(path.name):
        raise argparse.ArgumentTypeError("must end in .safetensors")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from error
    return path
