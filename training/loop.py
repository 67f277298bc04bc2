"""The training loop that the recipes share: optimisers, learning rate, averaged weights, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from training.arithmetic import FastCpuArithmetic, cpu_multiplies_bfloat16

Batch = tuple[Tensor, Tensor]
# From a step, and the part of the run that is over (0 to 1), to a factor on the learning rates.
Schedule = Callable[[int, float], float]


class Diverged(Exception):
    """The loss is no number any more. The message says what to change."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is no number any more, from step {step} on: try a lower --rate")


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast to learn.

    With `minutes` the run ends by the clock, so that it depends on the machine; with None it depends on the seed alone.
    """

    steps: int
    minutes: float | None = None
    warmup_steps: int = 300
    # Matrices inside the blocks, by Muon (Jordan 2024): a step of this spectral norm.
    matrix_lr: float = 0.02
    # Embeddings, convolution, norms, biases and head, by AdamW.
    other_lr: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    ema_decay: float = 0.999
    # Products in bfloat16; None: where the device is made for it.
    bfloat16: bool | None = None
    # Steps between calls of `on_checkpoint`.
    checkpoint_every: int = 1000

    def scaled(self, factor: float) -> Self:
        """The same with both learning rates multiplied, as a run that goes on where another stopped needs."""
        return replace(self, matrix_lr=self.matrix_lr * factor, other_lr=self.other_lr * factor)


@dataclass(frozen=True)
class LoopResult:
    """What a run cost and where its loss ended (an exponential average over about 50 steps)."""

    steps: int
    seconds: float
    loss: float


def optimisers(model: nn.Module, settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, which it teaches in fewer steps, and AdamW for everything else."""
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            matrices.append(parameter)
        elif parameter.ndim >= 2 and not name.startswith("pos_embed"):
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=settings.weight_decay),
        torch.optim.AdamW(groups, lr=settings.other_lr, betas=(0.9, 0.98)),
    ]


def learning_rate_factor(step: int, warmup_steps: int, progress: float) -> float:
    """Linear up during the warm-up, then linear to zero: `progress` is the part of the run that is over, 0 to 1."""
    return min(1.0, (step + 1) / warmup_steps) * max(0.0, 1.0 - progress)


def cosine_factor(step: int, steps: int, warmup_steps: float) -> float:
    """Linear up during the warm-up, then half a cosine down to zero at `steps`."""
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1.0, steps - warmup_steps)))


class AveragedWeights:
    """An exponential moving average of a model's state, which classifies better than the last step's."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        # The first averages must forget the random start quickly.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        values = [value.detach() for value in model.state_dict().values()]
        torch._foreach_lerp_(list(self.state.values()), values, 1.0 - decay)


@contextmanager
def training_arithmetic(bfloat16: bool, device: str = "cpu") -> Iterator[None]:
    """What the products of a step are computed in; `device` is "cpu" or "cuda"."""
    with _products(bfloat16, device), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        yield


def _products(bfloat16: bool, device: str) -> FastCpuArithmetic | nullcontext[None]:
    return FastCpuArithmetic(bfloat16) if device == "cpu" else nullcontext()


def multiplies_bfloat16(device: str) -> bool:
    """Whether "cpu" or "cuda" is made for products in bfloat16."""
    return cpu_multiplies_bfloat16() if device == "cpu" else torch.cuda.is_bf16_supported()


def train(
    model: nn.Module,
    next_batch: Callable[[], Batch],
    settings: LoopSettings,
    on_checkpoint: Callable[[dict[str, Tensor], int], str] | None = None,
    optims: Sequence[torch.optim.Optimizer] | None = None,
    schedule: Schedule | None = None,
) -> tuple[dict[str, Tensor], LoopResult]:
    """Train a classifier in place, on the device where it is.

    Args:
        model: takes the batch's inputs and returns logits [B, classes].
        next_batch: gives (normalised float32 inputs, int64 labels [B] or probabilities [B, classes]), endlessly, on
            the model's device.
        on_checkpoint: called with the averaged state and the step, every `checkpoint_every` steps; what it returns is
            shown beside the progress bar.
        optims: instead of `optimisers`; their learning rates are the highest ones.
        schedule: instead of `learning_rate_factor`.

    Returns:
        The averaged state dict, and what the run cost.

    Raises:
        Diverged: the loss is no number any more.
    """
    model.train()
    averaged = AveragedWeights(model, settings.ema_decay)
    optims = optimisers(model, settings) if optims is None else optims
    base_lrs = [[float(group["lr"]) for group in optim.param_groups] for optim in optims]
    device = next(model.parameters()).device.type
    bfloat16 = multiplies_bfloat16(device) if settings.bfloat16 is None else settings.bfloat16
    started = time.monotonic()
    loss_average, note, step = float("nan"), "", 0
    with tqdm(total=settings.steps, unit="step", mininterval=5.0, dynamic_ncols=True) as bar:
        while step < settings.steps:
            progress = step / settings.steps
            if settings.minutes is not None:
                progress = max(progress, (time.monotonic() - started) / (60.0 * settings.minutes))
            if progress >= 1.0:
                break
            if schedule is None:
                factor = learning_rate_factor(step, settings.warmup_steps, progress)
            else:
                factor = schedule(step, progress)
            for optim, lrs in zip(optims, base_lrs, strict=True):
                for group, lr in zip(optim.param_groups, lrs, strict=True):
                    group["lr"] = lr * factor

            inputs, labels = next_batch()
            with training_arithmetic(bfloat16, device):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            with _products(bfloat16, device):
                for optim in optims:
                    optim.step()
                    optim.zero_grad()
            averaged.update(model)

            step += 1
            value = float(loss.detach())
            if not math.isfinite(value):
                raise Diverged(step)
            loss_average = value if step == 1 else loss_average + 0.02 * (value - loss_average)
            if on_checkpoint is not None and step % settings.checkpoint_every == 0:
                note = on_checkpoint(averaged.state, step)
            bar.update()
            bar.set_postfix_str(f"loss {loss_average:.3f} done {progress:.1%} {note}", refresh=False)
    return averaged.state, LoopResult(step, time.monotonic() - started, loss_average)
