"""The registry's start beside what else may come then: an admin's change, and the end of the server."""

from __future__ import annotations

import threading

import pytest
from registry_scenes import MakePackage, MakeRegistry
from serving_fakes import PATIENCE_S, Gate

from app.errors import Unavailable
from app.repository import store
from app.serving import registry as registry_module
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
