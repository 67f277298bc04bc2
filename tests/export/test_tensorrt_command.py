"""Plans: the graph as TensorRT takes it, and real builds by tensorrt_rtx, which needs no GPU for them."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorrt_rtx
from fresh_graph import write_fresh_graph

from app.engines.base import batch_ladder
from app.engines.plans import PlanKey, find_plan, record_file
from app.errors import EngineUnavailable, PackageError
from app.repository.store import PackagePath, open_package, sha256
from export.cli import main
from export.errors import BuildRefused
from export.hiera import CONFIGS
from export.tensorrt_plan import graph_for_tensorrt, profile_batches

KEY = PlanKey("sm_89", "tensorrt_rtx", tensorrt_rtx.__version__)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bf16")
    build = ["build", "hiera_demo_objects", "--random-weights", "5", "--precision", "bf16", "--max-batch", "2"]
    assert main([*build, "--output", str(folder)]) == 0
    return folder / "hiera_demo_objects"


@pytest.fixture
def bf16(built: Path, tmp_path: Path) -> Path:
    """The version folder of the micro image model in bf16, for the test alone."""
    return shutil.copytree(built, tmp_path / built.name) / "1"


@pytest.fixture
def fp32(objects: Path, tmp_path: Path) -> Path:
    """The same in fp32."""
    return shutil.copytree(objects.parent, tmp_path / "fp32" / objects.parent.name) / "1"


def parsed(model: bytes) -> tuple[bool, str]:
    """Whether TensorRT's own parser takes a model, and its first complaint."""
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.INTERNAL_ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt_rtx.OnnxParser(network, logger)
    taken = parser.parse(model)
    return taken, "" if taken else parser.get_error(0).desc()


@pytest.mark.parametrize("name", ["hiera_demo_objects", "hiera_demo_camera_motion", "hiera_tiny_224"])
def test_the_rewritten_graph_gives_the_same_answers_and_is_taken_where_the_original_is_not(
    repository: Path, name: str
) -> None:
    folder = repository / name / "1"
    rewritten = graph_for_tensorrt(folder / "model.onnx")
    rows = np.load(folder / "golden.npz")["rows"]
    theirs = ort.InferenceSession(folder / "model.onnx").run(None, {"rows": rows})
    ours = ort.InferenceSession(rewritten).run(None, {"rows": rows})
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=3e-5)
    assert parsed(rewritten) == (True, "")
    assert not parsed((folder / "model.onnx").read_bytes())[0]


@pytest.mark.parametrize("name", ["hiera_small_abswin_256", "hiera_base_16x224"])
def test_tensorrt_takes_the_other_kinds_of_graph_too(name: str, tmp_path: Path) -> None:
    # One block more than is needed for every kind of block: the others repeat them.
    config = dataclasses.replace(CONFIGS[name], stages=(1, 2, 2, 1), num_classes=10, embed_dim=CONFIGS[name].heads * 8)
    assert parsed(graph_for_tensorrt(write_fresh_graph(config, "bf16", tmp_path / "model.onnx"))) == (True, "")


def test_a_graph_that_tensorrt_does_not_take_is_refused_with_what_to_do(
    bf16: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(bf16 / "model.onnx")
    model.graph.node[1].op_type = "Identity"  # instead of the cast: rows would be reordered as they come, in uint8
    del model.graph.node[1].attribute[:]
    onnx.save(model, bf16 / "model.onnx")
    manifest = json.loads((bf16 / "model.json").read_text())
    manifest["files"]["model.onnx"] = sha256(bf16 / "model.onnx")
    (bf16 / "model.json").write_text(json.dumps(manifest))
    assert main(["tensorrt", str(bf16), "--target", "sm_89"]) == 1
    assert "build it again" in capsys.readouterr().err
    assert not list(bf16.glob("*.plan"))


def test_a_plan_is_built_without_a_gpu_with_every_attention_fused(
    bf16: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest_before = (bf16 / "model.json").read_bytes()
    with caplog.at_level(logging.CRITICAL):
        assert main(["tensorrt", str(bf16), "--target", "sm_89", "--max-batch", "4"]) == 0
    assert capsys.readouterr().out.strip() == str(bf16 / KEY.file)
    plan, record = find_plan(bf16 / "model.onnx", KEY)
    assert plan.stat().st_size > 100_000
    assert (record.precision, record.batches, record.check, record.gpu) == ("bf16", (1, 2, 4), None, "")
    assert "Attention" in plan.with_name(plan.name + ".log").read_text()
    assert (bf16 / "model.json").read_bytes() == manifest_before
    open_package(PackagePath("hiera_demo_objects", 1, bf16))  # still whole
    assert not list(bf16.glob(".*.part"))
    assert main(["tensorrt", str(bf16), "--target", "sm_89"]) == 1
    assert "--replace" in capsys.readouterr().err


def test_attention_in_fp32_has_no_fused_kernel_and_is_taken_apart(fp32: Path) -> None:
    assert main(["tensorrt", str(fp32), "--target", "sm_89", "--max-batch", "2"]) == 0
    _, record = find_plan(fp32 / "model.onnx", KEY)
    assert record.precision == "fp32"


def test_what_cannot_be_built_for_is_said_and_the_log_kept(bf16: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tensorrt", str(bf16), "--target", "sm_90"]) == 1
    said = capsys.readouterr().err
    assert "does not build for sm_90" in said
    assert "tensorrt-cu13" in said
    assert not list(bf16.glob("*.plan"))
    assert list(bf16.glob("*.plan.log"))


def test_a_builder_that_said_nothing_leaves_no_log(bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BuildRefused("before the builder was made")

    monkeypatch.setattr("export.tensorrt_plan.make_logger", refuse)
    before = sorted(bf16.iterdir())
    assert main(["tensorrt", str(bf16), "--target", "sm_89"]) == 1
    assert sorted(bf16.iterdir()) == before


@pytest.mark.parametrize(
    ("largest", "profiles"),
    [(1, [(1, 1, 1)]), (4, [(1, 1, 4)]), (8, [(1, 1, 4), (5, 8, 8)]), (64, [(1, 1, 4), (5, 64, 64)])],
)
def test_few_rows_have_a_profile_of_their_own(largest: int, profiles: list[tuple[int, int, int]]) -> None:
    assert profile_batches(batch_ladder(largest)) == profiles


def test_a_plan_that_is_tampered_with_is_not_found(bf16: Path) -> None:
    assert main(["tensorrt", str(bf16), "--target", "sm_89", "--max-batch", "2"]) == 0
    plan = bf16 / KEY.file
    plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    with pytest.raises(PackageError, match="--replace"):
        find_plan(bf16 / "model.onnx", KEY)
    record_file(plan).unlink()
    plan.unlink()
    with pytest.raises(EngineUnavailable, match="run hiera-export tensorrt"):
        find_plan(bf16 / "model.onnx", KEY)


def test_a_machine_that_builds_plans_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import export.cli, export.tensorrt_plan"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_a_target_it_asks_for_a_gpu(
    objects: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import runtime

    no_driver = runtime.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (no_driver, 0))
    monkeypatch.setattr(runtime, "cudaDriverGetVersion", lambda: (runtime.cudaError_t.cudaSuccess, 0))
    assert main(["tensorrt", str(objects)]) == 1
    assert "there is no NVIDIA driver here" in capsys.readouterr().err
