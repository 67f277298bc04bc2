"""The composition root: makes every part from the settings, connects them, starts them, and drains them."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from app.api.application import build_application
from app.api.body import UploadPace
from app.api.classify import ClassifyBounds
from app.api.exchange import exchange_of
from app.api.gate import Gate
from app.api.keys import KeyRing
from app.api.query import QueryLimits, QueryParser
from app.api.routes import CLASSIFY_PATHS, Parts, traced_route
from app.api.uploads import UploadLimits
from app.core import Core, SharedEngines, create_core, create_shared_core, load_models
from app.errors import HieraError
from app.media.heap import give_back_freed_memory
from app.media.pool import RESTART_REASONS, WORKER_STATES
from app.protocol import ConnectionLimits
from app.serving.registry import ModelRegistry
from app.serving.remote import RemoteModels
from app.serving.results import Task
from app.settings import Settings, SettingsError, load_settings
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.rpc.server import RpcServer
    from app.telemetry.tracing import Tracing

_log = logging.getLogger("hiera.server")
_OWN_DESCRIPTORS = 64  # 22 with two media workers and one model, 42 with twelve
_LONGEST_TIMEOUT_MS = 3_600_000
_TIDY_EVERY_S = 5.0
_FEWEST_CALLS = 8
_BUSY_TICKETS = 64
_BUSY_BYTES = 64 * 1024 * 1024  # of gRPC's messages, in one look
# Requests leave no cycles, so the collector rarely finds anything: it need not look after every 700 allocations.
_GC_THRESHOLDS = (20_000, 10, 10)


class Server:
    """The life of a core inside a server: starts it in the background, knows its condition, drains it.

    Args:
        core: started by `start`, ended by `stop`.
        settings: where the models lie, and how long a drain may take.
        metrics: told of the models as soon as their manifests are read.
    """

    def __init__(self, core: Core[ModelRegistry | RemoteModels], settings: Settings, metrics: Metrics) -> None:
        self._core = core
        self._root = settings.model_repository
        self._drain_timeout_s = settings.shutdown_timeout_seconds
        self._metrics = metrics
        self._draining = False
        self._failure: str | None = None
        self._hopeless: str | None = None
        self._pool_ready = False
        self._rpc: RpcServer | None = None

    def begin_drain(self) -> None:
        """Readiness says no from now on; requests are still taken, because load balancers take a while to notice."""
        self._draining = True

    def refuse_requests(self) -> None:
        """No more requests are taken; those that were admitted go on."""
        self._draining = True
        self._core.service.drain()

    def unready_reason(self) -> str | None:
        """Why requests should go elsewhere; None when they are welcome."""
        if self._draining:
            return "the server is shutting down"
        return self.media_reason() or self._core.registry.unready_reason()

    def media_reason(self) -> str | None:
        """Why this process cannot decode, or has failed to start; None while it can."""
        if self._failure is not None:
            return self._failure
        if not self._pool_ready:
            return "the media workers are being started"
        return self._core.pool.unhealthy

    def hopeless_reason(self) -> str | None:
        """Why only a restart would help; None while there is no need."""
        return self._hopeless or self._core.registry.hopeless_reason()

    async def start(self, rpc: RpcServer | None = None) -> None:
        """Begin to load the models and start the media workers; returns at once, `unready_reason` tells the rest. `rpc`
        is another way in."""
        self._rpc = rpc
        if rpc is not None:
            await rpc.start()
        threading.Thread(target=self._load_models, name="load-models", daemon=True).start()
        self._starting = asyncio.create_task(self._start_pool())
        self._tidying = asyncio.create_task(self._tidy())

    async def stop(self) -> None:
        """Finish what was admitted, as far as the bound allows, then end engines and workers."""
        if self._core.watch is not None:
            self._core.watch.stop()
        self.refuse_requests()
        if self._rpc is not None:
            await self._rpc.stop(self._drain_timeout_s)
        if not await self._core.service.drained(self._drain_timeout_s):
            _log.warning("%d requests were not finished", self._core.service.open_tickets)
        self._starting.cancel()
        self._tidying.cancel()
        await asyncio.gather(self._starting, self._tidying, return_exceptions=True)
        await self._core.pool.close(0.0)
        await asyncio.to_thread(self._core.registry.close, 1.0)

    def drop_calls(self) -> None:
        """End the gRPC calls that are not answered."""
        if self._rpc is not None:
            self._rpc.drop()

    async def _start_pool(self) -> None:
        try:
            await self._core.pool.start()
        except HieraError as error:
            self._failure = self._hopeless = "the media workers cannot be started"
            _log.error("%s: %s", self._failure, error)
        else:
            self._pool_ready = True
            _log.info("media workers are confined by %s", self._core.pool.confinement)

    async def _tidy(self) -> None:
        """Once a busy time is over, give the kernel back what it took: the C library keeps it otherwise."""
        was_busy, seen_bytes = False, 0
        while True:
            await asyncio.sleep(_TIDY_EVERY_S)
            open_tickets = self._core.service.open_tickets
            received_bytes = 0 if self._rpc is None else self._rpc.received_bytes
            was_busy = was_busy or open_tickets >= _BUSY_TICKETS or received_bytes - seen_bytes >= _BUSY_BYTES
            seen_bytes = received_bytes
            if was_busy and not open_tickets:
                was_busy = False
                gc.collect()  # what was frozen after the start is left out, so this is quick
                await asyncio.to_thread(give_back_freed_memory)

    def _load_models(self) -> None:
        load_models(self._root, self._core.registry, self._metrics, self._core.watch)
        # What is here now stays: the collector need not walk through it again while requests wait.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)


def create_app(settings: Settings | None = None, shared: SharedEngines | None = None) -> FastAPI:
    """The ASGI application. `app.state.server` is its `Server`, for whoever handles signals, `app.state.metrics` its
    own metrics, `app.state.gate` what refuses requests in the HTTP protocol.

    Args:
        settings: the environment's by default.
        shared: engines in another process; by default this one has its own.

    Raises:
        SettingsError: a setting is wrong.
    """
    settings = settings or load_settings()
    tracing = None if settings.otlp_endpoint is None else _open_tracing(settings.otlp_endpoint)
    metrics = _create_metrics(tracing)
    core = create_core(settings, metrics) if shared is None else create_shared_core(settings, metrics, shared)
    server = Server(core, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.start(_open_rpc(app, settings, keys, 1 if shared is None else shared.processes))
        try:
            yield
        finally:
            await server.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    keys, admin_keys = _key_rings(settings)
    bounds = _bounds(settings)
    parsers = {task: QueryParser(task, of.query) for task, of in bounds.items()}
    metrics.expect_keys(keys.names)
    gate = Gate(core.service, parsers, CLASSIFY_PATHS, keys, metrics.refused)
    parts = Parts(
        service=core.service,
        models=core.registry,
        condition=server,
        metrics=metrics,
        exposition=metrics.exposition if shared is None else shared.exposition,
        keys=keys,
        admin_keys=admin_keys,
        administer=core.administer,
        bounds=bounds,
        gate=gate,
        metrics_need_key=settings.metrics_need_key,
        cors_origins=settings.cors_origin_list,
    )
    app = build_application(parts, lifespan)
    if tracing is not None:
        _trace_requests(app, tracing)
    app.state.server = server
    app.state.metrics = metrics
    app.state.gate = gate
    return app


def connection_limits(settings: Settings, processes: int = 1) -> ConnectionLimits:
    """The bounds of connections for one of so many HTTP processes. Connections that are served take at most half of the
    descriptors that this process may have and does not need itself: their requests take others, for files.
    """
    wanted = -(-settings.max_connections // processes)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = sys.maxsize if most == resource.RLIM_INFINITY else max(2, most - _OWN_DESCRIPTORS)
    if wanted > free // 2:
        _log.warning(
            "of %d connections only %d are served: this process may open no more than %d files (ulimit -n)",
            wanted,
            free // 2,
            most,
        )
    return ConnectionLimits(
        max_connections=min(wanted, free // 2),
        max_open=3 * free // 4,
        cors_origins=settings.cors_origin_list,
        header_timeout_s=settings.header_timeout_seconds,
        max_header_bytes=settings.max_header_bytes,
        keep_alive_s=settings.keep_alive_seconds,
    )


def create_host_metrics() -> Metrics:
    """The metrics of a process that hosts engines for others."""
    return _create_metrics(None)


def _open_rpc(app: FastAPI, settings: Settings, keys: KeyRing, processes: int) -> RpcServer | None:
    """What answers gRPC, not started; None where it is off or its library is missing.

    Raises:
        OSError: the port cannot be had.
    """
    if not settings.grpc_port:
        return None
    try:
        from app.rpc.server import MESSAGE_BYTES, RpcLimits, RpcServer
    except ImportError:
        if "grpc_port" in settings.model_fields_set:
            _log.warning("HIERA_GRPC_PORT has no effect without gRPC: install hiera-serve[grpc]")
        return None
    limits = RpcLimits(
        calls=max(_FEWEST_CALLS, settings.max_in_flight_bytes // MESSAGE_BYTES // processes),
        connections=max(1, connection_limits(settings, processes).max_connections // 2),  # HTTP's take their own
        metadata_bytes=settings.max_header_bytes,
        message_timeout_s=settings.upload_idle_timeout_seconds,
        share_port=processes > 1,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host

    def knows(headers: list[tuple[bytes, bytes]]) -> bool:
        return not keys.required or keys.name_of(headers) is not None

    return RpcServer(app, f"{host}:{settings.grpc_port}", limits, knows)


def _open_tracing(endpoint: str) -> Tracing:
    try:
        from app.telemetry.tracing import Tracing
    except ImportError as error:
        raise SettingsError(["HIERA_OTLP_ENDPOINT needs OpenTelemetry: install hiera-serve[otel]"]) from error
    return Tracing.to_otlp(endpoint)


def _create_metrics(tracing: Tracing | None) -> Metrics:
    if tracing is None:
        return Metrics(worker_states=WORKER_STATES, restart_reasons=RESTART_REASONS)
    from app.telemetry.tracing import TracedMetrics

    return TracedMetrics(tracing, worker_states=WORKER_STATES, restart_reasons=RESTART_REASONS)


def _trace_requests(app: FastAPI, tracing: Tracing) -> None:
    from app.telemetry.tracing import TraceRequests

    def describe(scope: Any) -> dict[str, str]:
        exchange = exchange_of(scope)
        return {"hiera.request_id": exchange.request_id, "hiera.model": exchange.model}

    app.add_middleware(TraceRequests, tracing=tracing, route_of=traced_route, describe=describe)


def _bounds(settings: Settings) -> dict[Task, ClassifyBounds]:
    query = QueryLimits(max_timeout_ms=_LONGEST_TIMEOUT_MS, max_clips=settings.max_clips)
    pace = UploadPace(
        idle_timeout_s=settings.upload_idle_timeout_seconds,
        grace_s=settings.upload_grace_seconds,
        min_bytes_per_s=settings.upload_min_bytes_per_second,
    )
    images = UploadLimits(settings.max_image_bytes, settings.max_request_bytes, settings.max_files_per_request)
    video = UploadLimits(settings.max_video_bytes, settings.max_video_bytes, max_files=1)
    return {"image": ClassifyBounds(query, images, pace), "video": ClassifyBounds(query, video, pace)}


def _key_rings(settings: Settings) -> tuple[KeyRing, KeyRing]:
    """The API keys and the admin keys."""
    keys = _key_ring("HIERA_API_KEYS", settings.api_key_entries, settings.api_keys_file, "API key")
    admin = _key_ring("HIERA_ADMIN_KEYS", settings.admin_key_entries, settings.admin_keys_file, "admin key")
    if keys.shares_a_secret_with(admin):
        raise SettingsError(["HIERA_API_KEYS and HIERA_ADMIN_KEYS share a secret; it would open neither"])
    return keys, admin


def _key_ring(variable: str, entries: tuple[str, ...], file: Path | None, called: str) -> KeyRing:
    try:
        return KeyRing(entries, file, called)
    except ValueError as error:
        raise SettingsError([f"{variable} or {variable}_FILE: {error}"]) from error
    except OSError as error:
        raise SettingsError([f"{variable}_FILE cannot be read: {error}"]) from error
