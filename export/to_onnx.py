"""Traces a model into the graph that is served: uint8 rows in; probabilities, logits and features out, in float32.

    rows uint8 [B, H, W, 3] -> channels first -> minus 255 mean, rounded -> patch convolution, its weights times
    1 / (255 std) -> plus positions, and what rounding left out -> window after window -> blocks -> mean over the tokens
    -> norm -> features -> head -> logits -> softmax -> probabilities

What the convolution takes is whole numbers below 256, which bfloat16 and float16 hold exactly.

A graph of lower precision has the patch embedding and the blocks in it, but the mean over the tokens, the last norm and
the classifier in float32, and within the blocks the statistics of each LayerNorm and each softmax. No tensor has more
than 6 axes: GPU kernels end at 8.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn
from tqdm import tqdm

from app.repository.manifest import Precision, Preprocessing
from export.golden import render_rows
from export.hiera import Hiera, HieraBlock, into_windows, mean_of_tokens, token_order
from export.rounding import run_and_round
from export.serving_block import ServingBlock

# The first opset with an Attention node, which engines map to their fused kernels.
OPSET = 23
ROWS = "rows"
OUTPUTS = ("probabilities", "logits", "features")
# Protocol buffers end at 2 GiB; beyond this the weights go to a file of their own.
LARGEST_EMBEDDED_BYTES = 1_800_000_000
EXTERNAL_DATA = "model.onnx.data"

_DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Weights are rounded by what rows of the rendered series make of them: so many tokens, in pieces that bound the memory.
_TYPICAL_TOKENS = 100_000
_TOKENS_AT_ONCE = 25_000
_TYPICAL_ROW = 1_000


class ServingGraph(nn.Module):
    """A classifier with its normalisation inside, as it is traced.

    The model is read: the caller's weights stay as they are.
    """

    mean: Tensor
    position_embedding: Tensor
    token_order: Tensor

    def __init__(self, model: Hiera, preprocessing: Preprocessing, precision: Precision = "fp32") -> None:
        super().__init__()
        self.config = model.config

        # The convolution pads with zeros, which must stand for the mean: so the mean is subtracted before it.
        per_channel = (3,) + (1,) * len(self.config.input_size)
        mean = 255.0 * torch.tensor(preprocessing.mean, dtype=torch.float64).reshape(per_channel)
        whole = mean.round()
        self.register_buffer("mean", whole.float())
        std = torch.tensor(preprocessing.std, dtype=torch.float64).reshape(per_channel)
        self.patch_embed = copy.deepcopy(model.patch_embed)
        projection = self.patch_embed.proj
        projection.weight.data = (projection.weight.data.double() / (255.0 * std)).float()
        # Video's and abswin's embeddings are computed from parts; here they become one constant, with what a linear
        # convolution makes of the part of the mean that rounding left out.
        left_out = _exact_tokens(projection, (whole - mean).expand(1, 3, *self.config.input_size))
        position_embedding = (model.position_embedding().detach().double() + left_out).float()
        self.register_buffer("position_embedding", position_embedding)
        self.register_buffer("token_order", token_order(model.config))

        self.blocks = nn.ModuleList(ServingBlock(cast("HieraBlock", block)) for block in model.blocks)
        self.norm = copy.deepcopy(model.norm)
        self.head = copy.deepcopy(model.head)
        self.eval()
        if precision != "fp32":
            self._lower(_DTYPES[precision])

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [B, H, W, 3] or [B, T, H, W, 3] to probabilities [B, classes], logits [B, classes], features [B, D]."""
        x = self._tokens(rows)
        for block in self.blocks:
            x = block(x)
        features = self.norm(mean_of_tokens(x.float(), self.config.windows))
        logits = self.head(features)
        return logits.softmax(dim=-1), logits, features

    def _tokens(self, rows: Tensor) -> Tensor:
        """uint8 rows to [B * W, T, C]."""
        last = rows.ndim - 1
        x = rows.permute(0, last, *range(1, last))  # [B, 3, H, W] or [B, 3, T, H, W], as long as that is bytes
        x = self.patch_embed(x.to(self.mean.dtype) - self.mean) + self.position_embedding  # [B, N, C]
        return into_windows(x, self.token_order, self.config.windows)

    @torch.no_grad()
    def _lower(self, dtype: torch.dtype) -> None:
        """Round all but the last norm and the classifier, by rows that no check looks at."""
        tokens = self.token_order.numel()
        rows = render_rows((*self.config.input_size, 3), math.ceil(_TYPICAL_TOKENS / tokens), first=_TYPICAL_ROW)
        batches = torch.split(torch.from_numpy(rows), math.ceil(_TOKENS_AT_ONCE / tokens))
        x = run_and_round(self.patch_embed, self._tokens, batches, dtype)
        for block in tqdm(self.blocks, desc="rounding", unit="block", leave=False, disable=None):
            x = run_and_round(block, block, x, dtype)
        self.patch_embed.to(dtype)
        self.blocks.to(dtype)
        self.mean, self.position_embedding = self.mean.to(dtype), self.position_embedding.to(dtype)


def _exact_tokens(convolution: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """float64 [B, 3, *input_size] to [B, N, C], without the bias."""
    exact = copy.deepcopy(convolution).double()
    exact.bias = None
    with torch.no_grad():
        tokens: Tensor = exact(x)  # [B, C, *grid]
    return tokens.flatten(2).transpose(1, 2)


def export_graph(graph: ServingGraph, path: Path) -> list[Path]:
    """Trace a graph and write it.

    Args:
        graph: what is traced, with the batch axis left open.
        path: the .onnx file; weights that a protocol buffer can't hold go to `model.onnx.data` beside it.

    Returns:
        The files that were written.
    """
    # Two rows, because the tracer would take an axis of one for a constant.
    rows = torch.zeros((2, *graph.config.input_size, 3), dtype=torch.uint8)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (rows,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[ROWS],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:  # torch's signature allows it for the old exporter
        raise RuntimeError("the exporter returned no program")
    model = program.model
    _reduce_without_casts(model)
    # Traces carry source lines and paths of the building machine.
    passes.ClearMetadataAndDocStringPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    model.graph.name = "hiera"
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size <= LARGEST_EMBEDDED_BYTES:
        ir.save(model, path)
        return [path]
    ir.save(model, path, external_data=EXTERNAL_DATA)
    return [path, path.parent / EXTERNAL_DATA]


def _reduce_without_casts(model: ir.Model) -> None:
    """The tracer takes a maximum in float32, between two casts. Without them it is the same: casts keep the order.

    In float16 alone: ONNX Runtime has no such kernel for bfloat16.
    """
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "ReduceMax" else None
        before = value.producer() if value is not None else None
        if before is None or before.op_type != "Cast":
            continue
        lower, readers = before.inputs[0], [use.node for use in node.outputs[0].uses()]
        if lower is not None and lower.dtype == ir.DataType.FLOAT16 and {each.op_type for each in readers} == {"Cast"}:
            node.replace_input_with(0, lower)
            node.outputs[0].type = lower.type
            for reader in readers:
                reader.outputs[0].replace_all_uses_with(node.outputs[0])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's notes about itself (its own deprecations, an absent torchvision) off the user's terminal."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        exporter.setLevel(level)
