"""The registry's start beside what else may come then: an admin's change, and the end of the server."""

from __future__ import annotations

import threading

import pytest
from registry_scenes import MakePackage, MakeRegistry
from serving_fakes import PATIENCE_S, Gate

from app.engines.base import Engine
from app.engines.factory import create_engine
from app.errors import HieraError, Unavailable
from app.repository import store
from app.serving import proven
from app.serving import registry as registry_module
from app.serving.changes import Change
from app.serving.observer import SilentObserver
from app.serving.registry import ModelRegistry


@pytest.fixture
def registry(make_registry: MakeRegistry) -> ModelRegistry:
    return make_registry()


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Holds whoever opens the package of a model that is named `slow`, or a version of it."""
    gate = Gate()

    def open_slowly(path: store.PackagePath) -> store.Package:
        if path.name == "slow":
            gate([path.version])
        return store.open_package(path)

    monkeypatch.setattr(registry_module, "open_package", open_slowly)
    return gate


def test_what_an_admin_has_loaded_before_the_start_came_to_it_serves_on(
    make_package: MakePackage, registry: ModelRegistry, opening: Gate
) -> None:
    make_package("model", 1)
    make_package("model", 2)
    make_package("slow")
    registry.load("model", 1)
    before = registry.get("image", "model")
    before.release()
    start = threading.Thread(target=registry.load_all)
    start.start()
    opening.wait_entered()
    assert registry.unready_reason() == "the models are being loaded"
    opening.open()
    start.join(PATIENCE_S)
    after = registry.get("image", "model")
    after.release()
    assert after is before
    assert [(status.name, status.state) for status in registry.models()] == [("model", "ready"), ("slow", "ready")]


def test_a_start_that_the_end_of_the_server_overtakes_tries_no_lower_version(
    make_package: MakePackage, registry: ModelRegistry, opening: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2):
        make_package("slow", version)
    start = threading.Thread(target=registry.load_all)
    start.start()
    opening.wait_entered()
    registry.close(PATIENCE_S)
    opening.open()
    start.join(PATIENCE_S)
    assert not start.is_alive()
    assert "is not served" not in caplog.text
    with pytest.raises(Unavailable, match="being unloaded"):
        registry.get("image", "slow")


def test_a_change_that_the_end_of_the_server_overtakes_leaves_no_engine_and_is_no_refusal(
    make_package: MakePackage, make_registry: MakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, ended, told, raised = Gate(), threading.Event(), [], []

    class Watcher(SilentObserver):
        def model_ready(self, model: str, version: int, ready: bool) -> None:
            told.append((model, version, ready))

    def create(*args: object) -> Engine:
        engine = create_engine(*args)  # type: ignore[arg-type]
        close = engine.close

        def note_close() -> None:
            close()
            ended.set()

        monkeypatch.setattr(engine, "close", note_close)
        gate([])
        return engine

    registry = make_registry(observer=Watcher())

    def load() -> None:
        try:
            registry.load("model")
        except HieraError as error:
            raised.append(type(error))

    monkeypatch.setattr(proven, "create_engine", create)
    make_package("model")
    change = threading.Thread(target=load)
    change.start()
    gate.wait_entered()
    registry.close(PATIENCE_S)
    gate.open()
    change.join(PATIENCE_S)
    assert raised == [Unavailable]
    assert ended.wait(PATIENCE_S)
    assert told == []


def test_an_admins_change_waits_for_the_start(
    make_package: MakePackage, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def open_slowly(path: store.PackagePath) -> store.Package:
        if path.version == 2:
            gate([])
        return store.open_package(path)

    monkeypatch.setattr(registry_module, "open_package", open_slowly)
    make_package("model", 1)
    make_package("model", 2)
    changes: list[Change] = []
    start = threading.Thread(target=registry.load_all)
    start.start()
    gate.wait_entered()
    admin = threading.Thread(target=lambda: changes.append(registry.load("model", 1)))
    admin.start()
    admin.join(0.5)  # time for a change that does not wait
    assert changes == []
    gate.open()
    for thread in (start, admin):
        thread.join(PATIENCE_S)
    assert [(change.outcome, change.version, change.replaced) for change in changes] == [("swapped", 1, 2)]
