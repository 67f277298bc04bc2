"""Models that are loaded, swapped and unloaded while others serve."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registry_scenes import MakePackage, MakeRegistry, answer, status_of
from serving_fakes import PATIENCE_S, FakeRows, Gate

from app.engines.base import Engine
from app.engines.factory import create_engine
from app.errors import ChangeRefused, EngineError, Unavailable, UnknownModel
from app.repository.store import Package, PackagePath
from app.serving import proven
from app.serving import registry as registry_module
from app.serving.deployment import Deployment, ServingOptions
from app.serving.submission import Terms


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
    asyncio.run(old.dispatcher.infer(rows, Terms(time.monotonic() + PATIENCE_S)))
    old.release()
    swap.join(PATIENCE_S)
    assert not swap.is_alive()
    with pytest.raises(Unavailable):
        asyncio.run(old.dispatcher.infer(rows, Terms(time.monotonic() + PATIENCE_S)))
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


def test_a_change_waits_no_longer_than_its_bound_for_what_it_takes_out_of_service(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[float] = []
    close = Deployment.close

    def noted(deployment: Deployment, timeout_s: float) -> bool:
        bounds.append(timeout_s)
        return close(deployment, 0.0)

    monkeypatch.setattr(Deployment, "close", noted)
    make_package("model", 1)
    registry = make_registry(options=ServingOptions(warmup_budget_s=0.05, drain_s=7.5))
    registry.load_all()
    for version in (1, 2):
        held = registry.get("image", "model")
        began = time.monotonic()
        if version == 1:
            make_package("model", 2)
            change = registry.load("model")
        else:
            change = registry.unload("model")
        took = time.monotonic() - began
        assert (change.replaced, change.drained) == (version, False)
        assert 0 < change.ready_s + change.drain_s <= took  # one after the other
        held.release()
    assert bounds == [7.5, 7.5]


def test_freed_memory_is_handed_back_once_the_old_version_has_ended(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    close = Deployment.close

    def noted(deployment: Deployment, timeout_s: float) -> bool:
        drained = close(deployment, timeout_s)
        happened.append(f"version {deployment.model.version} ended")
        return drained

    monkeypatch.setattr(Deployment, "close", noted)
    monkeypatch.setattr(registry_module, "give_back_freed_memory", lambda: happened.append("handed back"))
    make_package("model", 1)
    registry = make_registry()
    registry.load_all()
    make_package("model", 2)
    registry.load("model")
    registry.unload("model")
    assert happened == ["version 1 ended", "handed back", "version 2 ended", "handed back"]


def test_a_model_that_failed_is_unloaded_and_nothing_is_said_to_have_served(
    make_package: MakePackage, make_registry: MakeRegistry
) -> None:
    make_package("model", wrong_golden=True)
    registry = make_registry()
    registry.load_all()
    assert status_of(registry, "model").manifest is not None
    change = registry.unload("model")
    assert (change.outcome, change.version, change.replaced, change.drained) == ("unloaded", None, None, True)
    assert registry.models() == []


def test_a_repository_that_has_gone_refuses_a_change(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    root = make_package("model")
    registry = make_registry()
    registry.load_all()
    root.rename(root.with_name("gone"))
    with pytest.raises(ChangeRefused, match="no such folder"):
        registry.load("model")
    assert answer(registry, "model") >= 0


@pytest.mark.parametrize(
    ("error", "said", "traced"),
    [
        (RuntimeError("no thread"), "RuntimeError: no thread", True),
        (EngineError("no kernel in /opt/engine"), "no kernel in /opt/engine", False),
    ],
)
def test_who_asked_for_a_change_hears_what_failed_and_strangers_hear_that_it_did(
    make_package: MakePackage,
    make_registry: MakeRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    said: str,
    traced: bool,
) -> None:
    make_package("model", 1)
    registry = make_registry()
    registry.load_all()
    make_package("model", 2)

    def fail(path: PackagePath) -> Package:
        raise error

    monkeypatch.setattr(registry_module, "open_package", fail)
    with pytest.raises(ChangeRefused) as refused:
        registry.load("model")
    assert str(refused.value) == f"model version 2 is refused: {said}"
    reason = status_of(registry, "model").reason
    assert reason == "version 2 was refused: its engine failed; the server's log says how"
    traces = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in traces] == ["model version 2 cannot be loaded"] * traced


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

    monkeypatch.setattr(proven, "create_engine", create)
    make_package("second")
    loading = threading.Thread(target=registry.load, args=("second",))
    loading.start()
    gate.wait_entered()
    status = status_of(registry, "second")
    assert (status.state, status.version) == ("loading", 1)
    assert status.manifest is not None  # what it will be is known before its engine is there
    with pytest.raises(UnknownModel, match="task image, not video"):
        registry.get("video", "second")
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
    asyncio.run(held.dispatcher.infer(rows, Terms(time.monotonic() + PATIENCE_S)))
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

    monkeypatch.setattr(proven, "create_engine", create)
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
    before = threading.enumerate()
    registry = make_registry()
    registry.load_all()
    (supervisor,) = [each for each in threading.enumerate() if each.name == "supervisor" and each not in before]
    registry.close(PATIENCE_S)
    assert not supervisor.is_alive()
    for change in (registry.load, registry.unload):
        for name in ("model", "nothing"):
            with pytest.raises(Unavailable, match="shutting down"):
                change(name)


def test_a_failed_model_can_be_mended_and_loaded(make_package: MakePackage, make_registry: MakeRegistry) -> None:
    root = make_package("model", wrong_golden=True)
    registry = make_registry()
    registry.load_all()
    assert registry.unready_reason() == "no model could be loaded"
    shutil.rmtree(root / "model")
    make_package("model")
    registry.load("model")
    assert registry.unready_reason() is None
