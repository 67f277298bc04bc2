"""What the recipes of the demo models say of archives and arguments that are no good: a line, and no traceback."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from app.media.limits import MediaLimits
from export.hiera import create_model
from training import archives, camera_motion, objects

DEMOS = Path(__file__).resolve().parents[3] / "model_repo"
RECIPES = pytest.mark.parametrize("recipe", [objects, camera_motion], ids=["objects", "camera_motion"])


def jpeg(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "JPEG")
    return file.getvalue()


def archived(archive: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(archive, "w:xz" if archive.suffix == ".xz" else "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive


def ended(recipe: ModuleType, folder: Path, *arguments: str) -> str:
    """The message that the command ends with; its exit status is 1 then."""
    package = ["--package", str(DEMOS / recipe.NAME)]
    with pytest.raises(SystemExit) as left:
        recipe.main([*arguments, "--data", str(folder), *([] if "--package" in arguments else package)])
    assert isinstance(left.value.code, str)
    return left.value.code


@RECIPES
def test_an_archive_that_cannot_be_read_is_named(recipe: ModuleType, tmp_path: Path) -> None:
    archive = tmp_path / recipe.ARCHIVE
    assert f"{archive}: no such file; --data names the folder" in ended(recipe, tmp_path, "evaluate")
    archive.mkdir()
    assert f"{archive} cannot be read (it is no regular file)" in ended(recipe, tmp_path, "evaluate")
    archive.rmdir()
    for content in (b"", b"a thesis"):
        archive.write_bytes(content)
        assert f"{archive} cannot be read (no tar archive, or cut short)" in ended(recipe, tmp_path, "evaluate")
    archived(archive, {"notes.txt": bytes(range(256)) * 100, "test/dog/1.jpg": jpeg(32), "2.jpg": jpeg(32)})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2 if recipe is objects else 26_000])
    assert f"{archive} cannot be read (no tar archive, or cut short)" in ended(recipe, tmp_path, "evaluate")


@pytest.mark.parametrize(
    ("recipe", "members", "message"),
    [
        (objects, {}, "holds no test/<class>/*.jpg"),
        (objects, {"1.jpg": jpeg(32), "test/1.jpg": jpeg(32)}, "holds no test/<class>/*.jpg"),
        (objects, {"train/dog/1.jpg": jpeg(32)}, "holds no test/<class>/*.jpg"),
        (objects, {"test/cow/1.jpg": jpeg(32)}, "test/cow/1.jpg is none of CIFAR-10's images"),
        (objects, {"test/dog/1.jpg": jpeg(33)}, "test/dog/1.jpg is none of CIFAR-10's images"),
        (objects, {"test/dog/1.jpg": jpeg(32)[:300]}, "test/dog/1.jpg is no JPEG picture, or damaged"),
        (camera_motion, {}, "holds no photos"),
        (camera_motion, {"notes.txt": b""}, "holds no photos"),
        (camera_motion, {"a.jpg": jpeg(256)[:300]}, "a.jpg is no JPEG picture, or damaged"),
        (camera_motion, {"a.jpg": b""}, "a.jpg is no JPEG picture, or damaged"),
    ],
)
def test_an_archive_of_something_else_is_told(
    recipe: ModuleType, members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    archived(tmp_path / recipe.ARCHIVE, members)
    said = ended(recipe, tmp_path, "evaluate")
    assert message in said
    assert recipe.ARCHIVE in said
    assert "\n" not in said


def test_a_picture_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archived(tmp_path / camera_motion.ARCHIVE, {"a.jpg": jpeg(64)})
    monkeypatch.setattr(archives, "_LIMITS", MediaLimits(max_bytes=99))
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda *_: pytest.fail("it was read"))
    assert "a.jpg: the file has" in ended(camera_motion, tmp_path, "evaluate")


def test_what_is_too_little_to_train_with_is_told(tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "x.safetensors")]
    archived(tmp_path / objects.ARCHIVE, {"train/dog/1.jpg": jpeg(32), "test/dog/2.jpg": jpeg(32)})
    assert "holds one image to train with: more are needed" in ended(objects, tmp_path, *output)
    archived(tmp_path / camera_motion.ARCHIVE, {"a.jpg": jpeg(256)})
    assert "holds one photo, which is held out" in ended(camera_motion, tmp_path, *output)
    assert not list(tmp_path.glob("x.*"))


@RECIPES
def test_weights_and_packages_of_something_else_are_told(recipe: ModuleType, tmp_path: Path) -> None:
    other = camera_motion if recipe is objects else objects
    archived(
        tmp_path / objects.ARCHIVE, {f"{split}/dog/{at}.jpg": jpeg(32) for split in ("train", "test") for at in "ab"}
    )
    archived(tmp_path / camera_motion.ARCHIVE, {"a.jpg": jpeg(256), "b.jpg": jpeg(256)})
    torch.manual_seed(0)
    save_file(create_model(other.NAME).state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "thesis.safetensors").write_text("a thesis")
    for flag, action in (("--weights", "evaluate"), ("--initial", "train")):
        arguments = [action, "--output", str(tmp_path / "x.safetensors"), flag]
        assert "nowhere.safetensors: no such file" in ended(recipe, tmp_path, *arguments, "nowhere.safetensors")
        thesis, others = str(tmp_path / "thesis.safetensors"), str(tmp_path / "other.safetensors")
        assert "this is no weights file" in ended(recipe, tmp_path, *arguments, thesis)
        assert "other.safetensors does not fit this variant" in ended(recipe, tmp_path, *arguments, others)
    package = ["evaluate", "--package", str(DEMOS / other.NAME)]
    assert f"of other rows or classes than {recipe.NAME}" in ended(recipe, tmp_path, *package)
    package = ["evaluate", "--package", str(tmp_path / "away" / "x")]
    assert "there is no package in" in ended(recipe, tmp_path, *package)


def test_photos_that_cannot_be_read_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no photo")
    for name, message in (("away.jpg", "No such file"), ("notes.jpg", "notes.jpg: the file is a text")):
        assert message in ended(objects, tmp_path, "evaluate", "--photos", str(tmp_path / name))


@RECIPES
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch: must be 1 or more"),
        (["--batch", "-4"], "--batch: must be 1 or more"),
        (["--threads", "0"], "--threads: must be 1 or more"),
        (["--seed", "-1"], "--seed: must be a whole number from 0"),
        (["--seed", str(2**70)], "--seed: must be a whole number from 0"),
        (["--rate", "-1"], "--rate: must be 1e-12 or more"),
        (["--rate", "nan"], "--rate: must be 1e-12 or more"),
        (["--minutes", "0"], "--minutes: must be 0.001 or more"),
        (["--output", "/proc/x.safetensors"], "--output: /proc/x.safetensors cannot be written"),
        (["--output", "x.pth"], "--output: must end in .safetensors"),
    ],
)
def test_wrong_arguments_are_answered_with_the_usage(
    recipe: ModuleType, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        recipe.main(["train", "--data", str(tmp_path), *arguments])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        (objects, ["--epochs", "-1"], "--epochs: must be 0.001 or more"),
        (camera_motion, ["--steps", "-1"], "--steps: must be 1 or more"),
        (camera_motion, ["--clips", "0"], "--clips: must be 1 or more"),
        (camera_motion, ["--batch", "3"], "--batch: 3 is odd"),
    ],
)
def test_so_are_those_of_one_recipe(
    recipe: ModuleType, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_wrong_arguments_are_answered_with_the_usage(recipe, arguments, message, tmp_path, capsys)


def test_to_evaluate_needs_no_place_to_write_in(tmp_path: Path) -> None:
    assert "no such file" in ended(objects, tmp_path, "evaluate", "--output", "/proc/x.safetensors")


def test_the_shortest_run_takes_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{split}/dog/{at}.jpg" for split in ("train", "test") for at in "abc"]
    archived(tmp_path / objects.ARCHIVE, dict.fromkeys(names, jpeg(32)))
    output = tmp_path / "x.safetensors"
    objects.main(["--data", str(tmp_path), "--output", str(output), "--epochs", "0.01", "--batch", "2"])
    assert output.exists()
    assert "test top-1 100.00%" in capsys.readouterr().out
