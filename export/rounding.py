"""Rounds weights to float16 or bfloat16 so that what layers answer changes least, instead of each weight least.

The rounding of weights is most of what a graph of lower precision is off, and its errors need not add up: the weights
of an output are rounded one after another, and those still to come take over what was done wrong before them, as far as
the layer's inputs go together (GPTQ: Frantar et al., arXiv 2210.17323). The result is numbers of the lower precision
like any other, and costs who serves them nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Added to the diagonal, as a share of its mean: what the inputs were not seen to do together is not relied on.
_DAMPING = 0.01
_BLOCK = 64

Layer = nn.Linear | nn.Conv2d | nn.Conv3d


def run_and_round(
    module: nn.Module, run: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Run a module over typical inputs, then round its layers in place, as these inputs make it best.

    Args:
        module: its linear layers and convolutions are rounded; they stay float32.
        run: runs the module, and what belongs around it.
        inputs: batches for `run`.
        dtype: what the numbers must be representable in.

    Returns:
        What `run` made of the inputs before anything was rounded.
    """
    layers = [each for each in module.modules() if isinstance(each, Layer)]
    moments: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, layer_inputs: tuple[Tensor, ...]) -> None:
        x = _vectors(layer, layer_inputs[0])
        x = torch.cat([x.new_ones(len(x), 1), x], dim=1)  # a one, for the bias
        moments[layer] = moments.get(layer, torch.zeros(())) + (x.T @ x).double()

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        outputs = [run(each) for each in inputs]
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        _round_layer(layer, moments.pop(layer), dtype)
    return outputs


def _vectors(layer: nn.Module, x: Tensor) -> Tensor:
    """What the weights of a layer are multiplied with, [vectors, in]."""
    if not isinstance(layer, nn.Conv2d | nn.Conv3d):
        return x.flatten(0, -2)
    convolve = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv3d
    kernel = layer.weight.shape[1:]
    each_input = torch.eye(math.prod(kernel)).reshape(-1, *kernel)
    return convolve(x, each_input, None, layer.stride, layer.padding).flatten(2).transpose(1, 2).flatten(0, 1)


def _round_layer(layer: Layer, moment: Tensor, dtype: torch.dtype) -> None:
    weight, bias = layer.weight.data.flatten(1), layer.bias
    if bias is None:
        layer.weight.data = round_rows(weight, moment[1:, 1:], dtype).reshape(layer.weight.shape)
        return
    # The bias first: there is one, and weights enough to make good what its rounding did.
    rounded = round_rows(torch.cat([bias.data[:, None], weight], dim=1), moment, dtype, first=1)
    bias.data = rounded[:, 0].clone()
    layer.weight.data = rounded[:, 1:].reshape(layer.weight.shape)


def round_rows(weight: Tensor, moment: Tensor, dtype: torch.dtype, first: int = 0) -> Tensor:
    """Round each row w of a matrix to r so that the mean of ((w - r) x)^2 becomes small.

    Args:
        weight: float32 [out, in].
        moment: the sum of x x^T over typical inputs x, float64 [in, in].
        dtype: float16 or bfloat16.
        first: how many leading inputs are rounded before the others, of which the largest come first.

    Returns:
        float32 [out, in], every number one of `dtype`.
    """
    size = len(moment)
    order = torch.cat([torch.arange(first), first + moment.diagonal()[first:].argsort(descending=True)])
    moment = moment[order][:, order]
    moment.diagonal().add_(_DAMPING * moment.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(moment)
    if failed:  # all inputs are zero, or something is not a number: the check of the graph is to say so
        return weight.to(dtype).float()
    # Row i: what of the error at i each input behind it takes over.
    shares = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    shares = shares / shares.diagonal()[:, None]
    left = weight.double()[:, order]
    rounded = torch.empty_like(left)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        for i in range(start, end):
            rounded[:, i] = left[:, i].to(dtype).double()
            left[:, i + 1 : end] -= torch.outer(left[:, i] - rounded[:, i], shares[i, i + 1 : end])
        left[:, end:] -= (left[:, start:end] - rounded[:, start:end]) @ shares[start:end, end:]
    return torch.empty_like(weight).index_copy_(1, order, rounded.float())
