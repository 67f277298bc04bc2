"""The command, from a folder of real files to weights that are served with the accuracy that was written down."""

from __future__ import annotations

import copy
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import BLUE, RED, image_of, video_of
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from app.engines.factory import EngineOptions
from app.media.image import decode_image
from app.media.limits import MediaLimits
from app.media.spec import ImageSpec
from app.repository.store import PackagePath, open_package
from export import cli
from export.agreement import open_engine
from export.catalog import find_variant
from export.download import WeightsSource
from export.hiera import Hiera, create_model
from export.package_spec import BuildRequest, load_weights, make_spec
from export.parity import normalise
from training.finetune import main
from training.folders import File, held_out_names, read_folder
from training.recipe import recipe_of
from training.record import save
from training.rows import Augmentation, ReadableFile, Shape, served_rows
from training.tuning import Data, Means, fit_linear_head, judges, train_whole

OBJECTS, MOTION = "hiera_demo_objects", "hiera_demo_camera_motion"
CPU = ["--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of both micro variants, in one folder."""
    folder = tmp_path_factory.mktemp("weights")
    for name in (OBJECTS, MOTION):
        torch.manual_seed(1)
        save(create_model(name).state_dict(), {}, folder / f"{name}.safetensors")
    return folder


def stripes(rising: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noisy slanting stripes, uint8 [60, 90, 3]; mirrored they are of the other class."""
    y, x = np.mgrid[:60, :90]
    wave = np.sin((x + y if rising else x - y) * rng.uniform(0.2, 0.4) + rng.uniform(0, 6))
    noisy = 128 + 12 * wave[..., None] + rng.normal(0, 60, (60, 90, 3))
    clipped: NDArray[np.uint8] = noisy.clip(0, 255).astype(np.uint8)
    return clipped


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 80 and 50 JPEGs, and a file that is no picture."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, count in (("falling", 80), ("rising", 50)):
        (root / name).mkdir()
        for index in range(count):
            Image.fromarray(stripes(name == "rising", rng)).save(root / name / f"{name} {index}.jpg")
    (root / "falling/notes.txt").write_text("not a picture")
    return root


def colours(root: Path, form: str) -> Path:
    """Two classes, red and blue, of two training files and one held-out file each."""
    for name, colour in (("blue", BLUE), ("red", RED)):
        for index, part in enumerate(("train", "train", "val")):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            data = image_of(colour) if form == "jpg" else video_of(colour, seconds_each=0.5)
            (folder / f"{index}.{form}").write_bytes(data)
    return root


def test_a_fitted_head_answers_in_the_package_as_it_was_measured(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "my stripes.safetensors"
    start = ["--weights", str(weights / f"{OBJECTS}.safetensors"), "--output", str(output)]
    main([OBJECTS, "--data", str(photos), *start, "--head-only", "--no-flip", *CPU])
    printed = capsys.readouterr().out
    assert "notes.txt: the file is a text" in printed
    record = json.loads(output.with_suffix(".json").read_text())
    assert output.with_suffix(".txt").read_text() == "falling\nrising\n"

    command = shlex.split(printed.splitlines()[-1])
    assert command[:2] == ["hiera-export", "build"]
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command[1:], "--max-batch", "2"]) == 0
    package = open_package(PackagePath("my_stripes", 1, tmp_path / "model_repo/my_stripes/1"))
    top1 = record["accuracy"]["top1"]
    assert package.manifest.accuracy[0].top1 == pytest.approx(100 * top1)

    files, model = read_folder(photos).held_out, load_weights(find_variant(OBJECTS), output)
    geometry = package.manifest.preprocessing
    spec = ImageSpec(geometry.resize_short_side, geometry.height, geometry.width, geometry.interpolation)
    rows = np.empty((len(files), *package.manifest.row_shape), np.uint8)
    for row, file in zip(rows, files, strict=True):
        decode_image(file.path.read_bytes(), spec, MediaLimits(), row)
    engine = open_engine(package, EngineOptions(name="onnxruntime", device="cpu", threads=1, max_batch=16))
    served = engine.run(rows)
    engine.close()
    right = served.argmax(axis=1) == [file.label for file in files]
    assert right.mean() == pytest.approx(top1, abs=1e-4)
    assert top1 >= 0.75
    shape = Shape(geometry)
    inputs, _ = next(served_rows(readable(files), shape, len(files), 0))
    with torch.no_grad():
        expected = model(inputs).softmax(dim=1).numpy()
    np.testing.assert_allclose(served, expected, atol=1e-4)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("mirror", [False, True])
def test_the_head_is_the_optimum_over_what_counts(mirror: bool, photos: Path) -> None:
    """There, the mean probability of a class is its share, and not so over rows that do not count."""
    folder, shape = read_folder(photos), Shape(find_variant(OBJECTS).preprocessing)
    files = readable([file for file in folder.training if file.path.suffix == ".jpg"])
    torch.manual_seed(1)
    model = create_model(OBJECTS, 2)
    said: list[str] = []
    fit_linear_head(
        model,
        Data(folder.classes, files, files, [], shape),
        Means(torch.device("cpu"), batch=50, workers=0, seed=0),
        mirror,
        said.append,
    )
    inputs, labels = next(served_rows(files, shape, len(files), 0))
    with torch.no_grad():
        plain, mirrored = (float(model(x).softmax(dim=1)[:, 0].mean()) for x in (inputs, inputs.flip(-1)))
    share = float((labels == 0).float().mean())
    assert ((plain + mirrored) / 2 if mirror else plain) == pytest.approx(share, abs=1e-4)
    assert mirror or abs(mirrored - share) > 0.05


def readable(files: Sequence[File]) -> list[ReadableFile]:
    return [ReadableFile(file.path, file.label, 60) for file in files]


def test_a_fifth_of_what_is_left_to_train_with_chooses_the_strength(tmp_path: Path) -> None:
    names = [f"{index}.jpg" for index in range(3000)]
    held_out = held_out_names(names, 10)
    files = [ReadableFile(tmp_path / name, 0, 32) for name in names if name not in held_out]
    data = Data(("blue",), files, [], [], Shape(find_variant(OBJECTS).preprocessing))
    assert 0.17 < float(judges(data).float().mean()) < 0.23


def test_files_that_share_a_name_leave_some_to_fit_with(tmp_path: Path) -> None:
    """Of a class, judges are never all: also where every file is called alike, or has one of two names."""
    for names in (["1.jpg"], ["1.jpg", "2.jpg"], [f"{index}.jpg" for index in range(7)]):
        files = [ReadableFile(tmp_path / str(folder) / name, 0, 32) for folder in range(10) for name in names]
        chosen = judges(Data(("blue",), files, [], [], Shape(find_variant(OBJECTS).preprocessing)))
        assert 0 <= int(chosen.sum()) < len(files)


def test_what_is_left_of_a_whole_run_are_the_averaged_weights(tmp_path: Path) -> None:
    start = create_model(OBJECTS, 2)
    files = readable(read_folder(colours(tmp_path / "data", "jpg")).training)
    data = Data(("blue", "red"), files, files, [], Shape(find_variant(OBJECTS).preprocessing))
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []

    def keep(averaged: Hiera, step: int) -> float:
        seen.append((step, copy.deepcopy(averaged.state_dict())))
        return 0.0

    how = replace(recipe_of(1, 1), epochs=5.0)
    means = Means(torch.device("cpu"), batch=2, workers=0, seed=0)
    assert train_whole(start, data, means, how, Augmentation(0.5, True), keep) == 10
    assert [step for step, _ in seen] == list(range(1, 11))
    for name, tensor in start.state_dict().items():
        assert torch.equal(tensor, seen[-1][1][name])


def test_the_whole_model_learns_two_colours(weights: Path, tmp_path: Path) -> None:
    data, output = colours(tmp_path / "data", "jpg"), tmp_path / "two.safetensors"
    start = ["--weights", str(weights / f"{OBJECTS}.safetensors"), "--output", str(output)]
    fast = ["--epochs", "40", "--rate", "0.2", "--layer-decay", "0.9"]
    main([OBJECTS, "--data", str(data), *start, *fast, *CPU])
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["accuracy"] == {"top1": 1.0, "items": 2, "per_class": {"blue": 1.0, "red": 1.0}}
    assert (record["steps"], record["batch"], record["layer_decay"], record["epochs"]) == (40, 4, 0.9, 40.0)
    model = load_weights(find_variant(OBJECTS), output)
    rows = np.stack([np.full((32, 32, 3), colour, np.uint8) for colour in (BLUE, RED)])
    with torch.no_grad():
        sure = model(normalise(rows, find_variant(OBJECTS).preprocessing)).softmax(dim=1).diagonal()
    assert float(sure.min()) > 0.6


def test_a_run_that_takes_the_place_of_its_start_names_the_runs_before_it(weights: Path, tmp_path: Path) -> None:
    data, place = colours(tmp_path / "data", "jpg"), tmp_path / "place.safetensors"
    starts = (weights / f"{OBJECTS}.safetensors", place)
    for start, epochs in zip(starts, ("3", "2"), strict=True):
        main([OBJECTS, "--data", str(data), "--weights", str(start), "--output", str(place), "--epochs", epochs, *CPU])
    runs = json.loads(place.with_suffix(".json").read_text())["earlier_runs"]
    assert [run["steps"] for run in runs] == [3]


@pytest.mark.parametrize(
    "how", [["--head-only"], ["--epochs", "2", "--mixup", "0.8", "--cutmix", "1"]], ids=["head", "whole"]
)
def test_clips_are_classified_too(how: list[str], weights: Path, tmp_path: Path) -> None:
    data, output = colours(tmp_path / "data", "mp4"), tmp_path / "clips.safetensors"
    start = ["--weights", str(weights / f"{MOTION}.safetensors"), "--output", str(output)]
    main([MOTION, "--data", str(data), *start, *how, "--sampling", "uniform", "--no-flip", *CPU])
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["accuracy"]["items"] == 2
    assert record["preprocessing"]["input_size"] == [16, 64, 64]
    assert record["flip"] is False
    if how == ["--head-only"]:
        assert record["accuracy"]["top1"] == 1.0


def test_another_input_stride_and_rate_are_kept_for_the_package(tmp_path: Path) -> None:
    torch.manual_seed(1)
    larger = create_model(MOTION, input_size=(8, 96, 96)).state_dict()
    save(larger, {}, tmp_path / "w.safetensors")
    start = ["--weights", str(tmp_path / "w.safetensors"), "--output", str(tmp_path / "x.safetensors")]
    seen = ["--frame-stride", "2", "--target-fps", "10"]
    main([MOTION, "--data", str(colours(tmp_path / "data", "mp4")), *start, *seen, "--head-only", *CPU])
    request = BuildRequest(find_variant(MOTION), weights=tmp_path / "x.safetensors", labels=tmp_path / "x.txt")
    spec = make_spec(request, WeightsSource(tmp_path), lambda _: None)
    assert spec.model.config.input_size == (8, 96, 96)
    assert spec.preprocessing.resize_short_side == 96
    assert spec.sampling is not None
    assert (spec.sampling.frames, spec.sampling.stride, spec.sampling.target_fps) == (8, 2, 10.0)
    assert spec.accuracy[0].top1 == 100.0


def test_a_run_depends_on_its_seed_alone(weights: Path, tmp_path: Path) -> None:
    data = colours(tmp_path / "data", "jpg")
    states = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        start = [
            "--weights",
            str(weights / f"{OBJECTS}.safetensors"),
            "--output",
            str(tmp_path / f"{name}.safetensors"),
        ]
        main([OBJECTS, "--data", str(data), *start, "--epochs", "2", "--seed", seed, *CPU])
        states.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert states[0] == states[1] != states[2]


def test_sampling_goes_into_the_command(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.safetensors").write_bytes((weights / f"{MOTION}.safetensors").read_bytes())
    (tmp_path / "w.json").write_text(json.dumps({"licence": "CC-BY-NC-4.0"}))
    start = ["--weights", str(tmp_path / "w.safetensors"), "--output", str(tmp_path / "-odd name.safetensors")]
    main([MOTION, "--data", str(colours(tmp_path / "d", "mp4")), *start, "--head-only", "--sampling", "uniform", *CPU])
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[-6:] == ["--name", "odd_name", "--sampling", "uniform", "--licence", "CC-BY-NC-4.0"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (["train/red/0.jpg", "train/red/1.jpg"], "no file to train with is left of red"),
        (["val/red/2.jpg", "val/blue/2.jpg"], "no file is left to measure with"),
    ],
)
def test_a_class_without_a_sound_file_ends_it(
    broken: list[str], message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = colours(tmp_path / "data", "jpg")
    for name in broken:
        (data / name).write_bytes((data / name).read_bytes()[:200])
    start = ["--weights", str(weights / f"{OBJECTS}.safetensors"), "--output", str(tmp_path / "x.safetensors")]
    with pytest.raises(SystemExit, match=message):
        main([OBJECTS, "--data", str(data), *start, *CPU])
    assert capsys.readouterr().out.count("left out: ") == 2
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hiera_none"], "no variant is called"),
        ([OBJECTS], "a demo model, which no one publishes"),
        ([OBJECTS, "--weights", "nowhere.pth"], "nowhere.pth: no such file"),
        ([OBJECTS, "--sampling", "uniform"], "--sampling is for videos"),
    ],
)
def test_what_the_user_can_mend_is_said_in_a_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    data = colours(tmp_path / "data", "jpg")
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--data", str(data), "--output", str(tmp_path / "x.safetensors"), *CPU])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "mine.pth"], "must end in .safetensors"),
        (["--batch", "0"], "must be 1 or more"),
        (["--layer-decay", "2"], "must be 0 or more, 1 at most"),
        (["--epochs", "nan"], "must be 0.001 or more"),
        (["--epochs", "inf"], "must be 0.001 or more"),
        (["--mixup", "inf"], "must be 0 or more"),
        (["--seed", "-1"], "must be a whole number from 0"),
        (["--seed", str(2**70)], "must be a whole number from 0"),
        (["--workers", "-1"], "must be a whole number from 0"),
        (["--device", "gpu"], "must be auto, cpu, cuda or cuda:N"),
        (["--head-only", "--epochs", "3", "--least-area", "1"], "without --epochs, --least-area"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([OBJECTS, "--data", str(tmp_path), "--output", str(tmp_path / "mine.safetensors"), *arguments])
    assert message in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named_before_anything_is_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").touch()
    for output, message in (("folder.safetensors", "is a folder"), ("file/x.safetensors", "cannot be written: ")):
        with pytest.raises(SystemExit):
            main([OBJECTS, "--data", str(tmp_path), "--output", str(tmp_path / output)])
        assert message in capsys.readouterr().err


def test_a_run_that_diverges_says_so_and_that_is_interrupted_too(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [OBJECTS, "--data", str(colours(tmp_path / "data", "jpg")), *CPU]
    arguments += ["--weights", str(weights / f"{OBJECTS}.safetensors")]
    arguments += ["--output", str(tmp_path / "x.safetensors"), "--epochs", "1"]

    def diverge(*_: Any, **__: Any) -> Tensor:
        return torch.tensor(math.nan, requires_grad=True)

    monkeypatch.setattr(functional, "cross_entropy", diverge)
    with pytest.raises(SystemExit, match="finetune: the loss is no number any more, from step 1 on"):
        main(arguments)

    def interrupt(*_: Any, **__: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(functional, "cross_entropy", interrupt)
    with pytest.raises(SystemExit, match="finetune: interrupted"):
        main(arguments)
    assert not list(tmp_path.glob("x.*"))
