"""Real packages with real engines in a registry: states, defaults, swaps, and one bad package among good ones."""

from __future__ import annotations

import asyncio
import gc
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_fakes import PATIENCE_S, FakeRows, Gate

from app.engines.base import Engine
from app.engines.factory import EngineOptions, create_engine
from app.errors import ChangeRefused, PackageError, Unavailable, UnknownModel
from app.media.spec import ImageSpec, VideoSpec
from app.repository import store
from app.serving import registry as registry_module
from app.serving import selection
from app.serving.deployment import ServingOptions
from app.serving.observer import SilentObserver
from app.serving.registry import ModelRegistry
from app.serving.results import Task
from app.serving.status import ModelStatus
from app.serving.supervisor import SupervisionOptions
from app.telemetry.metrics import Metrics

MakePackage = Callable[..., Path]
MakeRegistry = Callable[..., ModelRegistry]
ENGINE = EngineOptions(name="onnxruntime", threads=1, max_batch=4)
OPTIONS = ServingOptions(warmup_budget_s=0.05)
WATCHFUL = ServingOptions(
    warmup_budget_s=0.05,
    supervision=SupervisionOptions(interval_s=0.002, stuck_floor_s=0.5, stuck_factor=1, first_pause_s=0),
)


@pytest.fixture
def make_registry(tmp_path: Path) -> Iterator[MakeRegistry]:
    made: list[ModelRegistry] = []

    def make(**more: object) -> ModelRegistry:
        registry = ModelRegistry(
            tmp_path / "repo",
            more.pop("engine", ENGINE),  # type: ignore[arg-type]
            more.pop("options", OPTIONS),  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )
        made.append(registry)
        return registry

    yield make
    for registry in made:
        registry.close(PATIENCE_S)


def status_of(registry: ModelRegistry, name: str) -> ModelStatus:
    (status,) = [status for status in registry.models() if status.name == name]
    return status


