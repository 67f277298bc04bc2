"""What a labels file says line by line, and a crop that its picture does not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import PackageError
from app.repository.manifest import read_manifest
from app.repository.store import read_labels

MakePackage = Callable[..., Path]


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("one\ntwo", ("one", "two")),
        ("one\r\ntwo\r\n\r\n \n", ("one", "two")),
        ("\ufeffone\ntwo\n", ("one", "two")),
        ("a\u2028b\nc\fd\ne\x85f\ng\x1ch\n", ("a\u2028b", "c\fd", "e\x85f", "g\x1ch")),
    ],
)
def test_a_class_is_a_line_and_nothing_else(tmp_path: Path, content: str, labels: tuple[str, ...]) -> None:
    (tmp_path / "labels.txt").write_bytes(content.encode())
    assert read_labels(tmp_path / "labels.txt") == labels


@pytest.mark.parametrize("content", ["", "\ufeff", "\n\n", "one\n\ntwo", "\ufeff\none"])
def test_a_line_without_a_class_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.txt").write_bytes(content.encode())
    with pytest.raises(PackageError, match="no blank line"):
        read_labels(tmp_path / "labels.txt")


def test_a_crop_larger_than_the_picture_is_a_bad_package(make_package: MakePackage) -> None:
    path = make_package("model") / "model" / "1" / "model.json"
    manifest = json.loads(path.read_text())
    manifest["preprocessing"]["resize_short_side"] = 8
    path.write_text(json.dumps(manifest))
    assert read_manifest(path).preprocessing.resize_short_side == 8
    manifest["preprocessing"]["resize_short_side"] = 7
    path.write_text(json.dumps(manifest))
    with pytest.raises(PackageError) as refused:
        read_manifest(path)
    assert str(refused.value) == f"{path}: preprocessing: a crop of 8x8 does not fit a short side of 7"


@pytest.mark.parametrize("side", ["height", "width"])
def test_a_crop_that_is_too_large_on_one_side_is_a_bad_package(make_package: MakePackage, side: str) -> None:
    path = make_package("model") / "model" / "1" / "model.json"
    manifest = json.loads(path.read_text())
    manifest["preprocessing"][side] = manifest["preprocessing"]["resize_short_side"] + 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(PackageError, match="does not fit a short side"):
        read_manifest(path)
