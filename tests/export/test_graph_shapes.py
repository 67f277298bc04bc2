"""What a graph says of its outputs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from app.errors import PackageError
from export.graph_shapes import output_widths

DEMOS = Path(__file__).resolve().parents[2] / "model_repo"


def test_the_widths_of_a_package_s_outputs_are_read() -> None:
    widths = output_widths(DEMOS / "hiera_demo_objects" / "1" / "model.onnx")
    assert widths == {"probabilities": 10, "logits": 10, "features": 192}


def test_of_outputs_without_a_width_none_is_told(tmp_path: Path) -> None:
    outputs = [
        helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["n", 1 << 40]),
        helper.make_tensor_value_info("open", TensorProto.FLOAT, [1, "n"]),
        helper.make_tensor_value_info("any", TensorProto.FLOAT, None),
    ]
    onnx.save(helper.make_model(helper.make_graph([], "empty", [], outputs)), tmp_path / "model.onnx")
    assert list(output_widths(tmp_path / "model.onnx").items()) == [("wide", 1 << 40), ("open", None), ("any", None)]


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    whole = (DEMOS / "hiera_demo_objects" / "1" / "model.onnx").read_bytes()
    for content in (b"a thesis on graphs", b"\xff" * 40, whole[: len(whole) // 2]):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(PackageError, match=r"model\.onnx: cannot be read as an ONNX graph"):
            output_widths(tmp_path / "model.onnx")
    with pytest.raises(PackageError, match="No such file"):
        output_widths(tmp_path / "away.onnx")
