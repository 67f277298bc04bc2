"""Weights that were never trained, for benchmarks and tests, yet tell inputs apart.

A fresh head is scaled to near zero, which gives every class the same probability: a parity check of that would pass
whatever the graph does. Here every parameter is drawn so that it matters to the result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from export.hiera import Hiera, create_model

# Standard deviation of the logits over classes and inputs.
LOGIT_SPREAD = 3.0


def random_model(name: str, seed: int, samples: Tensor, num_classes: int | None = None) -> Hiera:
    """A variant with random weights, in eval mode.

    Args:
        seed: the same seed gives the same body; the head is then fitted to `samples`.
        samples: normalised float32 rows [n, 3, H, W] or [n, 3, T, H, W]; the head is scaled and centred on their
            features, so that the likeliest class differs between inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = create_model(name, num_classes)
    model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for module in model.modules():
            _draw(module, generator)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith("pos_embed"):
                parameter.normal_(0.0, 0.5, generator=generator)
            elif parameter_name.endswith(".gamma"):
                parameter.normal_(0.5, 0.1, generator=generator)
        features = torch.cat([model.forward_features(row[None]) for row in samples])  # [n, D]
        centre = features.mean(dim=0)
        head = model.head.projection
        spread = ((features - centre) @ head.weight.T).std()
        head.weight.mul_(LOGIT_SPREAD / spread)
        head.bias.copy_(-(head.weight @ centre))
    return model


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        fan_in = math.prod(module.weight.shape[1:])
        module.weight.normal_(0.0, fan_in**-0.5, generator=generator)
        if module.bias is not None:
            module.bias.normal_(0.0, 0.1, generator=generator)
    elif isinstance(module, nn.LayerNorm):
        module.weight.normal_(1.0, 0.1, generator=generator)
        module.bias.normal_(0.0, 0.1, generator=generator)
