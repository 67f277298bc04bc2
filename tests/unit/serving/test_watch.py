"""The watch of a repository of real packages, look by look."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving_fakes import PATIENCE_S

from app.engines.factory import EngineOptions
from app.errors import ChangeRefused
from app.serving.changes import Order, Report
from app.serving.deployment import ServingOptions
from app.serving.registry import ModelRegistry
from app.serving.rollout import Rollout
from app.serving.status import ModelStatus
from app.serving.watch import RepositoryWatch

MakePackage = Callable[..., Path]


class Recorder(Rollout):
    """A rollout that notes its orders."""

    orders: list[tuple[str, str | None, int | None]]

    def perform(self, order: Order) -> Report:
        assert order.by == "watch"
        self.orders.append((order.action, order.name, order.version))
        return super().perform(order)


class Post:
    """A watch over what the start has loaded; nothing looks but the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        engine = EngineOptions(name="onnxruntime", threads=1, max_batch=4)
        self.registry = ModelRegistry(root, engine, ServingOptions(warmup_budget_s=0.05))
        self.rollout = Recorder(self.registry, root)
        self.rollout.orders = []
        self.watch = RepositoryWatch(self.registry, self.rollout, root, interval_s=3600)
        self.watch.note()
        self.registry.load_all()

    def looks(self, count: int = 2) -> list[tuple[str, str | None, int | None]]:
        """What was ordered in so many looks."""
        before = len(self.rollout.orders)
        for _ in range(count):
            self.watch.look()
        return self.rollout.orders[before:]

    def served(self) -> dict[str, int]:
        return {status.name: status.version for status in self.registry.models() if status.state == "ready"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Post]]:
    posts: list[Post] = []

    def start_one() -> Post:
        posts.append(Post(tmp_path / "repo"))
        return posts[-1]

    yield start_one
    for post in posts:
        post.registry.close(PATIENCE_S)


def test_what_the_start_has_loaded_or_refused_is_no_news(make_package: MakePackage, start: Callable[[], Post]) -> None:
    make_package("model")
    make_package("bad", wrong_golden=True)
    assert start().looks(4) == []


