"""What fine-tuning of a whole model is made of: parameter groups, learning rate, mixed pictures.

The recipe is that of MAE's fine-tuning (He et al., arXiv 2111.06377; figures of FINETUNE.md, arithmetic of
util/lr_decay.py and util/lr_sched.py in facebookresearch/mae), which has layer-wise decay from BEiT (Bao et al., arXiv
2106.08254). Hiera's own (Ryali et al., arXiv 2306.00989) is of that kind; its figures are not taken over here. Two
parts are left out, RandAugment and random erasing: no library in this project's lock file has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from export.hiera import Hiera
from training.loop import Batch, Schedule, cosine_factor

BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1
WARMUP = 0.1  # of the run; there, 5 of 50 epochs
_ROWS_OF_RATE = 256
_MANY_FILES = 10_000


@dataclass(frozen=True)
class Recipe:
    """How a whole model is trained.

    Attributes:
        rate: the highest learning rate for a batch of 256 rows, of the head.
        layer_decay: factor on it for each layer further down.
        drop_path: stochastic depth of the last block.
        mixup, cutmix: see `Mixing`.
    """

    epochs: float
    rate: float
    layer_decay: float
    drop_path: float
    mixup: float
    cutmix: float


def recipe_of(parameters: int, files: int) -> Recipe:
    """What FINETUNE.md gives for the ViT nearest in size, base (86 M parameters), large (304 M) or huge (632 M).

    Two things are ours: the epochs, for there they are 50 or 100 of a million pictures, and that pictures are not mixed
    where there are fewer than 10,000, which few epochs of them do not repay.
    """
    if parameters < 160e6:
        rate, layer_decay, drop_path = 5e-4, 0.65, 0.1
    elif parameters < 440e6:
        rate, layer_decay, drop_path = 1e-3, 0.75, 0.2
    else:
        rate, layer_decay, drop_path = 1e-3, 0.75, 0.3
    mixup, cutmix = (0.8, 1.0) if files >= _MANY_FILES else (0.0, 0.0)
    return Recipe(30.0, rate, layer_decay, drop_path, mixup, cutmix)


def scaled_rate(rate: float, batch: int) -> float:
    """The linear scaling rule (Goyal et al., arXiv 1706.02677)."""
    return rate * batch / _ROWS_OF_RATE


def layer_of(name: str, blocks: int) -> int:
    """The layer of a parameter: 0 for what makes tokens, i + 1 for block i, blocks + 1 for the last norm and head."""
    if name.startswith(("pos_embed", "patch_embed.")):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else blocks + 1


def parameter_groups(model: Hiera, rate: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: the rate falls by `layer_decay` for each layer below the head; norms, biases and position
    embeddings have no weight decay."""
    blocks = len(model.blocks)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        layer, decayed = layer_of(name, blocks), parameter.ndim > 1 and not name.startswith("pos_embed")
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "lr": rate * layer_decay ** (blocks + 1 - layer),
                "weight_decay": WEIGHT_DECAY if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def cosine(steps: int) -> Schedule:
    """Linear up during the first tenth of the run, then down to zero along half a cosine."""
    return lambda step, progress: cosine_factor(step, steps, max(1, round(WARMUP * steps)))


class Mixing:
    """Mixes each picture of a batch with another one, and their labels with them, by mixup (Zhang et al., arXiv
    1710.09412) or, as often, CutMix (Yun et al., arXiv 1905.04899): one of the two, and one part, for a batch.

    `mixup` and `cutmix` are the alphas of the beta distributions that parts are drawn from; 0 leaves that one out.
    """

    def __init__(self, classes: int, mixup: float, cutmix: float, seed: int) -> None:
        self.classes = classes
        self.kinds = [kind for kind in (("mixup", mixup), ("cutmix", cutmix)) if kind[1] > 0]
        self.rng = np.random.default_rng(seed)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Batch:
        """Inputs [B, 3, (T,) H, W] and labels int64 [B] to inputs and probabilities, float32 [B, classes]."""
        targets = F.one_hot(labels, self.classes).float()
        if not self.kinds:
            return inputs, targets
        kind, alpha = self.kinds[int(self.rng.integers(len(self.kinds)))]
        part = float(self.rng.beta(alpha, alpha))  # that a picture keeps of itself
        if kind == "mixup":
            inputs = torch.lerp(inputs.flip(0), inputs, part)
        else:
            inputs, part = self._cut(inputs, part)
        return inputs, torch.lerp(targets.flip(0), targets, part)

    def _cut(self, inputs: Tensor, part: float) -> tuple[Tensor, float]:
        """Put a box of the other picture, 1 - part of the area where nothing of it falls outside, into each."""
        height, width = inputs.shape[-2:]
        side = math.sqrt(1.0 - part)
        (top, bottom), (left, right) = (self._span(size, side) for size in (height, width))
        mixed = inputs.clone()
        mixed[..., top:bottom, left:right] = inputs.flip(0)[..., top:bottom, left:right]
        return mixed, 1.0 - (bottom - top) * (right - left) / (height * width)

    def _span(self, size: int, side: float) -> tuple[int, int]:
        centre, length = int(self.rng.integers(size)), int(size * side)
        return max(0, centre - length // 2), min(size, centre + length // 2)
