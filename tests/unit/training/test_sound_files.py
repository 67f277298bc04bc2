"""Files that cannot be decoded cost a run nothing but themselves, until there are too many of them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import BLUE, GREEN, RED, image_of

from app.errors import BrokenMedia, LimitExceeded
from app.media.limits import MediaLimits
from export.catalog import find_variant
from export.hiera import CONFIGS
from export.media_files import read_media
from training import pretrain
from training.folders import FolderError
from training.mae import DecoderConfig, MaskedAutoencoder
from training.pictures import Pictures, find_files, held_out_files
from training.rows import Augmentation, ReadableFile, Shape, served_rows, training_rows
from training.sound_files import LeftOut, draw_sound

OBJECTS = find_variant("hiera_demo_objects")
SHAPE = Shape(OBJECTS.preprocessing)
DAMAGED = image_of(RED)[:300]


def filled(folder: Path, sound: int, damaged: dict[str, bytes]) -> Path:
    for index in range(sound):
        (folder / f"{index:03d}.jpg").write_bytes(image_of((RED, GREEN, BLUE)[index % 3]))
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    return folder


def pretrained(folder: Path, output: Path) -> dict[str, Any]:
    decoder = ["--decoder-dim", "32", "--decoder-depth", "1", "--decoder-heads", "4"]
    where = ["--data", str(folder), "--output", str(output)]
    pretrain.main([OBJECTS.name, *where, "--batch", "4", "--epochs", "2", "--device", "cpu", *decoder])
    record: dict[str, Any] = json.loads(output.with_suffix(".json").read_text())
    return record


def test_a_damaged_file_is_left_out_of_pretraining_and_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    damaged = {"000a.jpg": DAMAGED, "004a.jpg": DAMAGED}
    record = pretrained(filled(tmp_path / "data", 9, damaged), tmp_path / "mae.safetensors")
    said = capsys.readouterr().err
    for name in damaged:
        assert said.count(f"{name}: the jpeg image is cut short") == 1
    assert [Path(path).name for path, _ in record["left_out"]] == sorted(damaged)
    assert record["steps"] == 4  # of 10 files, in batches of 4, twice
    assert len(record["losses"]) == 2


def test_a_damaged_file_does_not_watch_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = find_files(filled(tmp_path, 52, {"000.JPG": DAMAGED}), "image", LeftOut())
    assert paths[0].name == "000.JPG"
    assert [path.name for path in held_out_files(Pictures(paths, OBJECTS))] == ["000.jpg", "049.jpg"]
    assert capsys.readouterr().err.count("left out: ") == 1


def test_a_watching_file_that_breaks_later_is_not_counted(tmp_path: Path) -> None:
    pictures = Pictures(find_files(filled(tmp_path, 3, {}), "image", LeftOut()), OBJECTS, memory_bytes=0)
    model = MaskedAutoencoder(CONFIGS[OBJECTS.name], DecoderConfig(32, 1, 4), mask_ratio=0.6)
    normalise = pretrain.Normalise(OBJECTS, torch.device("cpu"))
    whole = pretrain.measure(model, pictures, normalise, batch=1)
    (tmp_path / "001.jpg").write_bytes(DAMAGED)
    rest = pretrain.measure(model, pictures, normalise, batch=1)
    assert (whole["files"], rest["files"]) == (3, 2)
    assert rest["loss"] > 0.1
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(FolderError, match="none of the files that are held out"):
        pretrain.measure(model, pictures, normalise, batch=1)


def test_a_folder_of_damaged_files_ends_pretraining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, 0, {f"{index}.jpg": DAMAGED for index in range(8)})
    with pytest.raises(SystemExit, match="none of the 8 files can be decoded"):
        pretrained(tmp_path, tmp_path / "mae.safetensors")
    assert capsys.readouterr().err.count("left out: ") == 8
    (tmp_path / "0.jpg").write_bytes(image_of(RED))  # which watches, so that nothing is left to learn from
    with pytest.raises(SystemExit, match="100 files in a row cannot be decoded"):
        pretrained(tmp_path, tmp_path / "mae.safetensors")


def test_a_file_that_cannot_be_opened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path, 3, {})
    as_it_is = Path.open

    def forbidden(path: Path, *arguments: Any) -> Any:
        if path.name == "001.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return as_it_is(path, *arguments)

    monkeypatch.setattr(Path, "open", forbidden)
    assert [path.name for path in find_files(tmp_path, "image", LeftOut())] == ["000.jpg", "002.jpg"]
    assert capsys.readouterr().err == f"left out: {tmp_path}/001.jpg: Permission denied\n"


def test_other_files_crops_are_as_they_would_be_without_a_damaged_one(tmp_path: Path) -> None:
    paths = find_files(filled(tmp_path, 4, {}), "image", LeftOut())
    before = [Pictures(paths, OBJECTS).random_crops(index, 0.2, seed=index) for index in range(4)]
    paths[2].write_bytes(DAMAGED)
    after = [Pictures(paths, OBJECTS).random_crops(index, 0.2, seed=index) for index in range(4)]
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_another_file_takes_the_place_in_a_batch_of_fine_tuning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path, 3, {})
    files = [ReadableFile(tmp_path / f"{index:03d}.jpg", index, 48) for index in range(3)]
    (tmp_path / "001.jpg").write_bytes(DAMAGED)
    draws = list(islice(training_rows(files, SHAPE, Augmentation(0.5, flip=True), 3, 0, seed=0), 8))
    assert {len(rows) for rows, _ in draws} == {3}
    labels = torch.cat([labels for _, labels in draws])
    assert set(labels.tolist()) == {0, 2}
    rows = torch.cat([rows for rows, _ in draws]).mean(dim=(2, 3))
    assert torch.equal(rows.argmax(dim=1), labels)  # red rows have the label of red
    assert capsys.readouterr().err.count("001.jpg: the jpeg image is cut short") == 1


def test_a_file_to_measure_with_that_broke_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(DAMAGED)
    with pytest.raises(BrokenMedia, match=r"a\.jpg: the jpeg image is cut short"):
        next(served_rows([ReadableFile(tmp_path / "a.jpg", 0, 48)], SHAPE, 1, 0))


def test_the_first_that_can_be_drawn_is_taken(tmp_path: Path) -> None:
    paths, asked = [tmp_path / str(index) for index in range(50)], []

    def draw(index: int) -> int:
        asked.append(index)
        if index % 2:
            raise FileNotFoundError(2, "No such file or directory")
        return index

    assert draw_sound(draw, 7, paths, np.random.default_rng(0), LeftOut()) == asked[-1]
    assert asked[0] == 7
    assert len(asked) > 1
    assert all(index % 2 for index in asked[:-1])


def test_the_size_of_a_file_is_asked_before_it_is_read(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # a hole: no memory would do
    with pytest.raises(LimitExceeded, match="the file has 1,099,511,627,776 bytes"):
        read_media(large, MediaLimits())
    with pytest.raises(OSError, match="no regular file"):
        read_media(tmp_path, MediaLimits())
    filled(tmp_path, 2, {})
    assert read_media(tmp_path / "000.jpg", MediaLimits()) == image_of(RED)
    files = [ReadableFile(tmp_path / name, 0, 48) for name in ("large.jpg", "000.jpg", "001.jpg")]
    assert len(next(training_rows(files, SHAPE, Augmentation(0.5, flip=True), 3, 0, seed=0))[0]) == 3
    with pytest.raises(LimitExceeded, match=r"large\.jpg: the file has"):
        next(served_rows(files, SHAPE, 1, 0))
    assert Pictures([large], OBJECTS).centre(0) is None
