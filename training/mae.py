"""A masked autoencoder over Hiera, for images and for video: what pretraining teaches without labels.

Mask units are deleted, not zeroed: only the visible ones go through the encoder ("sparse" MAE, Ryali et al., ICML 2023,
arXiv 2306.00989, sections 2 and 4), whose stages are fused for a decoder that predicts the pixels of the hidden ones
(He et al., arXiv 2111.06377). Queries are not pooled before the last stage (appendix A). Parameter names are those of
the original release, `hiera/hiera_mae.py` of hiera-transformer 0.1.4, so that its files `mae_hiera_*.pth` load
unchanged; so are the decoder's size, the pixel labels and the initialisation.

Shapes in comments are those of `export.hiera`, and: V visible windows, G tokens of a window after the last pooling,
D channels of the decoder, P pixel values that one such token predicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.checkpoints import read_checkpoint
from export.errors import CheckpointError
from export.hiera import Hiera, HieraBlock, HieraConfig, into_windows, token_order

IMAGE_MASK_RATIO, VIDEO_MASK_RATIO = 0.6, 0.9  # arXiv 2306.00989, table 3b


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder's size; the default is the release's for every variant.

    The paper says 8 heads for video (table 11), the release has 16. No parameter tells which one its files were made
    with, so the code that was published with them decides.
    """

    dim: int = 512
    depth: int = 8
    heads: int = 16


def visible_windows(config: HieraConfig, mask_ratio: float) -> int:
    """How many mask units stay visible when `mask_ratio` of them, rounded up, are hidden.

    Raises:
        ValueError: none would be left, or none hidden.
    """
    visible = int(config.windows * (1 - mask_ratio))
    if not 0 < visible < config.windows:
        raise ValueError(f"a mask ratio of {mask_ratio} leaves {visible} of {config.windows} mask units visible")
    return visible


def shuffled_windows(batch: int, windows: int, generator: torch.Generator | None = None) -> Tensor:
    """Random orders of the mask units, int64 [batch, windows]. An order is a mask: its first V units are visible."""
    return torch.rand(batch, windows, generator=generator).argsort(dim=1)


