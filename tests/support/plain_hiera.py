"""Hiera written a second time, as plainly as can be, to check the first.

Tokens stay on their grid: attention cuts its windows out of it, and poolings are torch's own max and average
pooling. It covers what `transformers` does not: video, and the abswin variant.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from export.hiera import HieraConfig

State = dict[str, Tensor]


def plain_logits(state: State, config: HieraConfig, x: Tensor) -> Tensor:
    """Logits [B, classes] of normalised inputs [B, 3, H, W] or [B, 3, T, H, W], from a state dict of original names."""
    video = config.is_video
    if not video:
        x = x[:, :, None]  # an image is a clip of one frame
    kernel = state["patch_embed.proj.weight"]
    kernel = kernel if video else kernel[:, :, None]
    stride, padding = _three(config.patch_stride, 1), _three(config.patch_padding, 0)
    x = F.conv3d(x, kernel, state["patch_embed.proj.bias"], stride, padding)
    x = x.permute(0, 2, 3, 4, 1) + _position_embedding(state, config)  # [B, T, H, W, C]

    unit = config.mask_unit_size[-1]
    heads, windowed, block = config.heads, config.mask_unit_stages > 0, 0
    for stage, depth in enumerate(config.stages):
        for layer in range(depth):
            pool = 2 if stage > 0 and layer == 0 else 1
            heads *= pool
            x = _block(state, f"blocks.{block}.", config, x, heads, pool, unit if windowed else 0)
            unit //= pool
            windowed = stage < config.mask_unit_stages
            block += 1
    features = F.layer_norm(x.mean(dim=(1, 2, 3)), x.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6)
    return F.linear(features, state["head.projection.weight"], state["head.projection.bias"])


def _position_embedding(state: State, config: HieraConfig) -> Tensor:
    """[1 or T, H, W, C], the temporal part added frame by frame."""
    grid, dim = config.token_grid, config.embed_dim
    if config.is_video:
        spatial = state["pos_embed_spatial"].reshape(1, *grid[1:], dim)
        return spatial + state["pos_embed_temporal"].reshape(grid[0], 1, 1, dim)
    if config.window_pos_embed_size is None:
        return state["pos_embed"].reshape(1, *grid, dim)
    rows = []
    whole = F.interpolate(state["pos_embed"], size=grid, mode="bicubic", antialias=True)[0]  # [C, H, W]
    unit = config.mask_unit_size[0]
    for y in range(grid[0]):
        for x in range(grid[1]):
            rows.append(whole[:, y, x] + state["pos_embed_win"][0, :, y % unit, x % unit])
    return torch.stack(rows).reshape(1, *grid, dim)


def _block(state: State, prefix: str, config: HieraConfig, x: Tensor, heads: int, pool: int, window: int) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(
            value, value.shape[-1:], state[f"{prefix}{name}.weight"], state[f"{prefix}{name}.bias"], 1e-6
        )

    def scale(name: str, value: Tensor) -> Tensor:
        return value * state[f"{prefix}{name}.gamma"] if config.layer_scale else value

    normed = norm("norm1", x)
    if pool > 1:
        if config.expand_by_pooling:
            x = torch.cat([_pool(x, F.max_pool2d), _pool(x, F.avg_pool2d)], dim=-1)
        else:
            x = _pool(linear("proj", normed), F.max_pool2d)
    q, k, v = linear("attn.qkv", normed).chunk(3, dim=-1)
    if pool > 1:
        q = _pool(q, F.max_pool2d)
    attended = _attention(_windows(q, window // pool), _windows(k, window), _windows(v, window), heads)
    x = x + scale("ls1", linear("attn.proj", _unwindows(attended, q.shape, window // pool)))
    return x + scale("ls2", linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x)))))


def _pool(x: Tensor, kind: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Halve the height and the width of [B, T, H, W, C]."""
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # [B * T, C, H, W]
    pooled = kind(frames, 2).permute(0, 2, 3, 1)  # [B * T, H / 2, W / 2, C]
    return pooled.reshape(*x.shape[:2], *pooled.shape[1:])


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """[windows, tokens, C], head by head."""
    size = q.shape[-1] // heads
    answers = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(dim=-1)
        answers.append(weights @ v[..., part])
    return torch.cat(answers, dim=-1)


def _windows(x: Tensor, window: int) -> Tensor:
    """Cut [B, T, H, W, C] into [B * windows, tokens, C]; a window of 0 is the whole clip."""
    if window == 0:
        return x.flatten(1, 3)
    batch, time, height, width, dim = x.shape
    x = x.reshape(batch * time, height // window, window, width // window, window, dim)
    return x.transpose(2, 3).reshape(-1, window * window, dim)


def _unwindows(x: Tensor, shape: torch.Size, window: int) -> Tensor:
    if window == 0:
        return x.reshape(shape)
    batch, time, height, width, dim = shape
    x = x.reshape(batch * time, height // window, width // window, window, window, dim)
    return x.transpose(2, 3).reshape(shape)


def _three(values: tuple[int, ...], first: int) -> tuple[int, ...]:
    return values if len(values) == 3 else (first, *values)
