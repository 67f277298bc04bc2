"""The shared loop learns, ends its schedule at zero, and its quick arithmetic is the same arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from export.hiera import Hiera, HieraConfig
from training.arithmetic import FastCpuArithmetic
from training.loop import (
    AveragedWeights,
    Batch,
    LoopSettings,
    learning_rate_factor,
    optimisers,
    train,
    training_arithmetic,
)

TINY = HieraConfig(16, 1, (1, 1), 4, (16, 16), (3, 3), (2, 2), (1, 1), mask_unit_size=(2, 2), mask_unit_stages=1)


def tiny_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 4


def test_the_loss_of_a_tiny_batch_falls() -> None:
    torch.manual_seed(0)
    model = Hiera(TINY)
    inputs, labels = tiny_batch()
    before = float(F.cross_entropy(model(inputs), labels).detach())
    state, result = train(model, tiny_batch, LoopSettings(steps=40, warmup_steps=5, label_smoothing=0.0, ema_decay=0.9))
    model.load_state_dict(state)
    after = float(F.cross_entropy(model(inputs), labels).detach())
    assert result.steps == 40
    assert after < 0.5 * before


def test_a_budget_of_no_time_ends_at_once() -> None:
    _, result = train(Hiera(TINY), tiny_batch, LoopSettings(steps=1000, minutes=1e-9))
    assert result.steps <= 1


def test_checkpoints_come_when_they_are_due() -> None:
    seen: list[int] = []

    def on_checkpoint(state: dict[str, torch.Tensor], step: int) -> str:
        seen.append(step)
        return ""

    train(Hiera(TINY), tiny_batch, LoopSettings(steps=5, checkpoint_every=2), on_checkpoint)
    assert seen == [2, 4]


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    assert learning_rate_factor(0, 10, 0.0) == pytest.approx(0.1)
    assert learning_rate_factor(50, 10, 0.5) == pytest.approx(0.5)
    assert learning_rate_factor(100, 10, 1.0) == 0.0


def test_another_optimiser_and_schedule_take_their_places() -> None:
    model, seen = Hiera(TINY), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def schedule(step: int, progress: float) -> float:
        seen.append((step, progress))
        return 1.0 if step == 0 else 0.0

    bias = model.head.projection.bias
    state, _ = train(
        model,
        tiny_batch,
        LoopSettings(steps=4, ema_decay=0.0),
        optims=[torch.optim.SGD([bias], lr=1.0)],
        schedule=schedule,
    )
    assert seen == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    changed = [name for name in before if not torch.equal(before[name], state[name])]
    assert changed == ["head.projection.bias"]


def test_every_parameter_has_exactly_one_optimiser() -> None:
    model = Hiera(TINY)
    held = [
        p for optim in optimisers(model, LoopSettings(steps=1)) for group in optim.param_groups for p in group["params"]
    ]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}


def test_averaged_weights_follow_the_model() -> None:
    model = Hiera(TINY)
    averaged = AveragedWeights(model, 0.5)
    with torch.no_grad():
        model.head.projection.bias.fill_(3.0)
    for _ in range(60):
        averaged.update(model)
    assert float((averaged.state["head.projection.bias"] - 3.0).abs().max()) < 1e-3


@pytest.mark.parametrize(("bfloat16", "near", "off"), [(True, 0.995, 0.1), (False, 0.9999, 1e-3)])
def test_quick_arithmetic_gives_the_gradients_of_plain_arithmetic(bfloat16: bool, near: float, off: float) -> None:
    torch.manual_seed(0)
    model = Hiera(TINY)
    model.head.projection.weight.data.normal_(std=0.1)
    inputs, labels = tiny_batch()
    gradients = []
    for quick in (False, True):
        model.zero_grad()
        if quick:
            with training_arithmetic(bfloat16):
                logits = model(inputs)
        else:
            logits = model(inputs)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    plain, quick_ones = gradients
    assert float(F.cosine_similarity(plain, quick_ones, dim=0)) > near
    assert float((plain - quick_ones).norm() / plain.norm()) < off


def test_a_cpu_without_bfloat16_is_not_made_to_compute_in_it() -> None:
    """By conversion it takes ten times as long; Muon asks for it by itself."""
    matrix = nn.Parameter(torch.eye(4))
    matrix.grad = torch.arange(16.0).reshape(4, 4) / 7
    asked: list[torch.dtype] = []

    class Witness(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.extend(value.dtype for value in args if isinstance(value, torch.Tensor))
            return func(*args, **(kwargs or {}))

    with FastCpuArithmetic(False), Witness():
        torch.optim.Muon([matrix], lr=0.1).step()  # type: ignore[no-untyped-call]
    assert asked
    assert torch.bfloat16 not in asked
