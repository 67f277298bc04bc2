"""What is taken for a package, and manifests that nobody should have written."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import PackageError
from app.repository.manifest import read_manifest
from app.repository.store import PackagePath, check_hash, discover, fingerprint, open_package, removed

MakePackage = Callable[..., Path]


def found(root: Path) -> list[tuple[str, int]]:
    return [(path.name, path.version) for path in discover(root)]


@pytest.mark.parametrize("name", [b"h\xff", b"two words", b"-x", b"x" * 129, b"line\n"])
def test_a_folder_whose_name_no_model_may_have_is_passed_over_and_logged_once(
    make_package: MakePackage, caplog: pytest.LogCaptureFixture, name: bytes
) -> None:
    root = make_package("model")
    shutil.copytree(root / "model", root / os.fsdecode(name))
    for _ in range(3):
        assert found(root) == [("model", 1)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no model may have that name" in record.getMessage()
    assert record.getMessage().isascii()


def test_a_folder_that_holds_no_version_may_have_any_name(
    make_package: MakePackage, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_package("model")
    (root / "lost+found").mkdir()
    (root / "a file").touch()
    assert found(root) == [("model", 1)]
    assert not caplog.records


def test_a_version_is_a_number_as_it_is_written(make_package: MakePackage) -> None:
    root = make_package("model", 1)
    make_package("model", 10)
    for name in ("01", "010", "0", "1_0", "+1", " 1", "1.0", "\u0661"):
        (root / "model" / name).mkdir()
    assert found(root) == [("model", 1), ("model", 10)]


def test_a_repository_that_cannot_be_looked_at_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(PackageError):
        discover(tmp_path / ("x" * 300))  # longer than a name may be, which is no answer to whether it is a folder


def test_a_folder_is_removed_when_nothing_of_its_name_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    assert {name: removed(tmp_path, name) for name in ("empty", "dangling", "gone")} == {
        "empty": False,
        "dangling": False,
        "gone": True,
    }

    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", refuse)
        assert not removed(tmp_path, "gone")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        (b"\xff", "codec can't decode"),
        ('{"schema_version": ' + "1" * 5000 + "}", "digits"),
        ("[" * 200_000, "recursion"),
        ('{"x\\ud800": 1}', "surrogates not allowed"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_a_bad_package(tmp_path: Path, text: str | bytes, why: str) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PackageError, match=f"cannot be read as JSON .*{why}"):
        read_manifest(path)


@pytest.mark.parametrize("place", ["description", "licence", "file"])
def test_a_manifest_with_half_a_character_is_refused_in_words_that_can_be_sent(
    make_package: MakePackage, place: str
) -> None:
    path = make_package("model") / "model" / "1" / "model.json"
    manifest = json.loads(path.read_text())
    if place == "description":
        manifest["description"] = "x\ud800"
    elif place == "licence":
        manifest["weights"]["licence"] = "\udcff"
    else:
        manifest["files"]["\udfff"] = "0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(PackageError) as refusal:
        read_manifest(path)
    assert str(refusal.value).encode()
    assert "surrogates not allowed" in str(refusal.value)


def test_a_version_may_be_a_link_and_its_files_may_be_links(make_package: MakePackage, tmp_path: Path) -> None:
    root = make_package("model")
    (root / "model" / "1").rename(tmp_path / "released")
    (root / "model" / "1").symlink_to(tmp_path / "released")
    graph = tmp_path / "released" / "model.onnx"
    graph.rename(tmp_path / "blob")
    graph.symlink_to(tmp_path / "blob")
    (path,) = discover(root)
    assert open_package(path).manifest.name == "model"


@pytest.mark.parametrize("name", ["../../other/labels.txt", "/etc/passwd", "a/../../../b"])
def test_a_manifest_names_nothing_outside_of_its_package(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError, match="outside the package"):
        check_hash(tmp_path / "model" / "1", name, "0" * 64)


def test_a_name_that_no_file_can_have_is_a_bad_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="which no file can be called") as refusal:
        check_hash(tmp_path / "model" / "1", "model\0.onnx", "0" * 64)
    assert str(refusal.value).isprintable()


@pytest.fixture
def nothing_else_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would hang a server is an error here."""
    open_path = Path.open

    def open_file(path: Path, *args: Any, **kwargs: Any) -> Any:
        assert path.is_file() or not path.exists(), f"{path} was opened"
        return open_path(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_file)


@pytest.mark.usefixtures("nothing_else_is_opened")
@pytest.mark.parametrize("name", ["model.json", "model.onnx", "golden.npz", "../labels.txt"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(make_package: MakePackage, name: str) -> None:
    folder = make_package("model") / "model" / "1"
    (folder / name).unlink()
    os.mkfifo(folder / name)  # whoever opens it waits for a writer
    with pytest.raises(PackageError, match=rf"{name}.*no regular file"):
        open_package(PackagePath("model", 1, folder))
    if name == "model.json":
        with pytest.raises(PackageError, match="no regular file"):
            read_manifest(folder / name)


@pytest.mark.usefixtures("nothing_else_is_opened")
def test_a_link_to_a_device_is_no_regular_file_either(make_package: MakePackage) -> None:
    folder = make_package("model") / "model" / "1"
    (folder / "model.json").unlink()
    (folder / "model.json").symlink_to("/dev/zero")  # whoever reads it never ends
    path = PackagePath("model", 1, folder)
    assert fingerprint(path) is None
    with pytest.raises(PackageError, match=r"model\.json: cannot be read \(it is no regular file\)"):
        open_package(path)


def test_a_model_that_may_not_be_read_is_said_once(
    make_package: MakePackage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported by root, served by another user: without a word the server would be ready, and know no such model."""
    root = make_package("model")
    make_package("other")
    (root / "lost+found").mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name in ("model", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert found(root) == found(root) == [("other", 1)]
    assert [record.getMessage() for record in caplog.records] == [
        f"'{root / 'model'}' is passed over: it may not be read by this user"
    ]
