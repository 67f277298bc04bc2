"""The life of a server around its parts."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI

from app.api import routes
from app.api.body import UploadPace
from app.api.classify import ClassifyBounds
from app.api.keys import KeyRing
from app.api.query import QueryLimits
from app.api.uploads import UploadLimits
from app.errors import PackageError, Unavailable
from app.main import Server, _open_rpc, connection_limits, create_app
from app.protocol import ConnectionLimits
from app.rpc.server import MESSAGE_BYTES, RpcLimits
from app.settings import Settings, SettingsError, load_settings
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
        self.unready: str | None = None
        self.hopeless: str | None = None
        self.in_time = True
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
        return self.unready

    def hopeless_reason(self) -> str | None:
        return self.hopeless

    def drain(self) -> None:
        self.done.append("refuse")

    async def drained(self, timeout_s: float) -> bool:
        self.done.append("finish")
        assert timeout_s == 25
        return self.in_time

    def close(self, seconds: float) -> Any:
        self.done.append("close")
        return asyncio.sleep(0) if seconds == 0 else None


class Rpc:
    """Another way in, which notes what it is told in `done`."""

    def __init__(self, done: list[str]) -> None:
        self.done = done
        self.received_bytes = 0

    async def start(self) -> None:
        self.done.append("open")

    async def stop(self, timeout_s: float) -> None:
        self.done.append(f"shut in {timeout_s:g} s")

    def drop(self) -> None:
        self.done.append("drop")


def server_of(parts: Parts, root: Path) -> Server:
    return Server(cast(Any, parts), load_settings({"model_repository": root}), Metrics())


def started(parts: Parts, root: Path, *, stop: bool = False, rpc: Rpc | None = None) -> Server:
    """A server whose start is over; and with `stop`, its end too."""
    server = server_of(parts, root)

    async def scenario() -> None:
        await server.start(cast(Any, rpc))
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
    parts.unready = parts.hopeless = "the engine hangs"
    assert (server.unready_reason(), server.hopeless_reason()) == ("the engine hangs", "the engine hangs")
    parts.unhealthy = "workers die"
    assert server.unready_reason() == "workers die"


def test_it_is_not_ready_before_it_has_media_workers(tmp_path: Path) -> None:
    server = server_of(Parts(), tmp_path)
    assert (server.unready_reason(), server.hopeless_reason()) == ("the media workers are being started", None)


def test_a_server_that_takes_no_more_requests_is_not_ready(tmp_path: Path) -> None:
    server = started(Parts(), tmp_path)
    server.refuse_requests()
    assert server.unready_reason() == "the server is shutting down"


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


def test_what_is_not_finished_in_time_is_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts()
    started(parts, tmp_path, stop=True)
    assert "not finished" not in caplog.text
    parts = Parts()
    parts.in_time, parts.open_tickets = False, 3
    started(parts, tmp_path, stop=True)
    assert "3 requests were not finished" in caplog.text
    assert parts.done[-2:] == ["close", "close"]


def test_another_way_in_opens_with_the_server_and_shuts_before_what_it_let_in_is_finished(tmp_path: Path) -> None:
    parts = Parts()
    server = started(parts, tmp_path, stop=True, rpc=Rpc(parts.done))
    assert parts.done == ["open", "load", "refuse", "shut in 25 s", "finish", "close", "close"]
    server.drop_calls()
    assert parts.done[-1] == "drop"


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
    rpc = Rpc(parts.done)

    async def look(seconds: float) -> None:
        nonlocal looks
        parts.open_tickets = (3, 0, 64, 1, 0, 0, 63, 0, 0, 0, 0, 0)[looks]
        rpc.received_bytes = (0, 0, 0, 0, 0, 0, 0, 0, 40 << 20, 80 << 20, 144 << 20, 150 << 20)[looks]
        looks += 1
        if looks == 12:
            raise asyncio.CancelledError

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await server._tidy()

    server = started(parts, tmp_path, rpc=rpc)
    with monkeypatch.context() as steered:
        steered.setattr("app.main.asyncio.sleep", look)
        steered.setattr("app.main.give_back_freed_memory", lambda: given_back.append(looks))
        asyncio.run(scenario())
    assert given_back == [5, 11]  # 64 requests at once, and 64 MiB of gRPC's messages in one look


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


def test_connections_are_bounded_as_the_settings_say() -> None:
    page = "https://page.example"
    given: dict[str, Any] = {"header_timeout_seconds": 1, "max_header_bytes": 2048, "keep_alive_seconds": 3}
    limits = connection_limits(Settings(max_connections=9, cors_origins=page, **given), 2)
    assert replace(limits, max_open=sys.maxsize) == ConnectionLimits(5, 1, 2048, 3, cors_origins=(page,))


BuildParts = Callable[..., tuple[routes.Parts, tuple[Any, ...]]]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> BuildParts:
    """`built(setting=value, …)` gives what the application and its gate are built of."""
    given: dict[str, Any] = {}

    def build(parts: routes.Parts, lifespan: object) -> FastAPI:
        given["parts"] = parts
        return FastAPI()

    def gate(*parts: object) -> object:
        given["gate"] = parts
        return given["gate"]

    monkeypatch.setattr("app.main.build_application", build)
    monkeypatch.setattr("app.main.Gate", gate)

    def make(**settings: Any) -> tuple[routes.Parts, tuple[Any, ...]]:
        create_app(Settings(engine_cache_folder=None, **settings))
        return given["parts"], given["gate"]

    return make


def test_each_setting_reaches_the_part_that_it_is_for(built: BuildParts) -> None:
    parts, gate = built(
        max_image_bytes=1,
        max_request_bytes=2,
        max_video_bytes=3,
        max_files_per_request=4,
        max_clips=5,
        upload_idle_timeout_seconds=6,
        upload_grace_seconds=7,
        upload_min_bytes_per_second=8,
        metrics_need_key=True,
        cors_origins="https://page.example",
        api_keys="alice:aaa",
        admin_keys="op:ooo",
    )
    query, pace = QueryLimits(max_timeout_ms=3_600_000, max_clips=5), UploadPace(6, 7, 8)
    assert parts.bounds == {
        "image": ClassifyBounds(query, UploadLimits(1, 2, 4), pace),
        "video": ClassifyBounds(query, UploadLimits(3, 3, 1), pace),
    }
    assert (parts.metrics_need_key, parts.cors_origins) == (True, ("https://page.example",))
    sent = ([(b"x-api-key", b"aaa")], [(b"x-api-key", b"ooo")])
    assert [parts.keys.name_of(headers) for headers in sent] == ["alice", None]
    assert [parts.admin_keys.name_of(headers) for headers in sent] == [None, "op"]
    service, parsers, paths, *rest = gate
    assert (service, paths) == (parts.service, {"/classify/image": "image", "/classify/video": "video"})
    assert [parsers[task].parse(b"timeout_ms=3600000").timeout_ms for task in ("image", "video")] == [3_600_000] * 2
    assert rest == [parts.keys, parts.metrics.refused]
    assert cast(Any, parts.gate) is gate


def test_keys_may_stand_in_files(built: BuildParts, tmp_path: Path) -> None:
    for name in ("alice", "op"):
        (tmp_path / name).write_text(f"{name}:{name}-secret")
    parts, _ = built(api_keys_file=tmp_path / "alice", admin_keys_file=tmp_path / "op")
    assert parts.keys.name_of([(b"x-api-key", b"alice-secret")]) == "alice"
    assert parts.admin_keys.name_of([(b"x-api-key", b"op-secret")]) == "op"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"api_keys": "name:"}, "HIERA_API_KEYS or HIERA_API_KEYS_FILE: API key 1 is not"),
        ({"admin_keys": "name:"}, "HIERA_ADMIN_KEYS or HIERA_ADMIN_KEYS_FILE: admin key 1 is not"),
        ({"api_keys_file": "/nowhere"}, "HIERA_API_KEYS_FILE cannot be read: .*/nowhere"),
        ({"api_keys": "a:one", "admin_keys": "b:one"}, "HIERA_API_KEYS and HIERA_ADMIN_KEYS share a secret"),
    ],
)
def test_keys_that_are_none_are_a_wrong_setting(built: BuildParts, given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        built(**given)


def test_grpc_is_bounded_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.rpc.server.RpcServer", lambda *given: given)

    def opened(processes: int, *keys: str, **settings: Any) -> Any:
        return _open_rpc(FastAPI(), Settings(**settings), KeyRing(keys), processes)

    more: dict[str, Any] = {"max_header_bytes": 2048, "upload_idle_timeout_seconds": 6, "host": "::1"}
    in_flight = 64 * MESSAGE_BYTES
    _, address, limits, knows = opened(
        2, "a:aaa", grpc_port=5, max_in_flight_bytes=in_flight, max_connections=40, **more
    )
    assert (address, limits) == ("[::1]:5", RpcLimits(32, 10, 2048, 6, share_port=True))
    assert (knows([(b"x-api-key", b"aaa")]), knows([])) == (True, False)
    _, address, limits, knows = opened(1, host="127.0.0.1", grpc_port=5, max_in_flight_bytes=1, max_connections=1)
    assert (address, limits.calls, limits.connections, limits.share_port) == ("127.0.0.1:5", 8, 1, False)
    assert knows([])
    assert opened(1, grpc_port=0) is None
