"""Real packages with real engines in a registry: states, defaults, and one bad package among good ones."""

from __future__ import annotations

import shutil
import threading
import time
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


def test_noop_is_loud(make_package: MakePackage, make_registry: MakeRegistry, caplog: pytest.LogCaptureFixture) -> None:
    make_package("model")
    registry = make_registry(engine_options=EngineOptions(name="noop"))
    registry.load_all()
    model = registry.get("image", None)
    model.release()
    assert model.identity.noop
    assert "NO MODEL IS RUN" in caplog.text