class MaskedAutoencoder(Hiera):
    """Hiera's encoder without its head, and a decoder of pixels.

    Input: normalised float32, [B, 3, H, W] or [B, 3, T, H, W], and an order of its mask units, int64 [B, W], the first
    `visible` of which are shown. Output: the loss, a float32 scalar.
    """

    def __init__(
        self,
        config: HieraConfig,
        decoder: DecoderConfig | None = None,
        mask_ratio: float | None = None,
        drop_path_rate: float = 0.0,
    ) -> None:
        """`mask_ratio` is the part of the mask units that is hidden: 0.6 of an image, 0.9 of a clip when None.

        Raises:
            ValueError: the mask ratio hides no unit, or all of them.
        """
        super().__init__(config, drop_path_rate)
        del self.norm, self.head
        decoder = decoder or DecoderConfig()
        usual = VIDEO_MASK_RATIO if config.is_video else IMAGE_MASK_RATIO
        self.visible = visible_windows(config, usual if mask_ratio is None else mask_ratio)
        self.pools = len(config.stages) - 2
        self._adapt_blocks()

        unit, dim = _pooled(config.mask_unit_size, config, self.pools), config.feature_dim
        self.encoder_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.multi_scale_fusion_heads = nn.ModuleList()
        conv = nn.Conv3d if config.is_video else nn.Conv2d
        for pools in range(self.pools):
            kernel = tuple(stride ** (self.pools - pools) for stride in config.q_stride)
            head = conv(config.embed_dim * 2**pools, dim, kernel, kernel)
            self.multi_scale_fusion_heads.append(head)
        self.multi_scale_fusion_heads.append(nn.Identity())

        self.decoder_embed = nn.Linear(dim, decoder.dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.dim))
        tokens = config.windows * math.prod(unit)
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, tokens, decoder.dim))
        self.decoder_blocks = nn.ModuleList(
            HieraBlock(config, decoder.dim, decoder.dim, decoder.heads, q_stride=1, windows=1, drop=0.0)
            for _ in range(decoder.depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder.dim, eps=config.layer_norm_eps)
        # Of the frames that a token of a clip covers, the first one is predicted.
        self.pixel_stride = config.patch_stride[-1] * config.q_stride[-1] ** self.pools
        self.decoder_pred = nn.Linear(decoder.dim, 3 * self.pixel_stride**2)
        self._initialise()

    def _adapt_blocks(self) -> None:
        """The visible windows are all there is, and the last stage's first block pools no queries."""
        blocks = [block for block in self.blocks if isinstance(block, HieraBlock)]
        for block in blocks:
            block.attn.windows = min(block.attn.windows, self.visible)  # 1 inside mask units
            block.drop_path.windows = self.visible
        unpooled = blocks[sum(self.config.stages[:-1])]
        unpooled.q_stride = unpooled.attn.q_stride = 1

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.decoder_pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        kernel = self.patch_embed.proj.weight.data
        nn.init.xavier_uniform_(kernel.view(len(kernel), -1))

    def encode(self, x: Tensor, order: Tensor) -> Tensor:
        """Fused, normalised features of the visible windows, [B * V, G, C], a window's tokens in row-major order."""
        config, visible = self.config, order[:, : self.visible]
        x = self.patch_embed(x * self._shown_pixels(x, visible)) + self.position_embedding()  # [B, N, C]
        x = _chosen(into_windows(x, token_order(config).to(x.device), config.windows), visible)  # [B * V, T, C]
        ends = [sum(config.stages[: stage + 1]) - 1 for stage in range(len(config.stages))]
        # The resolution is that of the last stage from stage `pools` on, so of those only the last is fused.
        fused_after = {ends[pools]: pools for pools in range(self.pools)} | {ends[-1]: self.pools}
        fused = torch.zeros((), device=x.device)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in fused_after:
                fused = fused + self._fuse(x, fused_after[index])
        out: Tensor = self.encoder_norm(fused)
        return out

    def _shown_pixels(self, x: Tensor, visible: Tensor) -> Tensor:
        """1 where a pixel belongs to a visible unit and 0 elsewhere, [B, 1, *input_size].

        Convolution kernels reach over the borders of units, and what is hidden must not leak through them.
        """
        config = self.config
        grid = [tokens // unit for tokens, unit in zip(config.token_grid, config.mask_unit_size, strict=True)]
        shown = x.new_zeros(len(x), config.windows).scatter(1, visible, 1.0)
        return F.interpolate(shown.reshape(-1, 1, *grid), size=x.shape[2:])  # the nearest

    def _fuse(self, x: Tensor, pools: int) -> Tensor:
        """Tokens after `pools` poolings, [B * V, T, C], to the resolution and width of the last, [B * V, G, C]."""
        unit = _pooled(self.config.mask_unit_size, self.config, pools)
        x = x.index_select(1, _order(self.config, pools, unit, len(self.config.stages)).argsort().to(x.device))
        head = self.multi_scale_fusion_heads[pools]
        if isinstance(head, nn.Identity):
            return x
        fused: Tensor = head(x.transpose(1, 2).reshape(-1, x.shape[2], *unit))  # of [B * V, C, *unit]
        return fused.flatten(2).transpose(1, 2)  # of [B * V, C, *the last unit]

    def decode(self, features: Tensor, order: Tensor) -> Tensor:
        """Predicted pixels of every token, normalised token by token: [B * V, G, C] to [B, W * G, P], row-major.

        Those of visible tokens are not trained and mean nothing.
        """
        x = self.decoder_embed(features)  # [B * V, G, D]
        batch, windows = order.shape
        tokens, dim = x.shape[1:]
        masks = self.mask_token.to(x.dtype).expand(batch, (windows - self.visible) * tokens, dim)
        x = torch.cat([x.reshape(batch, -1, dim), masks], dim=1)  # [B, W * G, D]
        x = _chosen(x.reshape(-1, tokens, dim), order.argsort(dim=1))  # [B * W, G, D], the windows in their places
        x = x.reshape(batch, -1, dim).index_select(1, self._grid_order(x.device).argsort())  # [B, W * G, D], row-major
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        pixels: Tensor = self.decoder_pred(self.decoder_norm(x))
        return pixels

    def predict(self, x: Tensor, order: Tensor) -> Tensor:
        """Predicted pixels, normalised token by token, [B, W * G, P]; see `pixel_labels` for their order."""
        return self.decode(self.encode(x, order), order)

    def of_hidden(self, tokens: Tensor, order: Tensor) -> Tensor:
        """The tokens of the hidden windows: [B, W * G, P], row-major, to [B * (W - V), G, P]."""
        windows = into_windows(tokens, self._grid_order(tokens.device), self.config.windows)
        return _chosen(windows, order[:, self.visible :])

    def _grid_order(self, device: torch.device) -> Tensor:
        """Where in the decoder's grid the tokens of one window after another stand, int64 [W * G]."""
        grid = _pooled(self.config.token_grid, self.config, self.pools)
        return _order(self.config, self.pools, grid, stages=self.pools + 1).to(device)

    def forward(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """The mean squared error over the hidden pixels, float32; without `order` a random mask is drawn."""
        if order is None:
            order = shuffled_windows(len(x), self.config.windows).to(x.device)
        labels = self.of_hidden(pixel_labels(x, self.pixel_stride, self.config), order)
        return F.mse_loss(self.of_hidden(self.predict(x, order), order).float(), labels)


def pixel_labels(x: Tensor, stride: int, config: HieraConfig) -> Tensor:
    """What the decoder predicts: each token's pixels less their mean, over their deviation, [B, W * G, P].

    A token covers a square of `stride` pixels. Values are ordered (colour, row, column) for images and (row, column,
    colour) for video, whose first frame of each token counts, all as in the release.
    """
    if config.is_video:
        x = x[:, :, :: config.patch_stride[0]]  # [B, 3, T', H, W]
    height, width = x.shape[-2] // stride, x.shape[-1] // stride
    x = x.reshape(*x.shape[:-2], height, stride, width, stride)  # [B, 3, (T',) H', stride, W', stride]
    if config.is_video:
        labels = x.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(1, 3)  # of [B, T', H', W', stride, stride, 3]
    else:
        labels = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # of [B, H', W', 3, stride, stride]
    variance, mean = torch.var_mean(labels.float(), dim=-1, keepdim=True)
    return (labels - mean) / (variance + 1e-6).sqrt()


def load_pretrained(model: MaskedAutoencoder, path: Path) -> None:
    """Load an MAE checkpoint in the original names, encoder and decoder, as `mae_hiera_*.pth` or our own files are.

    Raises:
        CheckpointError: unreadable, or not of this variant and decoder.
    """
    try:
        model.load_state_dict(read_checkpoint(path, model.config).stored)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no MAE checkpoint of this variant, with this decoder: {error}") from error


def _chosen(windows: Tensor, ids: Tensor) -> Tensor:
    """Of each sample the windows `ids`, int64 [B, V]: [B * W, T, C] to [B * V, T, C]."""
    batch = len(ids)
    first = torch.arange(batch, device=ids.device)[:, None] * (len(windows) // batch)
    return windows.index_select(0, (first + ids).flatten())


def _pooled(sizes: tuple[int, ...], config: HieraConfig, pools: int) -> tuple[int, ...]:
    """Tokens along each axis after `pools` poolings."""
    return tuple(size // stride**pools for size, stride in zip(sizes, config.q_stride, strict=True))


def _order(config: HieraConfig, pools: int, grid: tuple[int, ...], stages: int) -> Tensor:
    """`token_order` of a grid of tokens after the first `pools` poolings, as if the model had `stages` stages."""
    size = tuple(tokens * stride for tokens, stride in zip(grid, config.patch_stride, strict=True))
    unit = _pooled(config.mask_unit_size, config, pools)
    return token_order(replace(config, input_size=size, mask_unit_size=unit, stages=config.stages[pools:stages]))
