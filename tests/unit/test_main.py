"""The life of a server around its parts."""

from __future__ import annotations

import asyncio
import gc
import resource
from pathlib import Path
from typing import Any, cast

import pytest

from app.errors import PackageError, Unavailable
from app.main import Server, connection_limits
from app.settings import Settings, load_settings
from app.telemetry.metrics import Metrics


class Watch:
    """Notes what it is told in `done`."""

    def __init__(self, done: list[str]) -> None:
        self.done = done

    def note(self) -> None:
        self.done.append("note")

    def start(self) -> None:
        self.done.append("watch")

    def stop(self) -> None:
        self.done.append("watch no more")


class Parts:
    """Registry, pool and service in one: each does what it is told to."""

    def __init__(self, *, pool_error: Exception | None = None, load_error: Exception | None = None) -> None:
        self.registry = self.pool = self.service = self
        self.pool_error, self.load_error = pool_error, load_error
        self.unhealthy: str | None = None
        self.confinement = "seccomp"
        self.open_tickets = 0
        self.done: list[str] = []
        self.watch: Watch | None = None

    async def start(self) -> None:
        if self.pool_error is not None:
            raise self.pool_error

    def load_all(self) -> None:
        self.done.append("load")
        if self.load_error is not None:
            raise self.load_error

    def unready_reason(self) -> str | None:
        return None

    def hopeless_reason(self) -> str | None:
        return None

    def drain(self) -> None:
        self.done.append("refuse")

    async def drained(self, timeout_s: float) -> bool:
        self.done.append("finish")
        return True

    def close(self, seconds: float) -> Any:
        self.done.append("close")
        return asyncio.sleep(0) if seconds == 0 else None


def started(parts: Parts, root: Path, *, stop: bool = False) -> Server:
    """A server whose start is over; and with `stop`, its end too."""
    server = Server(cast(Any, parts), load_settings({"model_repository": root}), Metrics())

    async def scenario() -> None:
        await server.start()
        await asyncio.sleep(0.3)
        if stop:
            await server.stop()

    asyncio.run(scenario())
    return server


@pytest.fixture(autouse=True)
def _unfrozen() -> Any:
    yield
    gc.unfreeze()


def test_it_is_ready_when_its_parts_are(tmp_path: Path) -> None:
    parts = Parts()
    server = started(parts, tmp_path)
    assert (server.unready_reason(), server.hopeless_reason()) == (None, None)
    parts.unhealthy = "workers die"
    assert server.unready_reason() == "workers die"


def test_a_drain_is_told_before_requests_are_refused(tmp_path: Path) -> None:
    parts = Parts()
    server = started(parts, tmp_path)
    server.begin_drain()
    assert server.unready_reason() == "the server is shutting down"
    assert parts.done == ["load"]
    server.refuse_requests()
    assert parts.done == ["load", "refuse"]


def test_stopping_finishes_what_was_admitted_before_anything_is_closed(tmp_path: Path) -> None:
    parts = Parts()
    started(parts, tmp_path, stop=True)
    assert parts.done == ["load", "refuse", "finish", "close", "close"]


def test_media_workers_that_cannot_be_started_call_for_a_restart(tmp_path: Path) -> None:
    server = started(Parts(pool_error=Unavailable("they die at once")), tmp_path)
    assert server.unready_reason() == server.hopeless_reason() == "the media workers cannot be started"


def test_a_repository_that_cannot_be_read_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = started(Parts(load_error=PackageError("no such folder")), tmp_path)
    assert "the model repository cannot be read: no such folder" in caplog.text
    assert server.hopeless_reason() is None


@pytest.mark.parametrize("load_error", [None, PackageError("no such folder")])
def test_a_watch_begins_when_the_start_is_over_even_without_a_repository(
    tmp_path: Path, load_error: Exception | None
) -> None:
    parts = Parts(load_error=load_error)
    parts.watch = Watch(parts.done)
    started(parts, tmp_path, stop=True)
    assert parts.done == ["note", "load", "watch", "watch no more", "refuse", "finish", "close", "close"]


def test_memory_is_given_back_once_a_busy_time_is_over_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    looks = 0
    parts = Parts()

    async def look(seconds: float) -> None:
        nonlocal looks
        parts.open_tickets = (3, 0, 64, 1, 0, 0, 63, 0)[looks]
        looks += 1
        if looks == 8:
            raise asyncio.CancelledError

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await server._tidy()

    server = started(parts, tmp_path)
    with monkeypatch.context() as steered:
        steered.setattr("app.main.asyncio.sleep", look)
        steered.setattr("app.main.give_back_freed_memory", lambda: given_back.append(looks))
        asyncio.run(scenario())
    assert given_back == [5]


@pytest.mark.parametrize(
    ("files", "served", "open_at_most", "lines"),
    [(1024, 480, 720, 1), (4096, 1024, 3024, 0), (1 << 20, 1024, 786_384, 0), (64, 1, 1, 1)],
)
def test_connections_leave_descriptors_to_the_files_of_requests(
    files: int,
    served: int,
    open_at_most: int,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    limits = connection_limits(Settings(max_connections=2048), 2)
    assert (limits.max_connections, limits.max_open) == (served, open_at_most)
    assert len(caplog.messages) == lines
    assert all(f"no more than {files} files" in message for message in caplog.messages)


def test_connections_are_not_bounded_by_descriptors_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    limits = connection_limits(Settings(max_connections=2_000_000))
    assert limits.max_connections == 2_000_000 < limits.max_open
