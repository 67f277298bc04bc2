"""Weights of lower precision are rounded by what they are multiplied with, and answer closer than the nearest would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.engines.base import Graph
from app.engines.factory import EngineOptions, create_engine
from app.engines.openvino import cpu_precision
from app.repository.manifest import Precision
from export import to_onnx
from export.catalog import find_variant
from export.golden import render_rows
from export.package_spec import rebuild_random
from export.parity import normalise
from export.rounding import round_rows, run_and_round
from export.to_onnx import ServingGraph, export_graph

DTYPES = (torch.float16, torch.bfloat16)


def correlated(count: int, width: int, seed: int = 0) -> Tensor:
    """Vectors as layers see them, [count, width]: off centre, large here and small there, and going together."""
    same, generator = torch.Generator().manual_seed(9), torch.Generator().manual_seed(seed)
    together, centre = torch.randn(width // 4, width, generator=same), torch.randn(width, generator=same)
    few, noise = torch.randn(count, width // 4, generator=generator), torch.randn(count, width, generator=generator)
    return (few @ together + 0.3 * noise + centre) * torch.rand(width, generator=same)


def is_of(values: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(values, values.to(dtype).float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [7, 128, 300])
def test_rounded_rows_are_numbers_of_the_precision_and_answer_closer_than_the_nearest(
    dtype: torch.dtype, width: int
) -> None:
    weight = torch.randn(20, width, generator=torch.Generator().manual_seed(1))
    seen, new = correlated(4000, width).double(), correlated(1000, width, 1).double()
    rounded = round_rows(weight, seen.T @ seen, dtype)
    nearest = weight.to(dtype).float()
    assert is_of(rounded, dtype)
    # Of a few inputs that hardly go together little is to be gained, of many a good deal.
    gain = {7: 0.95, 128: 0.4, 300: 0.4}[width]
    for x in (seen, new):
        error = (x @ (rounded - weight).double().T).square().mean()
        assert error < gain * (x @ (nearest - weight).double().T).square().mean()
    step = torch.finfo(dtype).eps
    assert ((rounded - weight).abs() <= 6 * step * weight.abs().max()).all(), "no weight wanders off"


def test_inputs_that_are_always_zero_change_nothing() -> None:
    weight, x = torch.randn(4, 12), correlated(500, 12).double()
    x[:, 5] = 0.0
    rounded = round_rows(weight, x.T @ x, torch.bfloat16)
    assert torch.isfinite(rounded).all()
    assert torch.equal(rounded[:, 5], weight[:, 5].bfloat16().float())
    assert torch.equal(
        round_rows(weight, torch.zeros(12, 12, dtype=torch.float64), torch.bfloat16), weight.bfloat16().float()
    )


Case = tuple[nn.Module, list[Tensor]]


def convolution(axes: int) -> Case:
    generator = torch.Generator().manual_seed(axes)
    conv = nn.Conv2d if axes == 2 else nn.Conv3d
    layer = conv(3, 10, kernel_size=3, stride=2, padding=1)
    smooth = torch.randn(4, 3, *(6,) * axes, generator=generator).repeat_interleave(2, dim=-1).repeat_interleave(2, -2)
    return layer, [50 * smooth[:2] + 20, 50 * smooth[2:] + 20]


def linear() -> Case:
    return nn.Linear(24, 10), [correlated(60, 24, seed).reshape(6, 10, 24) for seed in range(3)]


@pytest.mark.parametrize("make", [linear, lambda: convolution(2), lambda: convolution(3)], ids=["linear", "2d", "3d"])
def test_layers_are_rounded_with_their_bias_by_what_they_are_given(make: Callable[[], Case]) -> None:
    torch.manual_seed(0)
    layer, inputs = make()
    nearest = copy.deepcopy(layer).bfloat16().float()
    before = [layer(x) for x in inputs]
    outputs = run_and_round(layer, layer, inputs, torch.bfloat16)
    assert all(torch.equal(now, then) for now, then in zip(outputs, before, strict=True))
    assert all(is_of(parameter, torch.bfloat16) for parameter in layer.parameters())

    def error(rounded: nn.Module) -> float:
        return sum(F.mse_loss(rounded(x), then).item() for x, then in zip(inputs, before, strict=True))

    assert error(layer) < 0.5 * error(nearest)
    assert not layer._forward_pre_hooks


def test_what_is_not_a_number_is_left_to_the_check_of_the_graph() -> None:
    weight, moment = torch.randn(4, 6), torch.full((6, 6), torch.nan, dtype=torch.float64)
    assert torch.equal(round_rows(weight, moment, torch.float16), weight.half().float())


def test_nothing_watches_a_module_that_failed_to_run() -> None:
    layer = nn.Linear(3, 3)
    weight = layer.weight.clone()
    with pytest.raises(RuntimeError):
        run_and_round(layer, layer, [torch.zeros(2, 5)], torch.float16)
    assert not layer._forward_pre_hooks
    assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize(("name", "rows"), [("hiera_demo_objects", 64), ("hiera_demo_camera_motion", 4)])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_graph_of_lower_precision_is_closer_to_float32_than_one_of_the_nearest_weights(
    name: str, rows: int, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = find_variant(name)
    model = rebuild_random(variant, 5, 10)
    new = render_rows((*model.config.input_size, 3), rows, first=50_000)
    with torch.inference_mode():
        expected = model(normalise(new, variant.preprocessing))

    def error(graph: ServingGraph) -> float:
        """Of the weights alone: the arithmetic stays float32."""
        with torch.inference_mode():
            return F.mse_loss(graph.float()(torch.from_numpy(new))[1], expected).item()

    ours = error(ServingGraph(model, variant.preprocessing, precision))
    monkeypatch.setattr(to_onnx, "run_and_round", lambda part, run, inputs, dtype: [run(each) for each in inputs])
    nearest = error(ServingGraph(model, variant.preprocessing, precision))
    assert 0.0 < ours < 0.3 * nearest


@pytest.mark.skipif(cpu_precision("fp32", "auto") != "bf16", reason="this CPU has no instructions for bfloat16")
def test_openvino_keeps_the_norms_of_a_bf16_graph_in_float32(tmp_path: Path) -> None:
    variant = find_variant("hiera_demo_objects")
    model = rebuild_random(variant, 5, 10)
    path = tmp_path / "model.onnx"
    export_graph(ServingGraph(model, variant.preprocessing, "bf16"), path)
    rows = render_rows((32, 32, 3), 64, first=50_000)
    with torch.inference_mode():
        expected = model(normalise(rows, variant.preprocessing)).softmax(dim=1).numpy()
    engine = create_engine("openvino", Graph(path, (32, 32, 3), 10, "bf16"), EngineOptions(threads=1, max_batch=64))
    assert engine.info.precision == "bf16"
    lowered = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})

    def error(probabilities: np.ndarray) -> float:
        return float(np.square(probabilities - expected).mean())

    assert error(engine.run(rows)) < 0.8 * error(lowered(rows)["probabilities"])
    engine.close()