def stop_runs(engine: Engine, gate: Gate, begins: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold each run of an engine at the gate, once `begins` is set."""
    inner = engine.run

    def run(rows: np.ndarray) -> np.ndarray:
        if begins.is_set():
            gate([])
        return inner(rows)

    monkeypatch.setattr(engine, "run", run)


def answer(registry: ModelRegistry, name: str | None = None, colour: int = 0) -> int:
    """The class that a model names for a picture of one primary colour."""
    model = registry.get("image", name)
    try:
        rows = np.zeros((1, 8, 8, 3), np.uint8)
        rows[..., colour] = 255
        inference = asyncio.run(model.dispatcher.infer(FakeRows(rows), time.monotonic() + PATIENCE_S))
        return int(inference.probabilities[0].argmax())
    finally:
        model.release()


def name_of(registry: ModelRegistry, task: Task) -> str:
    model = registry.get(task, None)
    model.release()
    return model.name


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


def test_a_folder_that_is_missing_is_refused(tmp_path: Path, make_package: MakePackage) -> None:
    registry = ModelRegistry(tmp_path / "repo" / "later", ENGINE, OPTIONS)
    with pytest.raises(PackageError, match="no such folder"):
        registry.load_all()
    assert registry.unready_reason() == "the model repository cannot be read"
    shutil.copytree(make_package("model"), tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / "repo" / "later")
    assert registry.load("model").outcome == "loaded"
    assert registry.unready_reason() is None
    registry.close(PATIENCE_S)


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


def test_a_new_version_takes_over_and_the_old_one_finishes_what_it_holds(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("model", 1, seed=0)
    registry = make_registry()
    registry.load_all()
    old = registry.get("image", "model")
    make_package("model", 2, seed=3)
    swap = threading.Thread(target=registry.load, args=("model",))
    swap.start()
    end = time.monotonic() + PATIENCE_S
    while status_of(registry, "model").version != 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert swap.is_alive()  # the old one is still held
    new = registry.get("image", "model")
    assert (old.version, new.version) == (1, 2)
    rows = FakeRows(np.full((1, 8, 8, 3), 200, np.uint8))
    asyncio.run(old.dispatcher.infer(rows, time.monotonic() + PATIENCE_S))
    old.release()
    swap.join(PATIENCE_S)
    assert not swap.is_alive()
    with pytest.raises(Unavailable):
        asyncio.run(old.dispatcher.infer(rows, time.monotonic() + PATIENCE_S))
    new.release()


def test_a_bad_version_never_replaces_a_good_one(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    make_package("model", 1)
    registry = make_registry()
    registry.load_all()
    make_package("model", 2, wrong_golden=True)
    with pytest.raises(ChangeRefused, match=r"version 2 is refused: .*disagrees"):
        registry.load("model")
    status = status_of(registry, "model")
    assert (status.state, status.version) == ("ready", 1)
    assert "version 2 was refused" in (status.reason or "")
    assert answer(registry, "model") >= 0
    assert registry.unready_reason() is None


def test_a_new_model_can_be_added_and_an_old_one_taken_out(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("first")
    registry = make_registry()
    registry.load_all()
    make_package("second")
    loaded = registry.load("second")
    assert (loaded.outcome, loaded.version, loaded.replaced) == ("loaded", 1, None)
    assert "passed the golden check" in (loaded.golden or "")
    assert answer(registry, "second") >= 0
    registry.unload("first")
    assert [status.name for status in registry.models()] == ["second"]
    for change in (registry.load, registry.unload):
        with pytest.raises(UnknownModel):
            change("third")


def test_a_swap_says_what_it_did_and_a_second_one_finds_nothing_to_do(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("model", 1)
    registry = make_registry()
    registry.load_all()
    make_package("model", 2)
    change = registry.load("model")
    assert (change.outcome, change.version, change.replaced, change.drained) == ("swapped", 2, 1, True)
    assert change.ready_s > 0
    assert registry.load("model").outcome == "unchanged"


def test_a_version_can_be_asked_for_and_one_that_is_not_there_is_named(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("model", 1)
    make_package("model", 3)
    registry = make_registry()
    registry.load_all()
    assert (registry.load("model", 1).version, status_of(registry, "model").version) == (1, 1)
    with pytest.raises(UnknownModel, match="no version 2 of model; it has 1, 3"):
        registry.load("model", 2)


def test_a_package_that_was_replaced_under_its_number_is_swapped(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    root = make_package("model", seed=0)
    registry = make_registry()
    registry.load_all()
    before = [answer(registry, colour=colour) for colour in range(3)]
    shutil.rmtree(root / "model")
    make_package("model", seed=3)
    change = registry.load("model")
    assert (change.outcome, change.version, change.replaced) == ("swapped", 1, 1)
    assert [answer(registry, colour=colour) for colour in range(3)] != before


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


def test_the_server_stays_ready_while_a_further_model_is_loaded(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_package("first")
    registry = make_registry()
    registry.load_all()
    gate = Gate()

    def create(*args: object) -> Engine:
        gate([])
        return create_engine(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "create_engine", create)
    make_package("second")
    loading = threading.Thread(target=registry.load, args=("second",))
    loading.start()
    gate.wait_entered()
    assert status_of(registry, "second").state == "loading"
    assert registry.unready_reason() is None
    assert answer(registry) == answer(registry, "first")
    with pytest.raises(Unavailable, match="being loaded"):
        registry.get("image", "second")
    gate.open()
    loading.join(PATIENCE_S)
    assert status_of(registry, "second").state == "ready"


def test_a_file_system_that_hangs_stops_no_request_and_no_health_check(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_package("model")
    registry = make_registry()
    registry.load_all()
    manifest = root / "model" / "2" / "model.json"
    manifest.parent.mkdir()
    manifest.touch()
    disk, open_path = Gate(), Path.open

    def open_when_the_disk_answers(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == manifest:
            disk([])
        return open_path(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_when_the_disk_answers)
    refusals: list[ChangeRefused] = []

    def load() -> None:
        try:
            registry.load("model")
        except ChangeRefused as error:
            refusals.append(error)

    asked: list[object] = []
    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    disk.wait_entered()
    asking = threading.Thread(target=lambda: asked.append((registry.unready_reason(), answer(registry))), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    was_answered = bool(asked)
    disk.open()
    loading.join(PATIENCE_S)
    assert was_answered
    assert "version 2 is refused" in str(refusals[0])


def test_an_unloaded_model_is_unavailable_until_it_is_drained_and_unknown_after(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("model")
    make_package("other")
    registry = make_registry()
    registry.load_all()
    held = registry.get("image", "model")
    unload = threading.Thread(target=registry.unload, args=("model",))
    unload.start()
    end = time.monotonic() + PATIENCE_S
    while status_of(registry, "model").state != "unloading" and time.monotonic() < end:
        time.sleep(0.001)
    with pytest.raises(Unavailable, match="being unloaded"):
        registry.get("image", "model")
    assert registry.unready_reason() is None
    rows = FakeRows(np.zeros((1, 8, 8, 3), np.uint8))
    asyncio.run(held.dispatcher.infer(rows, time.monotonic() + PATIENCE_S))
    held.release()
    unload.join(PATIENCE_S)
    with pytest.raises(UnknownModel):
        registry.get("image", "model")


@pytest.mark.parametrize("swap", [True, False])
def test_what_was_replaced_or_unloaded_gives_its_memory_back_without_the_garbage_collector(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch, swap: bool
) -> None:
    remains: list[weakref.ref[object]] = []

    def create(name: str, *args: object) -> Engine:
        engine = create_engine(name, *args)  # type: ignore[arg-type]
        remains.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(selection, "create_engine", create)
    make_package("model", 1)
    registry = make_registry()
    registry.load_all()
    assert answer(registry) >= 0
    (deployment,) = [entry.deployment for entry in registry._catalog._entries.values()]
    remains += [weakref.ref(deployment), weakref.ref(deployment.package), weakref.ref(deployment.model)]  # type: ignore[union-attr]
    del deployment
    make_package("model", 2)
    time.sleep(0.1)  # the supervisor has looked, and must not hold what it has seen
    gc.collect()
    gc.disable()
    try:
        if swap:
            registry.load("model")
        else:
            registry.unload("model")
        assert [remain() for remain in remains[:4]] == [None] * 4
    finally:
        gc.enable()


def test_a_closed_registry_changes_nothing(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    make_package("model")
    registry = make_registry()
    registry.load_all()
    registry.close(PATIENCE_S)
    for change in (registry.load, registry.unload):
        with pytest.raises(Unavailable, match="shutting down"):
            change("model")


def test_what_telemetry_hears_of_a_swap_and_an_unload(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    metrics = Metrics()
    make_package("model", 1)
    registry = make_registry(observer=metrics)
    registry.load_all()

    def versions(family: str) -> list[str]:
        text, _ = metrics.render("")
        return sorted(re.findall(rf'^{family}{{.*version="(\d+)".*}} 1.0$', text.decode(), re.MULTILINE))

    def one_row() -> float | None:
        return metrics.registry.get_sample_value("hiera_batch_cost_seconds", {"model": "model", "rows": "1"})

    assert versions("hiera_model_ready") == versions("hiera_engine_info") == ["1"]
    make_package("model", 2)
    registry.load("model")
    assert versions("hiera_model_ready") == versions("hiera_engine_info") == ["2"]
    assert one_row() is not None  # what the old version takes with it was there before the new one's
    answer(registry)
    registry.unload("model")
    text, _ = metrics.render("")
    left = {line.partition("{")[0] for line in text.decode().splitlines() if 'model="model"' in line}
    assert not left & {"hiera_model_ready", "hiera_engine_info", "hiera_batch_cost_seconds", "hiera_queue_rows"}
    assert "hiera_rows_total" in left


def ready_series(metrics: Metrics) -> dict[str, float]:
    """What is said of each version of `model`."""
    text, _ = metrics.render("")
    found = re.findall(r'^hiera_model_ready{model="model",version="(\d+)"} (.*)$', text.decode(), re.MULTILINE)
    return {version: float(value) for version, value in found}


def test_telemetry_hears_of_a_model_that_was_refused(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    metrics = Metrics()
    root = make_package("model", 1, wrong_golden=True)
    make_package("model", 2, wrong_golden=True)
    registry = make_registry(observer=metrics)
    registry.load_all()
    assert ready_series(metrics) == {"2": 0}
    make_package("model", 3)
    registry.load("model")
    assert ready_series(metrics) == {"3": 1}
    make_package("model", 4, wrong_golden=True)
    with pytest.raises(ChangeRefused):
        registry.load("model")  # 3 serves on
    assert ready_series(metrics) == {"3": 1}
    registry.unload("model")
    with pytest.raises(ChangeRefused):
        registry.load("model", 1)
    assert ready_series(metrics) == {"1": 0}
    registry.unload("model")
    assert ready_series(metrics) == {}
    shutil.rmtree(root / "model")


def test_telemetry_hears_of_the_version_that_took_the_place_of_a_refused_one(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    metrics = Metrics()
    make_package("model", 1)
    make_package("model", 2, wrong_golden=True)
    registry = make_registry(observer=metrics)
    registry.load_all()
    assert ready_series(metrics) == {"1": 1}


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


def test_the_queue_of_the_version_before_does_not_stay_in_the_metrics(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, built = Gate(), 0

    def create(*args: object) -> Engine:
        nonlocal built
        built += 1
        engine = create_engine(*args)  # type: ignore[arg-type]
        if built == 1:
            stop_runs(engine, gate, serving, monkeypatch)
        return engine

    serving = threading.Event()
    monkeypatch.setattr(selection, "create_engine", create)
    metrics = Metrics()
    make_package("model", 1)
    registry = make_registry(observer=metrics)
    registry.load_all()
    serving.set()
    callers = [threading.Thread(target=answer, args=(registry,)) for _ in range(3)]
    callers[0].start()
    gate.wait_entered()  # the others wait behind it
    for caller in callers[1:]:
        caller.start()

    def queue() -> float | None:
        return metrics.registry.get_sample_value("hiera_queue_rows", {"model": "model"})

    end = time.monotonic() + PATIENCE_S
    while queue() != 2 and time.monotonic() < end:
        time.sleep(0.001)
    assert queue() == 2
    make_package("model", 2)
    swap = threading.Thread(target=registry.load, args=("model",))
    swap.start()
    while status_of(registry, "model").version != 2 and time.monotonic() < end:
        time.sleep(0.001)
    gate.open()
    for thread in (*callers, swap):
        thread.join(PATIENCE_S)
    assert queue() == 0


def test_a_failed_model_can_be_mended_and_loaded(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    root = make_package("model", wrong_golden=True)
    registry = make_registry()
    registry.load_all()
    assert registry.unready_reason() == "no model could be loaded"
    shutil.rmtree(root / "model")
    make_package("model")
    registry.load("model")
    assert registry.unready_reason() is None


def test_noop_is_loud(make_package: MakePackage, make_registry: MakeRegistry, caplog: pytest.LogCaptureFixture) -> None:
    make_package("model")
    registry = make_registry(engine=EngineOptions(name="noop"))
    registry.load_all()
    model = registry.get("image", None)
    model.release()
    assert model.identity.noop
    assert "NO MODEL IS RUN" in caplog.text


def test_a_stuck_engine_makes_the_model_unready_until_it_is_rebuilt(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    stuck = threading.Event()
    built = 0
    readiness: list[bool] = []

    class Watcher(SilentObserver):
        def model_ready(self, model: str, version: int, ready: bool) -> None:
            readiness.append(ready)

    def create(name: str, *args: object) -> Engine:
        nonlocal built
        built += 1
        engine = create_engine(name, *args)  # type: ignore[arg-type]
        if built == 1:
            stop_runs(engine, gate, stuck, monkeypatch)
        else:
            rebuilding([])
        return engine

    rebuilding = Gate()
    make_package("model")
    monkeypatch.setattr(selection, "create_engine", create)
    registry = make_registry(options=WATCHFUL, observer=Watcher())
    registry.load_all()
    assert answer(registry) >= 0
    stuck.set()
    model = registry.get("image", None)
    rows = FakeRows(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(Exception, match="the engine stopped answering"):
        asyncio.run(model.dispatcher.infer(rows, time.monotonic() + PATIENCE_S))
    model.release()
    assert "being rebuilt" in (registry.unready_reason() or "")
    with pytest.raises(Unavailable, match="being restarted"):
        registry.get("image", None)
    rebuilding.open()
    end = time.monotonic() + PATIENCE_S
    while readiness != [True, False, True] and time.monotonic() < end:
        time.sleep(0.001)
    assert readiness == [True, False, True]
    assert registry.unready_reason() is None
    assert answer(registry) >= 0
    assert registry.hopeless_reason() is None
    gate.open()
