"""Real packages with real engines in a registry: states, defaults, and one bad package among good ones."""

from __future__ import annotations

import gc
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_scenes import MakePackage, MakeRegistry, answer, name_of, status_of
from serving_fakes import PATIENCE_S, Gate

from app.engines.factory import EngineOptions
from app.errors import PackageError, Unavailable, UnknownModel
from app.media.spec import ImageSpec, VideoSpec
from app.repository import store
from app.serving import registry as registry_module


def test_every_good_package_is_served_and_a_bad_one_says_why(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    root = make_package("good")
    make_package("wrong", wrong_golden=True)
    make_package("changed")
    (root / "changed" / "1" / "model.onnx").write_bytes(b"something else")
    make_package("unread")
    (root / "unread" / "1" / "model.json").write_text("{")
    registry = make_registry()
    registry.load_all()
    assert {status.name: status.state for status in registry.models()} == {
        "good": "ready",
        "wrong": "failed",
        "changed": "failed",
        "unread": "failed",
    }
    assert "disagrees with the reference" in (status_of(registry, "wrong").reason or "")
    assert "changed after the build" in (status_of(registry, "changed").reason or "")
    assert "JSON" in (status_of(registry, "unread").reason or "")
    assert registry.unready_reason() is None
    assert answer(registry, "good") == answer(registry)
    with pytest.raises(Unavailable, match="could not be loaded"):
        registry.get("image", "wrong")


def test_before_loading_nothing_is_ready_and_everything_is_unavailable(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("good")
    registry = make_registry()
    assert registry.unready_reason() == "the models are being loaded"
    with pytest.raises(Unavailable):
        registry.get("image", None)


def test_a_repository_without_packages_is_never_ready(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    registry = make_registry()
    registry.load_all()
    assert "holds no model package" in (registry.unready_reason() or "")
    with pytest.raises(UnknownModel):
        registry.get("image", None)


def test_a_folder_that_is_missing_is_refused(
    tmp_path: Path, make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    registry = make_registry(tmp_path / "repo" / "later")
    with pytest.raises(PackageError, match="no such folder"):
        registry.load_all()
    assert registry.unready_reason() == "the model repository cannot be read"
    shutil.copytree(make_package("model"), tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "repo" / "later")
    assert registry.load("model").outcome == "loaded"
    assert registry.unready_reason() is None


def test_a_folder_that_is_not_for_us_is_no_package(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    """As lost+found at the root of a volume."""
    root = make_package("model")
    (root / "a-file").touch()
    (root / "lost+found").mkdir()
    discovered = store.discover(root)
    with pytest.MonkeyPatch.context() as patch:
        iterdir = Path.iterdir

        def refuse(folder: Path) -> Iterator[Path]:
            if folder.name == "lost+found":
                raise PermissionError(13, "Permission denied", str(folder))
            return iterdir(folder)

        patch.setattr(Path, "iterdir", refuse)
        assert store.discover(root) == discovered


def test_the_highest_version_of_a_name_is_served(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    for version in (2, 10, 9):
        make_package("model", version)
    registry = make_registry()
    registry.load_all()
    assert [(status.name, status.version) for status in registry.models()] == [("model", 10)]


def test_a_real_model_answers_before_a_demo_and_random_weights_come_last(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("a_random", random_seed=0)
    make_package("b_demo", demo=True)
    make_package("c_real")
    make_package("d_video", task="video")
    registry = make_registry()
    registry.load_all()
    assert (name_of(registry, "image"), name_of(registry, "video")) == ("c_real", "d_video")
    assert [status.name for status in registry.models() if status.default] == ["c_real", "d_video"]
    registry.unload("c_real")
    assert name_of(registry, "image") == "b_demo"
    registry.unload("b_demo")
    assert name_of(registry, "image") == "a_random"


def test_a_setting_names_the_default(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    make_package("demo", demo=True)
    make_package("real")
    registry = make_registry(defaults={"image": "demo"})
    registry.load_all()
    assert name_of(registry, "image") == "demo"


def test_a_model_of_the_other_task_is_not_found(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    make_package("photos")
    registry = make_registry()
    registry.load_all()
    with pytest.raises(UnknownModel, match="task image, not video"):
        registry.get("video", "photos")
    with pytest.raises(UnknownModel, match="no model named films"):
        registry.get("video", "films")
    with pytest.raises(UnknownModel, match="no model for the task video"):
        registry.get("video", None)


def test_the_manifest_says_what_is_decoded(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    make_package("photos")
    make_package("films", task="video")
    registry = make_registry()
    registry.load_all()
    photos, films = registry.get("image", None), registry.get("video", None)
    assert photos.job().spec == ImageSpec(9, 8, 8, "bicubic")
    job = films.job(clips=2, crops=3)
    assert (job.clips, job.crops) == (2, 3)
    assert job.spec == VideoSpec(4, 4, 30.0, "dense", 9, 8, 8, "bicubic")
    photos.release()
    films.release()


def test_at_the_start_a_bad_version_gives_way_to_the_one_before_it(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("model", 1)
    make_package("model", 2, wrong_golden=True)
    make_package("hopeless", 1, wrong_golden=True)
    make_package("hopeless", 2, wrong_golden=True)
    registry = make_registry()
    registry.load_all()
    status = status_of(registry, "model")
    assert (status.state, status.version) == ("ready", 1)
    assert "version 2 was refused" in (status.reason or "")
    status = status_of(registry, "hopeless")
    assert (status.state, status.version) == ("failed", 2)
    assert "version 2 was refused" in (status.reason or "")


def test_no_demo_answers_for_the_default_while_models_are_loaded(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package("demo", demo=True)
    make_package("real")
    loading = Gate()

    def open_slowly(path: store.PackagePath) -> store.Package:
        if path.name == "real":
            loading([])
        return store.open_package(path)

    monkeypatch.setattr(registry_module, "open_package", open_slowly)
    registry = make_registry()
    loader = threading.Thread(target=registry.load_all)
    loader.start()
    loading.wait_entered()
    end = time.monotonic() + PATIENCE_S
    while {each.name: each.state for each in registry.models()}["demo"] != "ready" and time.monotonic() < end:
        time.sleep(0.001)
    with pytest.raises(Unavailable, match="being loaded"):
        registry.get("image", None)
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "load-real"] == [True]
    registry.get("image", "demo").release()
    loading.open()
    loader.join(PATIENCE_S)
    model = registry.get("image", None)
    model.release()
    assert model.name == "real"


def test_a_default_that_is_not_there_is_said_at_the_start_and_to_who_relies_on_it(
    make_package: MakePackage, make_registry: MakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    make_package("model")
    registry = make_registry(defaults={"image": "modle", "video": "model"})
    registry.load_all()
    assert "HIERA_DEFAULT_IMAGE_MODEL is modle, which is no model for the task image" in caplog.text
    assert "HIERA_DEFAULT_VIDEO_MODEL is model, which is no model for the task video" in caplog.text
    with pytest.raises(
        UnknownModel, match=r"the default model for the task image is not there; name one with \?model="
    ):
        registry.get("image", None)
    with pytest.raises(UnknownModel, match="there is no model named modle"):
        registry.get("image", "modle")


def test_a_default_whose_manifest_cannot_be_read_is_not_said_to_be_missing(
    make_package: MakePackage, make_registry: MakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_package("model")
    (root / "model" / "1" / "model.json").write_text("{")
    make_registry(defaults={"image": "model"}).load_all()
    assert "model version 1 is not served" in caplog.text
    assert "HIERA_DEFAULT_IMAGE_MODEL" not in caplog.text


def test_what_was_measured_is_kept_in_the_cache_folder(
    tmp_path: Path, make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("model")
    options = EngineOptions(name="onnxruntime", threads=1, max_batch=4, cache_dir=tmp_path / "cache")
    make_registry(engine_options=options).load_all()
    assert [file.suffix for file in (tmp_path / "cache" / "measured").iterdir()] == [".json"]


def test_at_the_start_the_log_traces_what_nobody_expected_and_only_that(
    make_package: MakePackage,
    make_registry: MakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_package("bad", wrong_golden=True)
    make_package("odd")

    def open_oddly(path: store.PackagePath) -> store.Package:
        if path.name == "odd":
            raise RuntimeError("no memory at /a/place")
        return store.open_package(path)

    monkeypatch.setattr(registry_module, "open_package", open_oddly)
    registry = make_registry()
    registry.load_all()
    said = {record.getMessage().split()[0]: record for record in caplog.records if "is not served" in record.msg}
    assert said.keys() == {"bad", "odd"}
    assert not said["bad"].exc_info
    assert said["odd"].exc_info
    reason = status_of(registry, "odd").reason
    assert reason == "version 1 was refused: its engine failed; the server's log says how"


def test_a_version_that_gave_way_leaves_nothing_for_the_garbage_collector(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[store.Package]] = []

    def open_noted(path: store.PackagePath) -> store.Package:
        package = store.open_package(path)
        opened.append(weakref.ref(package))
        return package

    monkeypatch.setattr(registry_module, "open_package", open_noted)
    make_package("model", 1)
    make_package("model", 2, wrong_golden=True)
    registry = make_registry()
    logging.disable(logging.CRITICAL)  # pytest keeps what the log is told
    gc.collect()
    gc.disable()
    try:
        registry.load_all()
        assert [package() is None for package in opened] == [True, False]
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


def test_strangers_read_no_path_of_the_repository_by_either_of_its_names(
    tmp_path: Path, make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, link = make_package("model"), tmp_path / "link"
    link.symlink_to(root)

    def refuse(path: store.PackagePath) -> store.Package:
        raise PackageError(f"{path.folder}: is not {path.folder.resolve()}/model.onnx")

    monkeypatch.setattr(registry_module, "open_package", refuse)
    registry = make_registry(link)
    registry.load_all()
    reason = status_of(registry, "model").reason
    assert reason == "version 1 was refused: model/1: is not model/1/model.onnx"


def test_noop_is_loud(make_package: MakePackage, make_registry: MakeRegistry, caplog: pytest.LogCaptureFixture) -> None:
    make_package("model")
    registry = make_registry(engine_options=EngineOptions(name="noop"))
    registry.load_all()
    model = registry.get("image", None)
    model.release()
    assert model.identity.noop
    assert "NO MODEL IS RUN" in caplog.text
