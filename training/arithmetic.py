"""Faster arithmetic for training on CPUs. It changes how products are computed, not which.

A CPU with bfloat16 instructions multiplies in bfloat16 at several times the speed of float32; one without them computes
it by conversion, at a tenth. So the precision follows the CPU unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class _Bfloat16Linear(torch.autograd.Function):
    """A linear layer in bfloat16 whose bias gradient is a matrix product: torch's reduction of bfloat16 is slow."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias.bfloat16())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grad.bfloat16()
        rows = grad.reshape(-1, grad.shape[-1])
        grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        grad_bias = rows.new_ones(1, len(rows)) @ rows
        return grad @ weight, grad_weight.float(), grad_bias[0].float()


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as three operations; the fused CPU kernel's backward takes several times as long for short windows."""
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
    return weights @ v


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 matrices."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class FastCpuArithmetic(TorchFunctionMode):
    """While entered, attention takes the form above, and so do linear layers, in bfloat16, if `bfloat16` is true.

    If it is false nothing is rounded to bfloat16, not even by an optimiser that asks for it by itself (Muon).
    """

    def __init__(self, bfloat16: bool) -> None:
        super().__init__()
        self.bfloat16 = bfloat16

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self.bfloat16 and func is F.linear and len(args) == 3 and args[2] is not None:
            return _Bfloat16Linear.apply(*args)  # type: ignore[no-untyped-call]
        if not self.bfloat16 and func is Tensor.bfloat16:
            return args[0].clone()
        if func is F.scaled_dot_product_attention and not kwargs:
            return _plain_attention(*args)
        return func(*args, **(kwargs or {}))
