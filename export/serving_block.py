"""A block as it is served: the same function of its input as a `HieraBlock`, with less to do.

What is left out is left out exactly, in float64, before the weights are rounded to what is served:

- a LayerNorm's scale and shift go into the linear layers that read it: W (n * s + t) + b = (W s) n + (W t + b);
- a LayerScale goes into the linear layer before it;
- the bias of the keys adds the same to all scores of a query, which softmax takes out again;
- the weights of attention sum to one, so the bias of the values comes out as it went in, and passes through `proj`;
- queries, keys and values are three layers: nothing has to be cut apart, and [B * W, T, C] is as fused kernels want it.
"""

from __future__ import annotations

from typing import cast

import onnx_ir as ir
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx import ops as onnx_ops

from export.hiera import HieraBlock, expand_by_pooling, max_pool


class ServingBlock(nn.Module):
    """[B * W, T, dim] to [B * W, T / q_stride, dim_out], in the precision of its weights.

    Statistics of norms and softmax are taken in float32.

    The block is read and stays as it is.
    """

    def __init__(self, block: HieraBlock) -> None:
        super().__init__()
        attn = block.attn
        self.heads, self.windows, self.q_stride = attn.heads, attn.windows, attn.q_stride
        self.eps = block.norm1.eps
        self.widens = block.widens

        weight, bias = _behind_norm(block.norm1, attn.qkv)
        (q, k, v), (q_bias, _, v_bias) = weight.chunk(3), bias.chunk(3)
        self.query, self.key, self.value = _linear(q, q_bias), _linear(k), _linear(v)
        proj = attn.proj.weight.double()
        self.attn_proj = _linear(*_scaled(block.ls1, proj, attn.proj.bias.double() + proj @ v_bias))
        self.shortcut = _linear(*_behind_norm(block.norm1, block.proj)) if block.proj is not None else None
        self.fc1 = _linear(*_behind_norm(block.norm2, block.mlp.fc1))
        self.fc2 = _linear(*_scaled(block.ls2, block.mlp.fc2.weight.double(), block.mlp.fc2.bias.double()))

    def forward(self, x: Tensor) -> Tensor:
        normed = self._norm(x)
        if self.shortcut is not None:
            x = max_pool(self.shortcut(normed), self.q_stride)
        elif self.widens:
            x = expand_by_pooling(x, self.q_stride)
        x = x + self._attention(normed)
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self._norm(x))))
        return out

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def _attention(self, normed: Tensor) -> Tensor:
        query = self.query(normed)
        if self.q_stride > 1:
            query = max_pool(query, self.q_stride)
        tokens, channels = query.shape[1:]
        # One ONNX node; where attention is global, all windows are one.
        attended = onnx_ops.attention(
            *(
                each.reshape(-1, self.windows * each.shape[1], channels)
                for each in (query, self.key(normed), self.value(normed))
            ),
            q_num_heads=self.heads,
            kv_num_heads=self.heads,
            softmax_precision=int(ir.DataType.FLOAT),
        )[0]
        out: Tensor = self.attn_proj(attended.reshape(-1, tokens, channels))
        return out


def _behind_norm(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out], float64, of a linear layer that also does the scale and shift of a norm."""
    weight = linear.weight.double()
    return weight * norm.weight.double(), linear.bias.double() + weight @ norm.bias.double()


def _scaled(scale: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer with a LayerScale behind it, or without one."""
    gamma = cast("Tensor | None", getattr(scale, "gamma", None))
    return (weight, bias) if gamma is None else (weight * gamma.double()[:, None], bias * gamma.double())


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.detach().float()
    if bias is not None:
        linear.bias.data = bias.detach().float()
    return linear
