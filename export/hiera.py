"""Hiera, a hierarchical vision transformer without the bells and whistles, for images and for video.

The architecture is that of Ryali et al., ICML 2023 (arXiv 2306.00989), and `hiera_small_abswin_256` adds the absolute
window position embedding of Bolya et al. (arXiv 2311.05613). Parameter names are those of the original release, so that
its state dicts load unchanged.

Tokens keep the order that makes windows and poolings free (`token_order`): [B * W, T, C], window after window.
Shapes in comments: B batch, N tokens, C channels, W windows, T tokens of a window, Q tokens that share a pooled query.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class HieraConfig:
    """The geometry of one variant. Axes are (height, width) for images and (time, height, width) for video."""

    embed_dim: int
    heads: int
    stages: tuple[int, ...]
    num_classes: int
    input_size: tuple[int, ...] = (224, 224)
    patch_kernel: tuple[int, ...] = (7, 7)
    patch_stride: tuple[int, ...] = (4, 4)
    patch_padding: tuple[int, ...] = (3, 3)
    q_stride: tuple[int, ...] = (2, 2)
    mask_unit_size: tuple[int, ...] = (8, 8)
    # Number of leading stages that use mask-unit attention; a stage's first block still uses the kind before it.
    mask_unit_stages: int = 2
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    # The three marks of the abswin models.
    window_pos_embed_size: tuple[int, int] | None = None
    layer_scale: bool = False
    expand_by_pooling: bool = False

    @property
    def is_video(self) -> bool:
        return len(self.input_size) == 3

    @property
    def token_grid(self) -> tuple[int, ...]:
        """Tokens along each axis after the patch convolution."""
        return tuple(size // stride for size, stride in zip(self.input_size, self.patch_stride, strict=True))

    @property
    def windows(self) -> int:
        """Mask units of an image or a clip; as many at every stage, since they shrink as the tokens are pooled."""
        return math.prod(self.token_grid) // math.prod(self.mask_unit_size)

    @property
    def feature_dim(self) -> int:
        """Width of the pooled features: doubled at every stage change."""
        return int(self.embed_dim * 2 ** (len(self.stages) - 1))

    def __post_init__(self) -> None:
        axes = len(self.input_size)
        for name in ("patch_kernel", "patch_stride", "patch_padding", "q_stride", "mask_unit_size"):
            if len(getattr(self, name)) != axes:
                raise ValueError(f"{name} must have {axes} axes, as input_size has")
        pools = len(self.stages) - 1
        for tokens, q_stride, unit in zip(self.token_grid, self.q_stride, self.mask_unit_size, strict=True):
            if tokens % unit or unit % q_stride**pools:
                raise ValueError(
                    f"a token grid of {self.token_grid} is not divisible into mask units of {self.mask_unit_size}, "
                    f"or those not by {pools} poolings of {self.q_stride}"
                )


def _video(config: HieraConfig, num_classes: int = 400) -> HieraConfig:
    """The video twin of an image variant: 16 frames, one token for 2x4x4 pixels, no pooling over time."""
    return HieraConfig(
        embed_dim=config.embed_dim,
        heads=config.heads,
        stages=config.stages,
        num_classes=num_classes,
        input_size=(16, 224, 224),
        patch_kernel=(3, 7, 7),
        patch_stride=(2, 4, 4),
        patch_padding=(1, 3, 3),
        q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8),
    )


_TINY = HieraConfig(96, 1, (1, 2, 7, 2), 1000)
_SMALL = HieraConfig(96, 1, (1, 2, 11, 2), 1000)
_BASE = HieraConfig(96, 1, (2, 3, 16, 3), 1000)
_BASE_PLUS = HieraConfig(112, 2, (2, 3, 16, 3), 1000)
_LARGE = HieraConfig(144, 2, (2, 6, 36, 4), 1000)
_HUGE = HieraConfig(256, 4, (2, 6, 36, 4), 1000)

CONFIGS: dict[str, HieraConfig] = {
    "hiera_tiny_224": _TINY,
    "hiera_small_224": _SMALL,
    "hiera_base_224": _BASE,
    "hiera_base_plus_224": _BASE_PLUS,
    "hiera_large_224": _LARGE,
    "hiera_huge_224": _HUGE,
    "hiera_base_16x224": _video(_BASE),
    "hiera_base_plus_16x224": _video(_BASE_PLUS),
    "hiera_large_16x224": _video(_LARGE),
    "hiera_huge_16x224": _video(_HUGE),
    "hiera_small_abswin_256": HieraConfig(
        96,
        1,
        (1, 2, 11, 2),
        1000,
        input_size=(256, 256),
        window_pos_embed_size=(16, 16),
        layer_scale=True,
        expand_by_pooling=True,
    ),
    # Two micro models, small enough for the repository; `training/` makes them.
    "hiera_demo_objects": HieraConfig(
        48,
        1,
        (1, 3, 2),
        10,
        input_size=(32, 32),
        patch_kernel=(5, 5),
        patch_stride=(2, 2),
        patch_padding=(2, 2),
        mask_unit_size=(4, 4),
        mask_unit_stages=1,
    ),
    "hiera_demo_camera_motion": HieraConfig(
        48,
        1,
        (1, 2, 2),
        10,
        input_size=(16, 64, 64),
        patch_kernel=(3, 15, 15),
        patch_stride=(2, 8, 8),
        patch_padding=(1, 7, 7),
        q_stride=(1, 2, 2),
        mask_unit_size=(1, 4, 4),
        mask_unit_stages=1,
    ),
}


def token_order(config: HieraConfig) -> Tensor:
    """Where in the grid each token stands, int64 [N], so that windows and poolings need no further reordering.

    Tokens are ordered by (window, offset in pool 1, …, offset in the last pool, rest). So a window is T tokens in a
    row, and after a reshape of those to [Q, T / Q] pooling is a maximum over the first axis. The reference's `Unroll`
    puts windows last instead, which costs a transposition before and after each attention.
    """
    pools, axes = len(config.stages) - 1, len(config.token_grid)
    split = []  # each axis of the grid: (window, rest, last pool's offset, …, first pool's offset)
    for tokens, unit, stride in zip(config.token_grid, config.mask_unit_size, config.q_stride, strict=True):
        split += [tokens // unit, unit // stride**pools, *[stride] * pools]
    step = pools + 2
    of_each_axis = (0, *range(step - 1, 1, -1), 1)
    order = [axis * step + part for part in of_each_axis for axis in range(axes)]
    return torch.arange(math.prod(config.token_grid)).reshape(split).permute(order).flatten()


def into_windows(x: Tensor, order: Tensor, windows: int) -> Tensor:
    """[B, N, C] in row-major order to [B * W, T, C] in that of `token_order`."""
    return x.index_select(1, order).reshape(-1, x.shape[1] // windows, x.shape[2])


def mean_of_tokens(x: Tensor, windows: int) -> Tensor:
    """[B * W, T, C] to [B, C]."""
    return x.reshape(-1, windows * x.shape[1], x.shape[2]).mean(dim=1)


def max_pool(x: Tensor, stride: int) -> Tensor:
    """Maximum over the tokens that share a query: [B * W, T, C] to [B * W, T / stride, C]."""
    return _by_query(x, stride).amax(dim=1)


def _by_query(x: Tensor, stride: int) -> Tensor:
    """The tokens that share a query side by side: [B * W, T, C] to [B * W, stride, T / stride, C]."""
    return x.reshape(-1, stride, x.shape[1] // stride, x.shape[2])


class PatchEmbed(nn.Module):
    """One convolution from pixels to tokens: [B, 3, *input_size] to [B, N, C] in row-major order."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        conv = nn.Conv3d if config.is_video else nn.Conv2d
        self.proj = conv(
            3,
            config.embed_dim,
            kernel_size=config.patch_kernel,  # type: ignore[arg-type]
            stride=config.patch_stride,  # type: ignore[arg-type]
            padding=config.patch_padding,  # type: ignore[arg-type]
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)  # [B, C, *grid]
        return tokens.flatten(2).transpose(1, 2)


