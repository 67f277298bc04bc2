"""A package whose files are whole and which contradicts itself, as none does that hiera-export has built."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import PackageError
from app.repository.store import Package, PackagePath, open_package, sha256

MakePackage = Callable[..., Path]
Array = NDArray[Any]


@pytest.fixture
def folder(make_package: MakePackage) -> Path:
    """A good package, to be spoiled."""
    return make_package("model") / "model" / "1"


def opened(folder: Path, **fields: object) -> Package:
    """The package with other fields in its manifest, which has the hashes of the files as they are now."""
    file = folder / "model.json"
    manifest = json.loads(file.read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    file.write_text(json.dumps({**manifest, **fields}))
    return open_package(PackagePath("model", 1, folder))


def test_a_package_whose_hashes_were_made_anew_is_a_good_one(folder: Path) -> None:
    """Or the refusals below would be for another reason."""
    assert opened(folder).manifest.name == "model"


@pytest.mark.parametrize("missing", ["model.onnx", "golden.npz", "../labels.txt"])
def test_each_file_that_is_served_has_a_hash(folder: Path, missing: str) -> None:
    files = json.loads((folder / "model.json").read_text())["files"]
    del files[missing]
    with pytest.raises(PackageError, match=f"the manifest has no hash of {missing}"):
        opened(folder, files=files)


@pytest.mark.parametrize(("labels", "count"), [("a\nb\nc\nd\n", 4), ("a\nb\nc\nd\ne\nf\n", 6)])
def test_there_is_a_label_for_each_class(folder: Path, labels: str, count: int) -> None:
    (folder.parent / "labels.txt").write_text(labels)
    with pytest.raises(PackageError, match=f"{count} labels for 5 classes"):
        opened(folder)


@pytest.mark.parametrize("fields", [{"name": "other"}, {"version": 2}], ids=["name", "version"])
def test_a_package_in_the_folder_of_another_is_refused(folder: Path, fields: dict[str, object]) -> None:
    with pytest.raises(PackageError, match="must carry its name and version"):
        opened(folder, **fields)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda rows, answers: (rows[:0], answers[:0]), "rows are"),
        (lambda rows, answers: (rows.astype(np.float32), answers), "rows are float32"),
        (lambda rows, answers: (rows[:, :4], answers), "rows are"),
        (lambda rows, answers: (np.uint8(0), answers), "rows are"),
        (lambda rows, answers: (rows, answers[:, :-1]), "probabilities are"),
        (lambda rows, answers: (rows, answers[:-1]), "probabilities are"),
        (lambda rows, answers: (rows, answers.astype(np.float64)), "probabilities are"),
    ],
    ids=["no rows", "rows of floats", "smaller rows", "a number", "a class too few", "an answer too few", "doubles"],
)
def test_a_golden_sample_of_another_form_is_refused(
    folder: Path, spoil: Callable[[Array, Array], tuple[Array, Array]], why: str
) -> None:
    with np.load(folder / "golden.npz") as golden:
        rows, answers = spoil(golden["rows"], golden["probabilities"])
    np.savez(folder / "golden.npz", rows=rows, probabilities=answers)
    with pytest.raises(PackageError, match=rf"golden\.npz: {why}"):
        opened(folder)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def half_a_zip(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def text(file: Path) -> None:
    file.write_text("no arrays")


def one_array_alone(file: Path) -> None:
    with file.open("wb") as whole:  # `np.save` would give a path another ending
        np.save(whole, np.zeros(3))


def members_of_another_name(file: Path) -> None:
    np.savez(file, columns=np.zeros(3))


def members_that_are_no_arrays(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as whole:
        for name in ("rows", "probabilities"):
            whole.writestr(name, b"text")


def damaged_where_it_is_compressed(file: Path) -> None:
    with np.load(file) as golden:
        arrays = dict(golden)
    np.savez_compressed(file, **arrays)
    with zipfile.ZipFile(file) as whole:
        (begin,) = [each.header_offset for each in whole.infolist() if each.filename == "rows.npy"]
    content = bytearray(file.read_bytes())
    begin += 30 + len("rows.npy") + int.from_bytes(content[begin + 28 : begin + 30], "little")  # after its header
    content[begin] = 0xFF  # a kind of block that there is none of
    file.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        empty,
        half_a_zip,
        text,
        one_array_alone,
        members_of_another_name,
        members_that_are_no_arrays,
        damaged_where_it_is_compressed,
    ],
)
def test_what_is_no_golden_sample_is_a_bad_package(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder / "golden.npz")
    with pytest.raises(PackageError, match=r"golden\.npz"):
        opened(folder)
