"""Everything that classifies, made from the settings: models, media workers and the service that connects them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from app.engines.cache import usable_cache
from app.engines.cpus import available_cpus
from app.engines.factory import EngineOptions
from app.errors import PackageError
from app.media.limits import MediaLimits
from app.media.pool import MediaPool
from app.repository.manifest import read_manifest
from app.repository.store import MANIFEST, discover, latest
from app.serving.admission import Admission
from app.serving.changes import Administer
from app.serving.demand import Peers
from app.serving.deployment import ServingOptions
from app.serving.registry import ModelRegistry
from app.serving.remote import RemoteModels
from app.serving.results import Task
from app.serving.rollout import Rollout
from app.serving.service import Service, ServiceDefaults
from app.serving.supervisor import SupervisionOptions
from app.serving.watch import RepositoryWatch
from app.settings import Settings
from app.telemetry.gpu import watch_gpus
from app.telemetry.metrics import Metrics

_log = logging.getLogger("hiera.server")

Models = TypeVar("Models", bound=ModelRegistry | RemoteModels)
AnyModels = TypeVar("AnyModels", bound=ModelRegistry | RemoteModels, covariant=True)


@dataclass(frozen=True)
class Core(Generic[AnyModels]):
    """Everything that classifies, without the web around it: what the server and `hiera-serve classify` share."""

    registry: AnyModels
    pool: MediaPool
    service: Service
    administer: Administer
    watch: RepositoryWatch | None = None


@dataclass(frozen=True)
class SharedEngines:
    """Engines that live in another process: what one of several HTTP processes has instead of its own.

    Attributes:
        models: the other process's.
        peers: the other HTTP processes, as admission sees them.
        processes: how many there are; media workers and connections are divided by it.
        exposition: the metrics of all processes for an Accept header, and their content type.
        administer: carries out a change of the models.
    """

    models: RemoteModels
    peers: Peers
    processes: int
    exposition: Callable[[str], Awaitable[tuple[bytes, str]]]
    administer: Administer


def load_models(
    root: Path, registry: ModelRegistry | RemoteModels, metrics: Metrics, watch: RepositoryWatch | None = None
) -> None:
    """Load every package of the repository; returns when each is ready or failed, and `watch`, if any, has begun."""
    if watch is not None:
        watch.note()
    try:
        metrics.expect_models(_packaged_models(root))
    except PackageError:
        pass  # the registry says what is wrong
    except Exception:
        _log.exception("the metrics cannot be told of the models")  # which is no reason to serve none
    try:
        registry.load_all()
    except PackageError as error:
        _log.error("the model repository cannot be read: %s", error)
    if watch is not None:
        watch.start()


def create_registry(settings: Settings, metrics: Metrics) -> ModelRegistry:
    """The models and their engines, not loaded; `metrics` get the GPUs of the machine too."""
    watch_gpus(metrics.registry)
    defaults: dict[Task, str] = {}
    if settings.default_image_model:
        defaults["image"] = settings.default_image_model
    if settings.default_video_model:
        defaults["video"] = settings.default_video_model
    supervision = SupervisionOptions(
        stuck_factor=settings.engine_stuck_factor,
        stuck_floor_s=settings.engine_stuck_seconds,
        longest_pause_s=settings.engine_rebuild_pause_seconds,
    )
    return ModelRegistry(
        settings.model_repository,
        EngineOptions(
            name=settings.engine,
            precision=settings.engine_precision,
            threads=settings.engine_threads,
            device=settings.engine_device,
            cache_dir=usable_cache(settings.engine_cache_folder),
            max_batch=settings.max_batch_rows,
        ),
        ServingOptions(
            instances=settings.engine_instances,
            max_queue_rows=settings.max_queue_rows,
            max_queue_delay_s=settings.max_queue_delay_ms / 1000,
            warmup_budget_s=settings.warmup_budget_seconds,
            exact_images=settings.exact_resize,
            drain_s=settings.model_drain_seconds,
            supervision=supervision,
        ),
        defaults=defaults,
        observer=metrics,
    )


def create_rollout(settings: Settings, registry: ModelRegistry) -> tuple[Rollout, RepositoryWatch | None]:
    """What changes the models while they serve, and what does so by itself if that is wanted."""
    rollout = Rollout(registry, settings.model_repository)
    if not settings.watch_seconds:
        return rollout, None
    return rollout, RepositoryWatch(registry, rollout, settings.model_repository, settings.watch_seconds)


def create_core(settings: Settings, metrics: Metrics) -> Core[ModelRegistry]:
    """The parts that classify, not started."""
    registry = create_registry(settings, metrics)
    rollout, watch = create_rollout(settings, registry)
    core = _connect(settings, metrics, registry, rollout.administer)
    return replace(core, watch=watch)


def create_shared_core(settings: Settings, metrics: Metrics, shared: SharedEngines) -> Core[RemoteModels]:
    """The parts that classify in front of the engines of another process, not started."""
    return _connect(settings, metrics, shared.models, shared.administer, shared.processes, shared.peers)


def _connect(
    settings: Settings,
    metrics: Metrics,
    registry: Models,
    administer: Administer,
    processes: int = 1,
    peers: Peers | None = None,
) -> Core[Models]:
    cpus = available_cpus()
    image_workers = max(1, (settings.image_workers or max(2, cpus)) // processes)
    video_workers = max(1, (settings.video_workers or cpus // 2) // processes)
    pool = MediaPool(
        image_workers=image_workers,
        video_workers=video_workers,
        limits=_media_limits(settings),
        worker_memory_bytes=settings.media_worker_memory_bytes,
        image_timeout_s=settings.image_decode_timeout_seconds,
        video_timeout_s=settings.video_decode_timeout_seconds,
        observer=metrics,
        codec_threads=cpus,
    )
    service = Service(
        registry,
        pool,
        Admission(
            max_rows=settings.max_queue_rows,
            max_bytes=settings.max_in_flight_bytes,
            on_reject=metrics.rejected,
            on_change=metrics.in_flight,
            peers=peers,
        ),
        ServiceDefaults(
            image_timeout_s=settings.image_timeout_seconds,
            video_timeout_s=settings.video_timeout_seconds,
            max_clips=settings.max_clips,
            image_workers=image_workers,
            video_workers=video_workers,
        ),
        metrics,
    )
    return Core(registry, pool, service, administer)


def _media_limits(settings: Settings) -> MediaLimits:
    return MediaLimits(
        max_bytes=max(settings.max_image_bytes, settings.max_video_bytes),
        max_pixels=settings.max_image_pixels,
        max_side_pixels=settings.max_side_pixels,
        max_aspect_ratio=settings.max_aspect_ratio,
        max_video_pixels=settings.max_video_frame_pixels,
        max_video_seconds=settings.max_video_seconds,
        max_frames=settings.max_video_frames,
        max_streams=settings.max_media_streams,
    )


def _packaged_models(root: Path) -> list[tuple[str, str]]:
    """Task and name of every package whose manifest can be read; the registry says what is wrong with the others."""
    found: list[tuple[str, str]] = []
    for package in latest(discover(root)):
        with contextlib.suppress(PackageError):
            found.append((read_manifest(package.folder / MANIFEST).task, package.name))
    return found