class MaskUnitAttention(nn.Module):
    """Multi-head attention inside mask units, or over all tokens, with queries pooled where the resolution drops."""

    def __init__(self, dim: int, dim_out: int, heads: int, q_stride: int, windows: int) -> None:
        """`windows` is how many attend to each other: 1 for attention inside mask units, all of them for global."""
        super().__init__()
        self.heads = heads
        self.head_dim = dim_out // heads
        self.q_stride = q_stride
        self.windows = windows
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B * W, T, dim] to [B * W, T / q_stride, dim_out]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.q_stride > 1:
            q = max_pool(q, self.q_stride)
        tokens = q.shape[1]
        attended = F.scaled_dot_product_attention(self._by_head(q), self._by_head(k), self._by_head(v))
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(-1, tokens, self.heads * self.head_dim))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        """[B * W, T, heads * head_dim] to [B * W / windows, heads, windows * T, head_dim]."""
        return x.reshape(-1, self.windows * x.shape[1], self.heads, self.head_dim).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples while training (Huang et al., arXiv 1603.09382)."""

    def __init__(self, rate: float, windows: int) -> None:
        """`windows` is how many rows of [B * W, T, C] are one sample: all of its windows go, or none."""
        super().__init__()
        self.rate = rate
        self.windows = windows

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty(x.shape[0] // self.windows, 1, 1).bernoulli_(keep)
        return x * mask.repeat_interleave(self.windows, dim=0) / keep


class HieraBlock(nn.Module):
    """A pre-norm transformer block that may widen the channels and pool the tokens."""

    def __init__(
        self,
        config: HieraConfig,
        dim: int,
        dim_out: int,
        heads: int,
        q_stride: int,
        windows: int,
        drop: float,
    ) -> None:
        super().__init__()
        eps = config.layer_norm_eps
        self.q_stride = q_stride
        self.widens = dim != dim_out
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.proj = nn.Linear(dim, dim_out) if self.widens and not config.expand_by_pooling else None
        self.attn = MaskUnitAttention(dim, dim_out, heads, q_stride, windows)
        self.ls1 = LayerScale(dim_out) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim_out, eps=eps)
        self.mlp = Mlp(dim_out, int(dim_out * config.mlp_ratio))
        self.ls2 = LayerScale(dim_out) if config.layer_scale else nn.Identity()
        self.drop_path = DropPath(drop, config.windows)

    def forward(self, x: Tensor) -> Tensor:
        """[B * W, T, dim] to [B * W, T / q_stride, dim_out]."""
        normed = self.norm1(x)
        if self.widens:
            x = self._shortcut(x, normed)
        x = x + self.drop_path(self.ls1(self.attn(normed)))
        out: Tensor = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return out

    def _shortcut(self, x: Tensor, normed: Tensor) -> Tensor:
        if self.proj is not None:
            return max_pool(self.proj(normed), self.q_stride)
        return expand_by_pooling(x, self.q_stride)


def expand_by_pooling(x: Tensor, stride: int) -> Tensor:
    """abswin's: twice the channels by pooling in two ways, [B * W, T, C] to [B * W, T / stride, 2 C]."""
    x = _by_query(x, stride)
    return torch.cat([x.amax(dim=1), x.mean(dim=1)], dim=-1)


