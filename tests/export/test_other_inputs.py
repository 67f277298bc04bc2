"""Weights for pictures of another size, and for clips of another length, than the variant's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import RED, video_of
from hiera_command import hiera_serve
from safetensors.torch import save_file

from app.repository.store import discover, open_package
from export.catalog import find_variant
from export.cli import main
from export.download import WeightsSource
from export.errors import BuildRefused, CheckpointError, WrongRecord
from export.hiera import create_model
from export.package_spec import BuildRequest, load_weights, make_spec, refuse_contradictions

OBJECTS, MOTION, TINY = (
    find_variant(name) for name in ("hiera_demo_objects", "hiera_demo_camera_motion", "hiera_tiny_224")
)
NOWHERE = WeightsSource(Path("/nonexistent"))


def weights(folder: Path, name: str, *input_size: int) -> Path:
    """A checkpoint of a variant, drawn for another input."""
    torch.manual_seed(1)
    path = folder / "mine.safetensors"
    save_file(create_model(name, input_size=input_size).state_dict(), path)
    return path


def test_the_size_of_pictures_is_told_by_the_weights(tmp_path: Path) -> None:
    said: list[str] = []
    spec = make_spec(BuildRequest(OBJECTS, weights=weights(tmp_path, OBJECTS.name, 64, 64)), NOWHERE, said.append)
    assert spec.model.config.input_size == (64, 64)
    crop = spec.preprocessing
    assert (crop.height, crop.width, crop.resize_short_side) == (64, 64, 64)
    assert said[-1] == "the weights take 64x64, cut from a short side of 64 (--resize-short-side)"


def test_the_short_side_keeps_its_proportion_to_the_crop(tmp_path: Path) -> None:
    path = weights(tmp_path, TINY.name, 384, 384)
    assert (
        make_spec(BuildRequest(TINY, weights=path), NOWHERE, lambda text: None).preprocessing.resize_short_side == 439
    )
    asked = BuildRequest(TINY, weights=path, resize_short_side=384)
    assert make_spec(asked, NOWHERE, lambda text: None).preprocessing.resize_short_side == 384


def test_what_is_asked_for_has_to_fit_the_crop_that_the_weights_take(tmp_path: Path) -> None:
    request = BuildRequest(OBJECTS, weights=weights(tmp_path, OBJECTS.name, 64, 64), resize_short_side=40)
    refuse_contradictions(request)
    with pytest.raises(
        BuildRefused, match="40 is too small: hiera_demo_objects takes a crop of 64x64, so it must be 64"
    ):
        make_spec(request, NOWHERE, lambda text: None)


def test_smaller_pictures_may_be_cut_from_a_smaller_short_side(tmp_path: Path) -> None:
    request = BuildRequest(OBJECTS, weights=weights(tmp_path, OBJECTS.name, 16, 16), resize_short_side=20)
    refuse_contradictions(request)
    assert make_spec(request, NOWHERE, lambda text: None).preprocessing.resize_short_side == 20


def test_a_clip_of_another_length_and_size_is_built_and_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, repository, clip = weights(tmp_path, MOTION.name, 8, 96, 96), tmp_path / "repo", tmp_path / "clip.mp4"
    build = [
        "build",
        MOTION.name,
        "--weights",
        str(path),
        "--frame-stride",
        "2",
        "--target-fps",
        "15",
        "--max-batch",
        "2",
    ]
    assert main([*build, "--name", "longer", "--output", str(repository)]) == 0
    told = capsys.readouterr().err
    assert "the weights take 96x96, cut from a short side of 96 (--resize-short-side), and 8 frames" in told
    assert "8 frames, stride 2 at 15 a second (--frame-stride, --target-fps)" in told
    manifest = open_package(discover(repository)[0]).manifest
    assert manifest.row_shape == (8, 96, 96, 3)
    assert manifest.sampling is not None
    assert manifest.sampling.model_dump() == {"frames": 8, "mode": "dense", "stride": 2, "target_fps": 15.0}
    assert main(["verify", str(repository / "longer"), "--weights", str(path), "--max-batch", "2"]) == 0
    clip.write_bytes(video_of(RED, seconds_each=3))
    result = json.loads(hiera_serve("classify", clip, "--json", model_repository=repository).stdout)
    # 8 frames of stride 2 at 15 a second are 32 / 30 of a second, in the middle of three.
    assert [(span["start_s"], span["end_s"]) for span in result["clips"]] == [(0.967, 2.033)]


def test_a_clip_may_be_sampled_from_the_whole_video(tmp_path: Path) -> None:
    said: list[str] = []
    request = BuildRequest(MOTION, weights=weights(tmp_path, MOTION.name, 4, 64, 64), sampling="uniform")
    spec = make_spec(request, NOWHERE, said.append)
    assert spec.sampling is not None
    assert (spec.sampling.frames, spec.sampling.mode) == (4, "uniform")
    assert said[-1].endswith("and 4 frames of the whole video (--sampling)")


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"pos_embed": torch.zeros(1, 17, 48)}, "pos_embed is 1x17x48, not 1x256x48"),
        ({"pos_embed": torch.zeros(1, 9, 48)}, "pos_embed is 1x9x48, not 1x256x48"),
        ({"pos_embed": torch.zeros(1, 16, 4, 4)}, "pos_embed is 1x16x4x4, not 1x256x48"),
    ],
)
def test_tokens_that_no_input_has_are_refused(tmp_path: Path, state: dict[str, Any], fault: str) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(create_model(OBJECTS.name).state_dict() | state, path)
    with pytest.raises(CheckpointError, match=fault):
        load_weights(OBJECTS, path)


def test_the_variant_that_other_weights_fit_is_named_whatever_their_input(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"It fits hiera_demo_objects\."):
        load_weights(TINY, weights(tmp_path, OBJECTS.name, 96, 96))


def test_a_record_of_another_input_is_not_believed(tmp_path: Path) -> None:
    path = weights(tmp_path, OBJECTS.name, 64, 64)
    crop = {
        "input_size": [32, 32],
        "resize_short_side": 64,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    path.with_suffix(".json").write_text(json.dumps({"data": "d", "accuracy": {"top1": 0.5}, "preprocessing": crop}))
    with pytest.raises(WrongRecord, match=r"of inputs \[32, 32\], and the weights take \[64, 64\]"):
        make_spec(BuildRequest(OBJECTS, weights=path), NOWHERE, lambda text: None)


@pytest.mark.parametrize(
    ("variant", "options", "why"),
    [
        (OBJECTS, {"frame_stride": 2}, "--frame-stride is for videos"),
        (OBJECTS, {"target_fps": 25.0}, "--target-fps is for videos"),
        (MOTION, {"sampling": "uniform", "frame_stride": 2}, "--frame-stride is for dense sampling"),
        (MOTION, {"sampling": "uniform", "target_fps": 25.0}, "--target-fps is for dense sampling"),
    ],
)
def test_strides_are_for_clips_of_videos(variant: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(BuildRefused, match=why):
        refuse_contradictions(BuildRequest(variant, random_seed=0, **options))


@pytest.mark.parametrize("words", [("--target-fps", "0"), ("--target-fps", "nan"), ("--frame-stride", "0")])
def test_rates_are_positive(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", MOTION.name, *words])
    assert "must be" in capsys.readouterr().err
