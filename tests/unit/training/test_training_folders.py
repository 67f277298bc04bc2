"""Which files of a folder train and which are held out, and what is said of folders that nothing can be learnt from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from app.commands.file_lists import class_folders
from training.folders import FolderError, held_out_names, read_folder


def fill(root: Path, files: Iterable[str]) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_a_split_of_the_users_is_kept(tmp_path: Path) -> None:
    fill(
        tmp_path, ["train/cat/1", "train/cat/2", "train/ant/3", "val/ant/4", "val/cat/5", "train/.git/x", "val/cat/.x"]
    )
    folder = read_folder(tmp_path)
    assert folder.classes == ("ant", "cat")
    assert [(file.path.name, file.label) for file in folder.training] == [("3", 0), ("1", 1), ("2", 1)]
    assert [(file.path.name, file.label) for file in folder.held_out] == [("4", 0), ("5", 1)]


def test_without_one_a_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    fill(tmp_path, [f"{name}/{name}{index}.jpg" for name in ("ant", "cat") for index in range(400)])
    folder = read_folder(tmp_path)
    for label in (0, 1):
        held = {file.path for file in folder.held_out if file.label == label}
        rest = {file.path for file in folder.training if file.label == label}
        assert 25 < len(held) < 60
        assert len(held | rest) == 400
        assert not held & rest


def test_a_file_keeps_its_side_when_others_come() -> None:
    names = [f"photo {index}.jpg" for index in range(300)]
    before, after = held_out_names(names[:200], 10), held_out_names(names, 10)
    assert before == after & set(names[:200])


def test_files_in_folders_below_are_of_the_class_and_known_by_their_whole_names(tmp_path: Path) -> None:
    files = [f"{name}/{below}/1.jpg" for name in ("ant", "cat") for below in range(300)]
    folder = read_folder(fill(tmp_path, [*files, "cat/2.jpg", "cat/.thumbs/3.jpg", "cat/0/.4.jpg"]))
    listed = {str(file.path.relative_to(tmp_path)) for file in (*folder.training, *folder.held_out)}
    assert listed == {*files, "cat/2.jpg"}
    assert 35 < len(folder.held_out) < 95


def test_evaluate_counts_the_same_files(tmp_path: Path) -> None:
    fill(tmp_path, ["b/x/1.jpg", "b/2.png", "b/.3.jpg", "b/.x/4.jpg", "a/._5.jpg", "a/6.jpg", ".c/7.jpg", "8.jpg"])
    folder = read_folder(tmp_path)
    trained = sorted(file.path for file in (*folder.training, *folder.held_out))
    assert [str(path.relative_to(tmp_path)) for path in trained] == ["a/6.jpg", "b/2.png", "b/x/1.jpg"]
    assert sorted(path for each in class_folders(tmp_path, "image") for path in each.files) == trained


@pytest.mark.parametrize("one_in", [1, 2, 10, 10**12])
def test_neither_side_of_a_class_is_empty_but_of_a_single_file(one_in: int) -> None:
    assert held_out_names(["a"], one_in) == set()
    for count in range(2, 8):
        assert 1 <= len(held_out_names([str(index) for index in range(count)], one_in)) < count


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no folders"),
        (["photo.jpg"], "holds no folders"),
        (["cat/1.jpg", "cat/2.jpg"], "one class, 'cat'"),
        (["cat/1.jpg", "dog/.hidden"], "dog holds no files"),
        (["cat/1.jpg", "dog/.deeper/1.jpg"], "dog holds no files"),
        (["training/cat/1", "training/dog/1", "validation/cat/2"], "further below, as training/cat/1 does"),
        (["cat/1.jpg", " dog/1.jpg"], "a labels file can't hold it"),
        (["cat/1.jpg", "hot\ndog/1.jpg"], "a labels file can't hold it"),
        (["cat/1.jpg", "hot\rdog/1.jpg"], "a labels file can't hold it"),
        (["\ufeffcat/1.jpg", "dog/1.jpg"], "a labels file can't hold it"),
        (["train/cat/1.jpg", "train/dog/1.jpg"], "holds train, but not both"),
        (["train/cat/1", "train/dog/1", "val/cow/1"], "holds classes that .*train has not: cow"),
        (["train/cat/1", "train/dog/1", "val/1"], "val holds no folders"),
        (["train/cat/1", "val/cat/1"], "one class, 'cat'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(FolderError, match=message):
        read_folder(fill(tmp_path, files))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="away: no such folder"):
        read_folder(tmp_path / "away")
