"""What a recipe leaves behind: a safetensors file with the original parameter names, and a JSON record beside it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

LABELS = Path(__file__).parent / "labels"


def facts_of(options: argparse.Namespace, steps: int, seconds: float) -> dict[str, Any]:
    """What `options` (those that every training command has) and the run so far add to a record."""
    return {
        "steps": steps,
        "seconds": round(seconds, 1),
        "seed": options.seed,
        "batch": options.batch,
        "threads": options.threads,
        "rate": options.rate,
        "torch": torch.__version__,
    }


def read_labels(name: str) -> list[str]:
    """The class names of `labels/<name>.txt`, in the head's order."""
    return (LABELS / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1]


def save(state: dict[str, Tensor], record: dict[str, Any], output: Path) -> None:
    """Write `output` (fp32 safetensors) and `output` with the suffix .json, each in one piece."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    try:
        partial.write_bytes(to_safetensors({name: value.float().contiguous() for name, value in state.items()}))
        os.replace(partial, output)
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, output.with_suffix(".json"))
    finally:
        partial.unlink(missing_ok=True)


def record_beside(weights: Path) -> dict[str, Any]:
    """The record of a weights file, empty without one."""
    try:
        record = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def earlier_runs(initial: Path | None) -> list[dict[str, Any]]:
    """What the runs before this one cost, oldest first: the record beside the weights that this one starts from."""
    before = record_beside(initial) if initial else {}
    if not before:
        return []
    kept = ("epochs", "clips", "steps", "seconds", "seed", "batch", "threads", "rate")
    return [*before.get("earlier_runs", []), {key: before[key] for key in kept if key in before}]


def accuracy_by_class(predicted: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Top-1 over everything and for each class, as fractions; `predicted` and `labels` are class ids [N]."""
    right = predicted == labels
    per_class = {
        name: round(float(right[labels == index].float().mean()), 4)
        for index, name in enumerate(names)
        if bool((labels == index).any())
    }
    return {"top1": round(float(right.float().mean()), 4), "items": len(labels), "per_class": per_class}


@torch.no_grad()
def predict(model: torch.nn.Module, inputs: Tensor, batch: int = 250) -> Tensor:
    """Class ids [N] in fp32 of normalised inputs [N, …]."""
    model.eval()
    return torch.cat([model(part).argmax(dim=1) for part in torch.split(inputs, batch)])
