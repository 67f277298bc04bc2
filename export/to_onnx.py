"""Traces a model into the graph that is served: uint8 rows in; probabilities, logits and features out, in float32.

    rows uint8 [B, H, W, 3] -> channels first -> float -> minus 255 mean, rounded -> patch convolution, its weights
    times 1 / (255 std) -> plus positions, and what rounding left out -> blocks -> mean over the tokens -> norm
    -> features -> head -> logits -> softmax -> probabilities

What the convolution takes is whole numbers below 256, which bfloat16 and float16 hold exactly.

A graph of lower precision has the patch embedding and the blocks in it, but each LayerNorm, each softmax, the pooling
and the classifier in float32.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import Tensor, nn

from app.repository.manifest import Precision, Preprocessing
from export.hiera import Hiera, unroll

# The first opset with an Attention node, which engines map to their fused kernels.
OPSET = 23
ROWS = "rows"
OUTPUTS = ("probabilities", "logits", "features")
# Protocol buffers end at 2 GiB; beyond this the weights go to a file of their own.
LARGEST_EMBEDDED_BYTES = 1_800_000_000
EXTERNAL_DATA = "model.onnx.data"

_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ServingGraph(nn.Module):
    """A classifier with its normalisation inside, as it is traced.

    The model is copied: the caller's weights stay as they are.
    """

    mean: Tensor
    position_embedding: Tensor

    def __init__(self, model: Hiera, preprocessing: Preprocessing, precision: Precision = "fp32") -> None:
        super().__init__()
        model = copy.deepcopy(model).eval()
        axes = len(model.config.input_size)
        per_channel = (3,) + (1,) * axes
        self.config = model.config
        self.dtype = _DTYPES[precision]

        # The convolution pads with zeros, which must stand for the mean: so the mean is subtracted before it.
        mean = 255.0 * torch.tensor(preprocessing.mean, dtype=torch.float64).reshape(per_channel)
        whole = mean.round()
        self.register_buffer("mean", whole.float())
        std = torch.tensor(preprocessing.std, dtype=torch.float64).reshape(per_channel)
        projection = model.patch_embed.proj
        projection.weight.data = (projection.weight.data.double() / (255.0 * std)).float()
        # Video's and abswin's embeddings are computed from parts; here they become one constant, with what a linear
        # convolution makes of the part of the mean that rounding left out.
        left_out = _tokens(projection, (whole - mean).expand(1, 3, *model.config.input_size))
        self.register_buffer("position_embedding", (model.position_embedding().detach().double() + left_out).float())

        self.patch_embed = model.patch_embed
        self.blocks = model.blocks
        self.norm = model.norm
        self.head = model.head
        if self.dtype != torch.float32:
            self._lower()
        self.eval()

    def _lower(self) -> None:
        self.patch_embed.to(self.dtype)
        self.blocks.to(self.dtype)
        self.position_embedding = self.position_embedding.to(self.dtype)
        for name, norm in list(self.blocks.named_modules()):
            if isinstance(norm, nn.LayerNorm):
                self.blocks.set_submodule(name, Float32LayerNorm(norm))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [B, H, W, 3] or [B, T, H, W, 3] to probabilities [B, classes], logits [B, classes], features [B, D]."""
        last = rows.ndim - 1
        x = rows.permute(0, last, *range(1, last))  # [B, 3, H, W] or [B, 3, T, H, W]
        x = (x.float() - self.mean).to(self.dtype)
        x = self.patch_embed(x) + self.position_embedding  # [B, N, C]
        x = unroll(x, self.config.token_grid, self.config.q_stride, len(self.config.stages) - 1)
        for block in self.blocks:
            x = block(x)
        features = self.norm(x.float().mean(dim=1))
        logits = self.head(features)
        return logits.softmax(dim=-1), logits, features


def _tokens(convolution: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """float64 [B, 3, *input_size] to [B, N, C], without the bias."""
    exact = copy.deepcopy(convolution).double()
    exact.bias = None
    with torch.no_grad():
        tokens: Tensor = exact(x)  # [B, C, *grid]
    return tokens.flatten(2).transpose(1, 2)


class Float32LayerNorm(nn.Module):
    """A LayerNorm that computes in float32 and answers in the dtype of its input."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.float())
        return normed.to(x.dtype)


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
    for node in model.graph:
        if node.op_type == "Attention":
            node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", ir.DataType.FLOAT)
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
