"""A linear head over features that stay as they are: multinomial logistic regression, fitted to the end.

The objective is convex: the mean cross-entropy plus strength / 2 times the squared weights (not the biases), over
features of mean 0 and deviation 1. It is minimised by L-BFGS (Liu and Nocedal 1989) in float64 from zero, so that the
head depends on nothing but the features and their labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5)
_ITERATIONS = 300
_LEAST_DEVIATION = 1e-3  # that features are divided by, of the largest


@dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight.T + bias; float64 [classes, D] and [classes]."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features.double(), self.weight, self.bias)


def fit_head(
    features: Tensor, labels: Tensor, classes: int, strength: float, start: LinearHead | None = None
) -> LinearHead:
    """Fit a head to features, float [N, D], and labels, int64 [N].

    Args:
        start: where to begin, which changes how long it takes and not what comes of it.
    """
    x = features.double()
    deviation, mean = torch.std_mean(x, dim=0, correction=0)
    # What hardly changes would be blown up, and with it all that rounding makes of it.
    scale = 1.0 / deviation.clamp(min=max(_LEAST_DEVIATION * float(deviation.max()), 1e-12))
    x = (x - mean) * scale
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    bias = torch.zeros(classes, dtype=torch.float64)
    if start is not None:
        weight, bias = start.weight / scale, start.bias + start.weight @ mean
    weight.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + 0.5 * strength * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(objective)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        weight = weight * scale
        return LinearHead(weight, bias - weight @ mean)


def choose_strength(
    features: Tensor,
    labels: Tensor,
    other_features: Tensor,
    other_labels: Tensor,
    classes: int,
    say: Callable[[str], None],
) -> float:
    """The strength whose head, fitted to the first rows, gives the true classes of the others the highest likelihood.

    From strong to weak, until two in a row are worse than the best.
    """
    best, best_loss, head = STRENGTHS[0], float("inf"), None
    for strength in STRENGTHS:
        head = fit_head(features, labels, classes, strength, head)
        logits = head.logits(other_features)
        loss = float(F.cross_entropy(logits, other_labels))
        right = float((logits.argmax(dim=1) == other_labels).double().mean())
        say(f"  strength {strength:g}: cross-entropy {loss:.4f}, top-1 {right:.2%}")
        if loss < best_loss:
            best, best_loss = strength, loss
        elif STRENGTHS.index(strength) - STRENGTHS.index(best) >= 2:
            break
    return best
