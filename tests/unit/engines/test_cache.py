"""The engines' cache folder, and compiled models that are kept in it for the next start."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import time
from pathlib import Path

import pytest

from app.engines.cache import keep_compiled, usable_cache


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "caches" / "hiera"
    assert usable_cache(folder) == folder
    assert folder.is_dir()
    assert list(folder.iterdir()) == [], "the trial left something"


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        for folder in (tmp_path / "file" / "cache", Path("/proc/self")):  # in the latter even root cannot make a file
            assert usable_cache(folder) is None
    assert len(caplog.records) == 2
    assert "/proc/self cannot be used" in caplog.text


def test_none_stays_none(caplog: pytest.LogCaptureFixture) -> None:
    assert usable_cache(None) is None
    assert not caplog.records


class Library:
    """Leaves a file where it is told to, as a compiler does, and takes it from there the next time."""

    def __init__(self) -> None:
        self.folders: list[Path | None] = []
        self.compiled = 0

    def __call__(self, folder: Path | None) -> bytes:
        self.folders.append(folder)
        if folder is not None and (folder / "blob").exists():
            return (folder / "blob").read_bytes()
        self.compiled += 1
        if folder is not None:
            (folder / "blob").write_bytes(b"compiled")
        return b"compiled"


@pytest.fixture
def library() -> Library:
    return Library()


def blob(root: Path) -> Path:
    (found,) = root.glob("*/blob")
    return found


def test_what_was_compiled_is_used_again_for_the_same_and_for_nothing_else(tmp_path: Path, library: Library) -> None:
    root = tmp_path / "new"
    assert {keep_compiled(root, "one", library) for _ in range(3)} == {b"compiled"}
    assert library.compiled == 1
    keep_compiled(root, "another", library)
    assert library.compiled == 2


@pytest.mark.parametrize(
    "damage", ["a byte", "its end", "all", "gone", "more", "its digests", "no digests but a folder"]
)
def test_what_the_disk_has_damaged_is_made_again(
    tmp_path: Path, library: Library, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep_compiled(tmp_path, "one", library)
    match damage:
        case "a byte":
            blob(tmp_path).write_bytes(b"compileD")
        case "its end":
            blob(tmp_path).write_bytes(b"compil")
        case "all":
            blob(tmp_path).write_bytes(b"")
        case "gone":
            blob(tmp_path).unlink()
        case "more":
            blob(tmp_path).with_name("another").touch()
        case "its digests":
            blob(tmp_path).with_name("digests.json").write_bytes(b"\0\xff{")
        case "no digests but a folder":
            blob(tmp_path).with_name("digests.json").unlink()
            blob(tmp_path).with_name("digests.json").mkdir()
    assert keep_compiled(tmp_path, "one", library) == keep_compiled(tmp_path, "one", library) == b"compiled"
    assert library.compiled == 2
    assert "made again" in caplog.text


def test_who_has_mapped_a_file_keeps_it_when_another_makes_it_again(tmp_path: Path, library: Library) -> None:
    keep_compiled(tmp_path, "one", library)
    with blob(tmp_path).open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        blob(tmp_path).with_name("digests.json").write_text("{}")
        keep_compiled(tmp_path, "one", library)
        assert library.compiled == 2
        assert not blob(tmp_path).samefile(f"/proc/self/fd/{file.fileno()}")
        assert mapped[:] == b"compiled"


def test_while_another_process_compiles_the_same_nothing_is_kept_and_nobody_waits(
    tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    keep_compiled(tmp_path, "one", library)
    blob(tmp_path).unlink()
    (lock,) = tmp_path.glob("*.lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert keep_compiled(tmp_path, "one", library) == b"compiled"
    assert library.folders[-1] is None
    assert not list(tmp_path.glob("*/blob"))
    assert "not kept" not in caplog.text


def test_what_a_killed_process_left_unfinished_is_not_used_and_goes(tmp_path: Path, library: Library) -> None:
    keep_compiled(tmp_path, "one", library)
    kept = blob(tmp_path).parent
    unfinished = kept.rename(kept.with_suffix(".unfinished"))
    (unfinished / "blob").write_bytes(b"half")
    assert keep_compiled(tmp_path, "one", library) == b"compiled"
    assert library.compiled == 2
    assert not unfinished.exists()


def test_where_a_library_leaves_nothing_or_fails_nothing_is_kept(tmp_path: Path, library: Library) -> None:
    def failing(folder: Path | None) -> bytes:
        assert folder is not None
        (folder / "blob").write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        keep_compiled(tmp_path, "one", failing)
    assert keep_compiled(tmp_path, "one", lambda folder: b"no room") == b"no room"
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert keep_compiled(tmp_path, "one", library) == b"compiled"
    assert library.compiled == 1


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()  # below it even root cannot make a folder
    with caplog.at_level(logging.WARNING):
        assert keep_compiled(tmp_path / "file", "one", library) == b"compiled"
    assert library.folders == [None]
    assert [record.message.partition(" in ")[0] for record in caplog.records] == ["compiled models are not kept"]


def test_what_cannot_be_put_in_its_place_is_used_this_once(
    tmp_path: Path, library: Library, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    assert keep_compiled(tmp_path, "one", library) == b"compiled"
    assert library.compiled == 1
    assert "a compiled model is not kept for the next start" in caplog.text
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_was_not_used_for_a_month_goes_when_something_new_comes(tmp_path: Path, library: Library) -> None:
    keep_compiled(tmp_path, "old", library)
    keep_compiled(tmp_path, "used again", library)
    long_ago = time.time() - 31 * 86400
    for digests in tmp_path.glob("*/digests.json"):
        os.utime(digests, (long_ago, long_ago))
    keep_compiled(tmp_path, "used again", library)
    assert len(list(tmp_path.glob("*/blob"))) == 2
    keep_compiled(tmp_path, "new", library)
    assert len(list(tmp_path.glob("*/blob"))) == 2
    keep_compiled(tmp_path, "used again", library)
    assert library.compiled == 3
    keep_compiled(tmp_path, "old", library)
    assert library.compiled == 4


def test_what_was_used_within_a_month_stays(tmp_path: Path, library: Library) -> None:
    keep_compiled(tmp_path, "one", library)
    of_this_month = time.time() - 29 * 86400
    os.utime(blob(tmp_path).with_name("digests.json"), (of_this_month, of_this_month))
    keep_compiled(tmp_path, "new", library)
    assert len(list(tmp_path.glob("*/blob"))) == 2


def test_a_cache_that_may_only_be_read_is_read(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_compiled(tmp_path, "graph", library)

    def refuse(self: Path) -> None:
        raise PermissionError(self)

    monkeypatch.setattr(Path, "touch", refuse)
    assert keep_compiled(tmp_path, "graph", library) == b"compiled"
    assert library.compiled == 1
