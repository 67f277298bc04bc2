"""Builds that are refused for what was asked, before anything is fetched or traced."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from export.catalog import find_variant
from export.cli import main
from export.download import WeightsSource
from export.errors import BuildRefused, CheckpointError, WrongRecord
from export.hiera import create_model
from export.package_spec import BuildRequest, make_spec
from export.training_record import read_record

OBJECTS = find_variant("hiera_demo_objects")
TINY = find_variant("hiera_tiny_224")
NOWHERE = WeightsSource(Path("nowhere"), "http://127.0.0.1:9")


def silent(_: str) -> None:
    pass


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (BuildRequest(TINY, weights=Path("x.pth"), commercial_use=True), "name that with --licence"),
        (BuildRequest(TINY, random_seed=0, licence="MIT"), "it goes with --weights"),
        (BuildRequest(TINY, licence="MIT", commercial_use=True), "it goes with --weights"),
        (BuildRequest(TINY, random_seed=0, sampling="uniform"), "--sampling is for videos, but hiera_tiny_224"),
        (BuildRequest(TINY, resize_short_side=223), "takes a crop of 224x224, so it must be 224 or more"),
    ],
)
def test_options_that_would_do_nothing_or_no_good_are_refused(request_: BuildRequest, why: str) -> None:
    with pytest.raises(BuildRefused, match=why):
        make_spec(request_, NOWHERE, silent)


def test_a_short_side_of_just_the_crop_is_taken() -> None:
    request = BuildRequest(OBJECTS, random_seed=0, resize_short_side=32)
    assert make_spec(request, NOWHERE, silent).preprocessing.resize_short_side == 32


def test_the_last_of_several_variants_is_looked_at_before_the_first_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = ["hiera_demo_camera_motion", "hiera_demo_objects"]
    build = ["build", *variants, "--random-weights", "0", "--sampling", "uniform", "--output", str(tmp_path)]
    assert main(build) == 1
    assert capsys.readouterr().err == "hiera-export: --sampling is for videos, but hiera_demo_objects takes images\n"
    assert list(tmp_path.iterdir()) == []


def test_a_training_record_whose_crop_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_file(create_model(OBJECTS.name).state_dict(), tmp_path / "mine.safetensors")
    preprocessing: dict[str, Any] = {
        "input_size": [32, 32],
        "resize_short_side": 31,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    record = {"data": "photos", "accuracy": {"top1": 0.5}, "preprocessing": preprocessing}
    (tmp_path / "mine.json").write_text(json.dumps(record))
    with pytest.raises(WrongRecord, match="a short side of 31, and hiera_demo_objects takes a crop of 32x32"):
        make_spec(BuildRequest(OBJECTS, weights=tmp_path / "mine.safetensors"), NOWHERE, silent)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_that_torch_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(BuildRefused, match=f"{seed} can't be the seed"):
        make_spec(BuildRequest(OBJECTS, random_seed=seed), NOWHERE, silent)


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63)])
def test_the_largest_seeds_are_taken(seed: int) -> None:
    assert make_spec(BuildRequest(OBJECTS, random_seed=seed), NOWHERE, silent).weights.random_seed == seed


def test_official_weights_that_were_cut_short_are_to_be_fetched_again(tmp_path: Path) -> None:
    assert TINY.download is not None
    path = tmp_path / TINY.download.file
    torch.save({"model_state": {"norm.weight": torch.zeros(10_000)}}, path)
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(CheckpointError) as refused:
        make_spec(BuildRequest(TINY), WeightsSource(tmp_path), silent)
    assert "cut short" in str(refused.value)
    assert f"remove {path} to fetch it again" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"accuracy": {"top1": 84.1}}, "accuracy.top1: Input should be less than or equal to 1"),
        ({"preprocessing": {"std": [0.5, 0, 0.5]}}, "preprocessing.std.1: Input should be greater than 0"),
        ({"preprocessing": {"mean": [0.5, float("nan"), 0.5]}}, "preprocessing.mean.1: Input should be a finite"),
        ({"preprocessing": {"stride": 0}}, "preprocessing.stride: Input should be greater than 0"),
        ({"data": None}, "data: Input should be a valid string"),
    ],
)
def test_a_training_record_with_a_wrong_field_is_told_in_a_line(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    preprocessing = {
        "input_size": [32, 32],
        "resize_short_side": 32,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    record = {"data": "photos", "accuracy": {"top1": 0.5}, **changes}
    record["preprocessing"] = preprocessing | changes.get("preprocessing", {})
    (tmp_path / "mine.json").write_text(json.dumps(record))
    with pytest.raises(WrongRecord) as refused:
        read_record(tmp_path / "mine.json")
    assert fault in str(refused.value)
    assert str(refused.value).endswith("; mend it, or move it away")
    assert "\n" not in str(refused.value)


def test_a_training_record_says_how_videos_were_sampled(tmp_path: Path) -> None:
    motion = find_variant("hiera_demo_camera_motion")
    save_file(create_model(motion.name).state_dict(), tmp_path / "mine.safetensors")
    preprocessing: dict[str, Any] = {
        **motion.preprocessing.model_dump(include={"resize_short_side", "interpolation", "mean", "std"}),
        "input_size": [16, 64, 64],
        "mode": "uniform",
    }
    record = {"data": "clips", "accuracy": {"top1": 0.5}, "preprocessing": preprocessing}
    (tmp_path / "mine.json").write_text(json.dumps(record))
    request = BuildRequest(motion, weights=tmp_path / "mine.safetensors")
    sampling = make_spec(request, NOWHERE, silent).sampling
    assert sampling is not None
    assert sampling.mode == "uniform"
    with pytest.raises(BuildRefused, match="--frame-stride and --target-fps go with --sampling dense"):
        make_spec(replace(request, frame_stride=2), NOWHERE, silent)
    dense = make_spec(replace(request, frame_stride=2, sampling="dense"), NOWHERE, silent).sampling
    assert dense is not None
    assert (dense.mode, dense.stride) == ("dense", 2)


def test_a_package_that_is_there_is_told_before_the_first_of_several_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hiera_demo_objects" / "1").mkdir(parents=True)
    variants = ["hiera_demo_camera_motion", "hiera_demo_objects"]
    assert main(["build", *variants, "--random-weights", "0", "--output", str(tmp_path)]) == 1
    assert "hiera_demo_objects/1 exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hiera_demo_objects"]
