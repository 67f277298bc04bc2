"""The ONNX graphs: what goes in and out, what is inside, and that they say what torch says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from app.repository.manifest import Precision, Preprocessing
from export import to_onnx
from export.catalog import find_variant
from export.errors import ParityFailed
from export.golden import golden_count, render_rows
from export.hiera import CONFIGS, Hiera
from export.package_spec import rebuild_random
from export.parity import batch_sizes, check_parity, measure, measure_graph, normalise, open_graph, reference
from export.to_onnx import OPSET, OUTPUTS, ServingGraph, export_graph

OBJECTS, CAMERA_MOTION = find_variant("hiera_demo_objects"), find_variant("hiera_demo_camera_motion")


@pytest.fixture(scope="module")
def model() -> Hiera:
    return rebuild_random(OBJECTS, 5, 10)


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    ("name", "row", "classes", "features"),
    [
        ("hiera_demo_objects", [32, 32, 3], 10, 192),
        ("hiera_demo_camera_motion", [16, 64, 64, 3], 10, 192),
        ("hiera_tiny_224", [224, 224, 3], 1000, 768),
    ],
)
def test_uint8_rows_go_in_and_float32_comes_out_with_the_batch_left_open(
    repository: Path, name: str, row: list[int], classes: int, features: int
) -> None:
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    assert [(value.name, shape(value)) for value in graph.input] == [("rows", ["batch", *row])]
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [(value.name, shape(value)) for value in graph.output] == [
        ("probabilities", ["batch", classes]),
        ("logits", ["batch", classes]),
        ("features", ["batch", features]),
    ]
    assert {value.type.tensor_type.elem_type for value in graph.output} == {TensorProto.FLOAT}


def test_a_graph_holds_its_parameters_once_and_nothing_of_the_machine_that_made_it(objects: Path) -> None:
    model = onnx.load(objects / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    floats = sum(
        numpy_helper.to_array(tensor).size
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )
    # Norms are folded into what reads them (a line of ones for each width is left), and so are two biases of three.
    assert floats == pytest.approx(OBJECTS.parameters, rel=0.01)
    assert floats < OBJECTS.parameters
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("name", ["hiera_demo_objects", "hiera_demo_camera_motion", "hiera_tiny_224"])
def test_each_block_is_what_engines_have_kernels_for_and_nothing_is_reordered_between(
    repository: Path, name: str
) -> None:
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    config = CONFIGS[name]
    blocks, pooled = sum(config.stages), len(config.stages) - 1
    assert kinds["Attention"] == kinds["Gelu"] == blocks
    assert kinds["LayerNormalization"] == 2 * blocks + 1
    assert kinds["MatMul"] == 6 * blocks + pooled, (
        "query, key, value, proj, fc1, fc2, and the shortcut of a pooling block"
    )
    # Channels first for the convolution, last behind it, and one lookup that orders the tokens for all blocks.
    assert (kinds["Transpose"], kinds["Gather"]) == (2, 1)
    assert not {"Split", "Slice", "Concat", "Squeeze", "Shape", "Expand"} & kinds.keys()


def test_no_tensor_has_more_axes_than_gpu_kernels_take(repository: Path) -> None:
    for name in ("hiera_tiny_224", "hiera_demo_camera_motion"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(repository / name / "1" / "model.onnx")).graph
        values = (*graph.value_info, *graph.input, *graph.output)
        assert len(values) > 100, "the shapes must be known"
        assert max(len(value.type.tensor_type.shape.dim) for value in values) <= 6


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_keeps_statistics_softmax_pooling_and_classifier_in_float32(
    model: Hiera, tmp_path: Path, precision: Precision
) -> None:
    path = tmp_path / "model.onnx"
    export_graph(ServingGraph(model, OBJECTS.preprocessing, precision), path)
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}

    def inputs(kind: str) -> set[int]:
        return {types[node.input[0]] for node in graph.node if node.op_type == kind}

    assert inputs("MatMul") == inputs("Conv") == inputs("Attention") == {low}
    # ONNX Runtime has no maximum of bfloat16; of float16 there is one, and nothing is cast for it.
    assert inputs("ReduceMax") == {low if precision == "fp16" else TensorProto.FLOAT}
    assert inputs("Gemm") == inputs("Softmax") == inputs("ReduceMean") == {TensorProto.FLOAT}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert [types[norm.input[0]] for norm in norms] == [low] * (len(norms) - 1) + [TensorProto.FLOAT]
    for norm in norms:
        stash = [attribute.i for attribute in norm.attribute if attribute.name == "stash_type"]
        assert stash in ([], [TensorProto.FLOAT]), "mean and variance must be taken in float32, ONNX's default"
    precisions = [
        attribute.i
        for node in graph.node
        if node.op_type == "Attention"
        for attribute in node.attribute
        if attribute.name == "softmax_precision"
    ]
    assert precisions == [TensorProto.FLOAT] * sum(CONFIGS["hiera_demo_objects"].stages)
    # Half the bytes, but for the norms, the classifier and the graph itself.
    assert path.stat().st_size < 0.55 * 4 * OBJECTS.parameters

    expected = reference(model, OBJECTS.preprocessing, 4)
    for parity in measure_graph(path, precision, expected, batch_sizes(4)):
        assert parity.max_abs_logits > 1e-5, "rounding must show, or the graph is not of that precision"


def run_onnx(path: Path, rows: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"rows": rows}), strict=True))


@pytest.mark.parametrize("variant", [OBJECTS, CAMERA_MOTION], ids=lambda variant: variant.name)
def test_every_output_is_torchs_at_batches_that_were_not_traced(repository: Path, variant: object) -> None:
    assert isinstance(variant, type(OBJECTS))
    torch_model = rebuild_random(variant, 5, 10)
    rows = render_rows((*torch_model.config.input_size, 3), 5)
    answers = run_onnx(repository / variant.name / "1" / "model.onnx", rows)
    with torch.inference_mode():
        features = torch_model.forward_features(normalise(rows, variant.preprocessing))
        logits = torch_model.head(features)
    np.testing.assert_allclose(answers["features"], features, atol=1e-4)
    np.testing.assert_allclose(answers["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(answers["probabilities"], logits.softmax(1), atol=1e-5)
    np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", ["hiera_demo_objects", "hiera_demo_camera_motion", "hiera_tiny_224"])
def test_pixels_less_the_mean_are_exact_in_every_precision(repository: Path, name: str) -> None:
    graph = onnx.load(repository / name / "1" / "model.onnx").graph
    mean = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == "mean")
    pixels = torch.arange(256.0) - torch.tensor(mean).reshape(3, 1)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(pixels.to(dtype).float(), pixels), dtype


def test_making_a_graph_leaves_the_model_as_it_was(model: Hiera) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ServingGraph(model, OBJECTS.preprocessing, "bf16")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_beyond_the_largest_protocol_buffer_go_to_a_file_beside_the_graph(
    model: Hiera, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "LARGEST_EMBEDDED_BYTES", 1_000_000)
    files = export_graph(ServingGraph(model, OBJECTS.preprocessing), tmp_path / "model.onnx")
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    assert files[0].stat().st_size < 200_000
    measure_graph(files[0], "fp32", reference(model, OBJECTS.preprocessing, 2), [1, 2])


def wrong_graph(model: Hiera, fault: str) -> ServingGraph:
    """A graph with one mistake in its first steps."""
    right = OBJECTS.preprocessing
    if fault == "mean left out":
        return ServingGraph(model, right.model_copy(update={"mean": (0.0, 0.0, 0.0)}))
    if fault == "mean in another order":
        return ServingGraph(model, right.model_copy(update={"mean": right.mean[::-1]}))
    if fault == "std of video":
        return ServingGraph(model, right.model_copy(update={"std": (0.255, 0.255, 0.255)}))
    graph = ServingGraph(model, right)
    weight = graph.patch_embed.proj.weight
    if fault == "colours swapped":
        weight.data = weight.data.flip(1)
    elif fault == "height and width swapped":
        weight.data = weight.data.transpose(2, 3)
    elif fault == "mean rounded and no more":
        graph.position_embedding = model.position_embedding().detach()
    else:
        assert fault == "mean folded into the bias"
        # Right everywhere but at the border, where zero padding then stands for black and not for the mean.
        bias = graph.patch_embed.proj.bias
        assert bias is not None
        bias.data -= (weight.data * graph.mean).sum(dim=(1, 2, 3))
        graph.mean.zero_()
    return graph


@pytest.mark.parametrize(
    "fault",
    [
        "mean left out",
        "mean in another order",
        "std of video",
        "colours swapped",
        "height and width swapped",
        "mean rounded and no more",
        "mean folded into the bias",
    ],
)
def test_a_graph_with_a_fault_in_its_first_steps_fails_parity(model: Hiera, fault: str) -> None:
    graph = wrong_graph(model, fault)

    def run(rows: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode():
            probabilities, logits, features = graph(torch.from_numpy(rows))
        return probabilities.numpy(), logits.numpy(), features.numpy()

    expected = reference(model, OBJECTS.preprocessing, 4)
    with pytest.raises(ParityFailed, match="differs from torch"):
        check_parity(measure(run, expected, 4), "fp32")


def test_frames_in_another_order_fail_parity(camera_motion: Path) -> None:
    torch_model = rebuild_random(CAMERA_MOTION, 5, 10)
    expected = reference(torch_model, CAMERA_MOTION.preprocessing, 2)
    swapped = expected.rows.copy()
    swapped[:, [5, 6]] = expected.rows[:, [6, 5]]
    run = open_graph(camera_motion / "model.onnx", "fp32")
    check_parity(measure(run, expected, 2), "fp32")
    with pytest.raises(ParityFailed):
        check_parity(measure(run, replace(expected, rows=swapped), 2), "fp32")


def test_answers_that_are_not_numbers_fail_parity(model: Hiera) -> None:
    expected = reference(model, OBJECTS.preprocessing, 1)
    broken = replace(expected, logits=np.full_like(expected.logits, np.nan))
    with pytest.raises(ParityFailed, match="nan"):
        check_parity(
            measure(lambda rows: (expected.probabilities, broken.logits, expected.logits), expected, 1), "fp32"
        )


def test_a_graph_with_another_number_of_classes_fails_parity(model: Hiera) -> None:
    expected = reference(model, OBJECTS.preprocessing, 1)
    fewer = (expected.probabilities[:, :7], expected.logits[:, :7], expected.logits)
    with pytest.raises(ParityFailed, match=r"answers \(1, 7\) where torch answers \(1, 10\)"):
        measure(lambda rows: fewer, expected, 1)


def test_random_weights_tell_inputs_apart_and_are_the_same_for_a_seed(model: Hiera) -> None:
    answers = reference(model, OBJECTS.preprocessing, 16)
    assert len(set(answers.logits.argmax(axis=1))) >= 4
    assert answers.logits.std() > 1.0
    again = rebuild_random(OBJECTS, 5, 10).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    other = rebuild_random(OBJECTS, 6, 10).state_dict()
    assert not torch.equal(model.state_dict()["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("row_shape", [(32, 48, 3), (16, 32, 32, 3)])
def test_rendered_rows_are_the_same_each_time_and_differ_where_mistakes_would_hide(row_shape: tuple[int, ...]) -> None:
    count = golden_count(row_shape)
    rows = render_rows(row_shape, count)
    assert rows.dtype == np.uint8
    assert rows.shape == (count, *row_shape)
    np.testing.assert_array_equal(rows, render_rows(row_shape, count + 3)[:count])
    for row in rows.astype(np.int32):
        assert np.abs(row - row[..., ::-1]).mean() > 5, "the colours must differ"
        assert np.abs(row - row[..., ::-1, :]).mean() > 5, "left and right must differ"
        if row.ndim == 4:
            assert np.abs(row[1:] - row[:-1]).mean(axis=(1, 2, 3)).min() > 10, (
                "each frame must differ from the last, by more than grain"
            )


def test_normalisation_is_that_of_the_manifest() -> None:
    preprocessing = Preprocessing(
        resize_short_side=2, height=2, width=2, interpolation="bicubic", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)
    )
    rows = np.zeros((1, 2, 2, 3), np.uint8)
    rows[0, 0, 1] = 255
    x = normalise(rows, preprocessing)
    assert x.shape == (1, 3, 2, 2)
    assert x[0, :, 0, 1].tolist() == [1.0, 3.0, 1.0]
    assert x[0, :, 1, 0].tolist() == [-1.0, -1.0, 0.0]