class Head(nn.Module):
    """The classifier. It returns logits; the original release applies softmax here in eval mode."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.projection(x)
        return logits


class Hiera(nn.Module):
    """A Hiera classifier of images or of video clips.

    Input: normalised float32, [B, 3, H, W] or [B, 3, T, H, W]. Output: logits [B, classes].
    """

    def __init__(self, config: HieraConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self._make_position_embedding()

        depth = sum(config.stages)
        starts = [sum(config.stages[:i]) for i in range(1, len(config.stages))]
        q_stride = math.prod(config.q_stride)
        dim, heads, stage = config.embed_dim, config.heads, 0
        blocks = []
        for i in range(depth):
            windowed = stage < config.mask_unit_stages  # read before the stage moves on: it lags by one block
            pooled = i in starts
            dim_out = dim
            if pooled:
                stage += 1
                dim_out, heads = dim * 2, heads * 2
            windows = 1 if windowed else config.windows
            drop = drop_path_rate * i / max(depth - 1, 1)
            blocks.append(HieraBlock(config, dim, dim_out, heads, q_stride if pooled else 1, windows, drop))
            dim = dim_out
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.head = Head(dim, config.num_classes)
        self.apply(_init_weights)
        # A small head starts fine-tuning from near-uniform probabilities, as the original release does.
        self.head.projection.weight.data.mul_(0.001)

    def _make_position_embedding(self) -> None:
        config = self.config
        grid, dim = config.token_grid, config.embed_dim

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, *shape), std=0.02))

        if config.is_video:
            self.pos_embed_spatial = parameter(math.prod(grid[1:]), dim)
            self.pos_embed_temporal = parameter(grid[0], dim)
        elif config.window_pos_embed_size is not None:
            self.pos_embed = parameter(dim, *config.window_pos_embed_size)
            self.pos_embed_win = parameter(dim, *config.mask_unit_size)
        else:
            self.pos_embed = parameter(math.prod(grid), dim)

    def position_embedding(self) -> Tensor:
        """What is added to the patch tokens, [1, N, C] in row-major order. It does not depend on the input."""
        config = self.config
        grid = config.token_grid
        if config.is_video:
            spatial = self.pos_embed_spatial.repeat(1, grid[0], 1)
            return spatial + self.pos_embed_temporal.repeat_interleave(math.prod(grid[1:]), dim=1)
        if config.window_pos_embed_size is None:
            return self.pos_embed
        tiles = [size // unit for size, unit in zip(grid, config.mask_unit_size, strict=True)]
        window = self.pos_embed_win.tile(tiles)  # [1, C, H', W']
        whole = F.interpolate(self.pos_embed, size=window.shape[-2:], mode="bicubic", antialias=True)
        return (whole + window).flatten(2).transpose(1, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        """Pooled, normalised features [B, D] of [B, 3, H, W] or [B, 3, T, H, W]."""
        x = self.patch_embed(x) + self.position_embedding()  # [B, N, C]
        x = into_windows(x, token_order(self.config).to(x.device), self.config.windows)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(mean_of_tokens(x, self.config.windows))
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.forward_features(x))
        return logits


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.constant_(module.bias, 0.02)


def create_model(
    name: str,
    num_classes: int | None = None,
    drop_path_rate: float = 0.0,
    input_size: tuple[int, ...] | None = None,
) -> Hiera:
    """Build a variant with fresh weights from torch's global generator.

    Args:
        name: a key of `CONFIGS`.
        num_classes: classes of the head; the variant's own number (1000 or 400) when None.
        drop_path_rate: stochastic depth of the last block; earlier blocks have proportionally less.
        input_size: (height, width) or (frames, height, width); the variant's own when None.

    Raises:
        KeyError: no such variant; the message lists them.
        ValueError: mask units do not divide the input.
    """
    if name not in CONFIGS:
        raise KeyError(f"no variant is called {name!r}; there are {', '.join(CONFIGS)}")
    config = CONFIGS[name]
    config = replace(
        config,
        num_classes=config.num_classes if num_classes is None else num_classes,
        input_size=config.input_size if input_size is None else input_size,
    )
    return Hiera(config, drop_path_rate)