def test_a_new_package_is_loaded_once_it_holds_still_and_once_only(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    make_package("model")
    post = start()
    make_package("new")
    assert post.looks(1) == []
    assert post.looks(1) == [("load", "new", 1)]
    assert post.looks(3) == []
    assert post.served() == {"model": 1, "new": 1}


@pytest.mark.parametrize("sign", ["size", "time", "inode"])
def test_one_sign_that_a_file_has_changed_is_enough(
    make_package: MakePackage, start: Callable[[], Post], sign: str
) -> None:
    make_package("model")
    post = start()
    graph = post.root / "model" / "1" / "model.onnx"
    before = graph.stat()
    if sign == "size":
        with graph.open("ab") as file:
            file.write(b"more")
    elif sign == "inode":
        copy = post.root.parent / "copy"
        copy.write_bytes(graph.read_bytes())
        copy.replace(graph)
    moved_ns = 10**9 if sign == "time" else 0
    os.utime(graph, ns=(before.st_atime_ns, before.st_mtime_ns + moved_ns))
    after = graph.stat()
    signs = {"size": "st_size", "time": "st_mtime_ns", "inode": "st_ino"}
    assert [each for each, field in signs.items() if getattr(before, field) != getattr(after, field)] == [sign]
    assert post.looks() == [("load", "model", 1)]


def test_what_versions_share_and_what_lies_deeper_counts_and_lower_versions_do_not(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    make_package("model", 1)
    make_package("model", 2)
    post = start()
    folder = post.root / "model"
    os.utime(folder / "labels.txt", (0, 0))
    assert post.looks() == [("load", "model", 2)]
    (folder / "2" / "more").mkdir()
    (folder / "2" / "more" / "weights").touch()
    assert post.looks() == [("load", "model", 2)]
    os.utime(folder / "1" / "model.onnx", (0, 0))
    assert post.looks(3) == []


def test_a_link_to_nowhere_among_the_files_stops_no_look(make_package: MakePackage, start: Callable[[], Post]) -> None:
    make_package("model")
    post = start()
    (post.root / "model" / "1" / "link").symlink_to("nowhere")
    make_package("new")
    assert post.looks(3) == [("load", "new", 1)]


def test_a_new_version_and_a_package_replaced_under_its_number_are_swapped(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    make_package("first")
    make_package("second")
    post = start()
    make_package("first", 2)
    shutil.rmtree(post.root / "second")
    make_package("second", seed=3)
    fingerprints = {status.name: status.fingerprint for status in post.registry.models()}
    assert post.looks() == [("load", "first", 2), ("load", "second", 1)]
    assert post.served() == {"first": 2, "second": 1}
    assert all(fingerprints[status.name] != status.fingerprint for status in post.registry.models())


def test_a_package_that_is_being_copied_is_waited_for(make_package: MakePackage, start: Callable[[], Post]) -> None:
    make_package("model")
    post = start()
    labels = post.root / "model" / "labels.txt"
    written = labels.stat()
    make_package("model", 2)
    os.utime(labels, ns=(written.st_atime_ns, written.st_mtime_ns))  # the versions share it; it is the same
    whole = post.root / "model" / "2"
    parts = {file.name: file.read_bytes() for file in whole.iterdir()}
    shutil.rmtree(whole)
    whole.mkdir()
    assert post.looks(3) == []  # a folder without a manifest is not a package yet
    (whole / "model.json").write_bytes(parts["model.json"])
    (whole / "golden.npz").write_bytes(parts["golden.npz"])
    graph = parts["model.onnx"]
    for size in range(0, len(graph), len(graph) // 3):
        (whole / "model.onnx").write_bytes(graph[:size])
        assert post.looks(1) == []
    (whole / "model.onnx").write_bytes(graph)
    assert post.looks(3) == [("load", "model", 2)]
    assert post.served() == {"model": 2}


def test_a_bad_package_is_refused_and_logged_once_and_tried_again_when_it_changes(
    make_package: MakePackage, start: Callable[[], Post], caplog: pytest.LogCaptureFixture
) -> None:
    make_package("model")
    post = start()
    make_package("model", 2)
    graph = post.root / "model" / "2" / "model.onnx"
    good = graph.read_bytes()
    graph.write_bytes(b"half")
    assert post.looks(6) == [("load", "model", 2)]
    assert len([record for record in caplog.records if "changed after the build" in record.getMessage()]) == 1
    (status,) = post.registry.models()
    assert (status.version, status.state) == (1, "ready")
    assert "version 2 was refused" in (status.reason or "")
    graph.write_bytes(good)
    assert post.looks(3) == [("load", "model", 2)]
    assert post.served() == {"model": 2}


def test_a_removed_folder_unloads_its_model_when_it_is_still_gone_at_the_next_look(
    make_package: MakePackage, start: Callable[[], Post], caplog: pytest.LogCaptureFixture
) -> None:
    make_package("model")
    make_package("other")
    post = start()
    aside = post.root.parent / "aside"
    (post.root / "other").rename(aside)
    assert post.looks(1) == []
    aside.rename(post.root / "other")
    assert post.looks(3) == []  # it was only being replaced
    shutil.rmtree(post.root / "other")
    assert post.looks(3) == [("unload", "other", None)]
    assert post.served() == {"model": 1}
    make_package("other")
    assert post.looks(2) == [("load", "other", 1)]
    assert "cannot be followed" not in caplog.text


def test_a_model_that_was_unloaded_comes_back_with_the_very_files_that_it_had(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    make_package("model")
    make_package("other")
    post = start()
    aside = post.root.parent / "aside"
    (post.root / "other").rename(aside)
    assert post.looks(3) == [("unload", "other", None)]
    aside.rename(post.root / "other")
    assert post.looks(3) == [("load", "other", 1)]


def test_the_version_below_comes_back_once_when_the_one_that_serves_is_removed(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    make_package("model", 1)
    make_package("model", 2)
    post = start()
    assert post.served() == {"model": 2}
    shutil.rmtree(post.root / "model" / "2")
    assert post.looks(6) == [("load", "model", 1)]
    assert post.served() == {"model": 1}


def test_what_an_admin_chose_after_a_version_was_removed_stays_until_that_is_removed_too(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    for version in (1, 2, 3):
        make_package("model", version)
    post = start()
    shutil.rmtree(post.root / "model" / "3")
    assert post.looks(2) == [("load", "model", 2)]
    post.registry.load("model", 1)
    assert post.looks(4) == []
    assert post.served() == {"model": 1}
    shutil.rmtree(post.root / "model" / "1")
    assert post.looks(6) == [("load", "model", 2)]
    assert post.served() == {"model": 2}


def test_a_refused_version_that_is_removed_is_no_news_of_the_one_above_it(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    for version in (1, 2):
        make_package("model", version, wrong_golden=True)
    make_package("other")
    post = start()
    with pytest.raises(ChangeRefused):
        post.registry.load("model", 1)
    shutil.rmtree(post.root / "model" / "1")
    assert post.looks(4) == []


def test_a_trouble_that_comes_again_is_said_again(
    make_package: MakePackage, start: Callable[[], Post], caplog: pytest.LogCaptureFixture
) -> None:
    make_package("model")
    make_package("other")
    post = start()
    folder, aside = post.root / "model", post.root.parent / "aside"
    for times in (1, 2):
        folder.rename(aside)
        folder.mkdir()
        assert post.looks(3) == []
        assert caplog.text.count("cannot be followed") == times
        folder.rmdir()
        aside.rename(folder)
        assert post.looks(3) == []


def test_a_repository_that_was_empty_from_the_start_is_no_trouble(
    make_package: MakePackage, start: Callable[[], Post], caplog: pytest.LogCaptureFixture
) -> None:
    post = start()
    assert post.looks(3) == []
    make_package("model")
    assert post.looks(3) == [("load", "model", 1)]
    assert "cannot be followed" not in caplog.text


def test_a_model_whose_manifest_is_missing_for_a_while_serves_on_without_a_complaint(
    make_package: MakePackage, start: Callable[[], Post], caplog: pytest.LogCaptureFixture
) -> None:
    make_package("model")
    make_package("other")
    post = start()
    manifest, aside = post.root / "model" / "1" / "model.json", post.root.parent / "aside"
    manifest.rename(aside)
    assert post.looks(3) == []
    aside.rename(manifest)
    assert post.looks(3) == []  # it is the very file
    assert post.served() == {"model": 1, "other": 1}
    assert "cannot be followed" not in caplog.text


@pytest.mark.parametrize("vanish", [True, False])
def test_an_empty_repository_unloads_nothing_and_says_so_once(
    make_package: MakePackage, start: Callable[[], Post], caplog: pytest.LogCaptureFixture, vanish: bool
) -> None:
    make_package("first")
    make_package("second")
    post = start()
    caplog.set_level(logging.WARNING, "hiera.admin")
    aside = post.root.parent / "aside"
    post.root.rename(aside)
    if not vanish:
        post.root.mkdir()
    assert post.looks(4) == []
    assert post.served() == {"first": 1, "second": 1}
    assert len([record for record in caplog.records if "cannot be followed" in record.getMessage()]) == 1
    if not vanish:
        post.root.rmdir()
    aside.rename(post.root)
    assert post.looks(4) == []
    assert post.served() == {"first": 1, "second": 1}


@pytest.mark.parametrize("hidden", ["the folder", "its contents", "a version"])
def test_a_model_whose_folder_is_empty_or_cannot_be_read_serves_on_and_the_log_says_so_once(
    make_package: MakePackage,
    start: Callable[[], Post],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    hidden: str,
) -> None:
    make_package("other")
    make_package("model", 1)
    make_package("model", 2)
    post = start()
    caplog.set_level(logging.WARNING, "hiera.admin")
    folder, aside = post.root / "model", post.root.parent / "aside"
    if hidden == "its contents":
        folder.rename(aside)
        folder.mkdir()
    elif hidden == "the folder":
        _refuse(monkeypatch, "iterdir", folder)
    else:
        _refuse(monkeypatch, "stat", folder / "2" / "model.json")
    make_package("new")  # what can be seen is followed all the same
    assert post.looks(4) == [("load", "new", 1)]
    assert post.served() == {"model": 2, "new": 1, "other": 1}
    (record,) = [record for record in caplog.records if "cannot be followed" in record.getMessage()]
    assert "in the folder of model" in record.getMessage()
    monkeypatch.undo()
    if aside.exists():
        folder.rmdir()
        aside.rename(folder)
    assert post.looks(4) == []
    make_package("model", 3)
    assert post.looks(2) == [("load", "model", 3)]


def test_a_version_that_cannot_be_read_does_not_keep_the_start_from_loading_the_others(
    make_package: MakePackage, start: Callable[[], Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package("model")
    _refuse(monkeypatch, "stat", make_package("hidden") / "hidden" / "1" / "model.json")
    post = start()
    assert post.served()["model"] == 1
    assert post.looks(3) == []


def _refuse(monkeypatch: pytest.MonkeyPatch, what: str, hidden: Path) -> None:
    """Let `Path.what` find that `hidden` is not for this user; permissions do not bind root, who may run the tests."""
    real = getattr(Path, what)

    def refuse(path: Path, **options: bool) -> object:
        if path == hidden:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, what, refuse)


def test_what_an_admin_call_chose_stays_until_the_disk_changes(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    make_package("back", 1)
    make_package("back", 2)
    make_package("off")
    make_package("other")
    post = start()
    post.registry.load("back", 1)
    post.registry.unload("off")
    assert post.looks(3) == []
    assert post.served() == {"back": 1, "other": 1}
    make_package("back", 3)
    os.utime(post.root / "off" / "1" / "model.json")
    assert post.looks(3) == [("load", "back", 3), ("load", "off", 1)]
    assert post.served() == {"back": 3, "off": 1, "other": 1}


def test_a_version_that_serves_and_is_removed_gives_way_to_the_highest_that_is_left(
    make_package: MakePackage, start: Callable[[], Post]
) -> None:
    make_package("back", 1)
    make_package("back", 2)
    post = start()
    post.registry.load("back", 1)
    shutil.rmtree(post.root / "back" / "1")
    assert post.looks(3) == [("load", "back", 2)]
    assert post.served() == {"back": 2}


def test_a_server_that_started_without_a_repository_takes_it_up_when_it_comes(
    tmp_path: Path, make_package: MakePackage, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_package("model")
    root.rename(tmp_path / "aside")
    engine = EngineOptions(name="onnxruntime", threads=1, max_batch=4)
    registry = ModelRegistry(root, engine, ServingOptions(warmup_budget_s=0.05))
    watch = RepositoryWatch(registry, Rollout(registry, root), root, interval_s=3600)
    watch.note()
    watch.look()
    (tmp_path / "aside").rename(root)
    watch.look()
    watch.look()
    assert registry.unready_reason() is None
    registry.close(PATIENCE_S)


class Ticks(threading.Event):
    """Notes how long the watch waits between two looks."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[float | None] = set()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.add(timeout)
        return super().wait(timeout)


def test_it_looks_at_its_interval_in_spite_of_every_trouble_until_it_is_stopped(
    make_package: MakePackage,
    start: Callable[[], Post],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_package("model")
    post = start()
    watch = RepositoryWatch(post.registry, post.rollout, post.root, interval_s=0.001)
    watch.note()
    watch._stop = ticks = Ticks()
    make_package("new")
    models, troubles = post.registry.models, [RuntimeError("no memory")] * 3

    def fail_at_first() -> list[ModelStatus]:
        if troubles:
            raise troubles.pop()
        return models()

    monkeypatch.setattr(post.registry, "models", fail_at_first)
    watch.start()
    [thread] = [each for each in threading.enumerate() if each.name == "watch-repository"]
    assert thread.daemon  # a process ends without waiting for a look at a disk that hangs
    end = time.monotonic() + PATIENCE_S
    while "new" not in {status.name for status in models() if status.state == "ready"} and time.monotonic() < end:
        time.sleep(0.001)
    watch.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert post.served() == {"model": 1, "new": 1}
    assert ticks.waits == {0.001}
    assert caplog.text.count("cannot be followed: RuntimeError: no memory") == 1
