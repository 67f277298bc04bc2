"""The linear head is the optimum of what it says it minimises."""

from __future__ import annotations

import torch
from torch import Tensor

from training.linear_head import choose_strength, fit_head


def clouds(seed: int, spread: float, count: int = 200) -> tuple[Tensor, Tensor]:
    """Three clouds of points in eight dimensions, float32, far from the origin and of odd scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(99))
    points = centres[labels] + spread * torch.randn(count, 8, generator=generator)
    return points * torch.tensor([1e-2, 0.1, 1.0, 10.0, 1.0, 1.0, 1.0, 1.0]) + 5.0, labels


def test_the_gradient_vanishes_there() -> None:
    features, labels = clouds(0, 1.0)
    strength = 0.03
    head = fit_head(features, labels, 3, strength)
    x = features.double()
    std, mean = torch.std_mean(x, dim=0, correction=0)
    residual = head.logits(features).softmax(dim=1) - torch.eye(3, dtype=torch.float64)[labels]
    by_weight = residual.T @ ((x - mean) / std) / len(x) + strength * head.weight * std
    assert float(by_weight.abs().max()) < 1e-6
    assert float(residual.mean(dim=0).abs().max()) < 1e-6


def test_the_start_changes_nothing() -> None:
    features, labels = clouds(0, 1.0)
    cold, far = fit_head(features, labels, 3, 0.01), fit_head(features, labels, 3, 10.0)
    warm = fit_head(features, labels, 3, 0.01, far)
    torch.testing.assert_close(warm.logits(features), cold.logits(features), rtol=1e-4, atol=1e-4)


def test_a_feature_that_never_changes_is_not_used() -> None:
    features, labels = clouds(0, 0.3)
    features[:, 3] = 7.0
    head = fit_head(features, labels, 3, 0.01)
    assert float(head.weight[:, 3].abs().max()) < 1e-9
    assert float((head.logits(features).argmax(dim=1) == labels).float().mean()) > 0.99


def test_noise_chooses_a_stronger_penalty_than_what_can_be_learnt() -> None:
    said: list[str] = []
    (features, labels), (others, truth) = clouds(0, 0.3), clouds(1, 0.3)
    sure = choose_strength(features, labels, others, truth, 3, said.append)
    drawn = torch.randint(3, (2, 200), generator=torch.Generator().manual_seed(0))
    unsure = choose_strength(features, drawn[0], others, drawn[1], 3, said.append)
    assert sure < 0.01
    assert unsure > 10 * sure
    assert "top-1" in said[0]
