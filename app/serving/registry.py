"""Which models there are, and in what state: loads packages beside each other, swaps versions, unloads.

    discovered ──> loading ──> ready ──> unloading ──> gone
                      └──> failed(reason)

A new version is built beside the one that serves and takes its place only when it is proven; requests that the old one
has admitted finish on the old one. One bad package never stops another.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.engines.factory import EngineOptions
from app.errors import HieraError, Unavailable, UnknownModel
from app.repository.manifest import Manifest
from app.repository.store import Package, PackagePath, discover, latest, open_package
from app.serving.deployment import Deployment, ServingOptions
from app.serving.measured import MeasuredStore
from app.serving.model import LoadedModel
from app.serving.observer import ServingObserver, SilentObserver
from app.serving.results import Task
from app.serving.supervisor import Supervised, Supervisor

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "unloading"]


@dataclass(frozen=True)
class ModelStatus:
    """A model as `/models` shows it.

    Attributes:
        version: the one in `state`; while another is being loaded beside it, still the one that serves.
        reason: why it failed, or why an engine is being rebuilt, or why a newer version was refused.
        manifest: None while the package has not been read, or could not be.
        model: None unless ready; engine, curve and choice are there.
        default: answers when a request of its task names no model.
        queue_rows: rows that wait for its engines.
    """

    name: str
    version: int
    state: State
    reason: str | None
    manifest: Manifest | None
    model: LoadedModel | None
    default: bool
    queue_rows: int


@dataclass
class _Entry:
    version: int
    state: State = "loading"
    reason: str | None = None
    manifest: Manifest | None = None
    deployment: Deployment | None = None


class ModelRegistry:
    """The models of one repository folder; thread-safe.

    Args:
        root: the model repository.
        engine_options, options: for every model.
        defaults: a model's name for a task; without one a real package answers before a demo, and one with random
            weights last.
        observer: where readiness, batch costs and queue lengths go.
    """

    def __init__(
        self,
        root: Path,
        engine_options: EngineOptions,
        options: ServingOptions | None = None,
        *,
        defaults: dict[Task, str] | None = None,
        observer: ServingObserver | None = None,
    ) -> None:
        self._root = root
        self._engine_options = engine_options
        self._options = options or ServingOptions()
        self._defaults = dict(defaults or {})
        self._observer = observer or SilentObserver()
        self._store = MeasuredStore(engine_options.cache_dir / "measured" if engine_options.cache_dir else None)
        self._lock = threading.Lock()
        self._changing = threading.Lock()  # one load, swap or unload at a time after the start
        self._entries: dict[str, _Entry] = {}
        self._started = False
        self._closed = False
        self._supervisor = Supervisor(self._supervised, self._options.supervision.interval_s)

    def load_all(self) -> None:
        """Load the highest version of every package, each in its own thread; returns when each is ready or failed.

        Raises:
            PackageError: the repository is not a folder.
        """
        if self._engine_options.name == "noop":
            logger.warning(
                "HIERA_ENGINE=noop: NO MODEL IS RUN, every answer is made up; for measuring the server alone"
            )
        with self._changing:
            packages = latest(discover(self._root))
            with self._lock:
                self._entries.update({package.name: _Entry(package.version) for package in packages})
                self._started = True
            self._supervisor.start()
            threads = [
                threading.Thread(target=self._try_load, args=(package,), name=f"load-{package.name}", daemon=True)
                for package in packages
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def get(self, task: Task, name: str | None) -> LoadedModel:
        """The model that answers, retained for the caller, who must `release` it.

        Raises:
            UnknownModel: no such model, or none for the task.
            Unavailable: it is loading, has failed, or its engine is being rebuilt.
        """
        with self._lock:
            name = name or self._default(task)
            entry = self._entries.get(name) if name else None
            if name is None or entry is None:
                if not self._started or (name is None and self._loading()):
                    raise Unavailable("the models are being loaded; try again soon")
                raise UnknownModel(
                    f"there is no model named {name}" if name else f"there is no model for the task {task}"
                )
            if entry.manifest is not None and entry.manifest.task != task:
                raise UnknownModel(f"{name} is a model for the task {entry.manifest.task}, not {task}")
            if entry.deployment is None or entry.state == "unloading":
                raise Unavailable(f"the model {name} {_UNAVAILABLE[entry.state]}")
            if entry.deployment.unready_reason is not None:
                raise Unavailable(f"the model {name} is being restarted; try again soon")
            entry.deployment.model.retain()
            return entry.deployment.model

    def models(self) -> list[ModelStatus]:
        """Every package that was found, by name."""
        with self._lock:
            chosen = {self._default("image"), self._default("video")}
            return [_status(name, entry, name in chosen) for name, entry in sorted(self._entries.items())]

    def unready_reason(self) -> str | None:
        """Why requests should go elsewhere; None when every package was judged, one is ready, and no engine is lost."""
        with self._lock:
            if not self._started or self._loading():
                return "the models are being loaded"
            ready = [entry.deployment for entry in self._entries.values() if entry.deployment is not None]
            if not ready:
                return "no model could be loaded" if self._entries else f"{self._root.name} holds no model package"
            lost = [f"{each.model.name}: {each.unready_reason}" for each in ready if each.unready_reason is not None]
            return "; ".join(lost) or None

    def hopeless_reason(self) -> str | None:
        """Why the process should be restarted; None when there is no need."""
        with self._lock:
            stuck = [name for name, entry in self._entries.items() if entry.deployment and entry.deployment.hopeless]
        return f"the engine of {', '.join(stuck)} hangs again and again" if stuck else None

    def load(self, name: str) -> ModelStatus:
        """Load the highest version of `name` on disk; where one serves already, swap it between two requests.

        Blocks until the new version answers and the old one is drained.

        Raises:
            UnknownModel: the repository has no such package.
            PackageError, EngineUnavailable, EngineError: it is refused; what served before serves on.
        """
        with self._changing:
            found = [package for package in latest(discover(self._root)) if package.name == name]
            if not found:
                raise UnknownModel(f"the repository has no model named {name}")
            with self._lock:
                self._started = True
                entry = self._entries.setdefault(name, _Entry(found[0].version))
            self._load(found[0], entry)
            with self._lock:
                return _status(name, entry, name in {self._default("image"), self._default("video")})

    def unload(self, name: str) -> None:
        """Take `name` out of service: refuse new requests, finish the admitted ones, give the memory back.

        Raises:
            UnknownModel: there is no such model.
        """
        with self._changing:
            with self._lock:
                entry = self._entries.get(name)
                if entry is None:
                    raise UnknownModel(f"there is no model named {name}")
                entry.state = "unloading"
                deployment = entry.deployment
            if deployment is not None:
                deployment.close(self._options.drain_s)
            with self._lock:
                del self._entries[name]

    def close(self, timeout_s: float = 30.0) -> None:
        """End every engine. Waits for admitted requests, so let the service drain first."""
        with self._lock:
            self._closed = True
            deployments = [entry.deployment for entry in self._entries.values() if entry.deployment is not None]
            for entry in self._entries.values():
                entry.state = "unloading"
        self._supervisor.stop()
        closers = [threading.Thread(target=each.close, args=(timeout_s,)) for each in deployments]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()

    def _try_load(self, path: PackagePath) -> None:
        try:
            self._load(path, self._entries[path.name])
        except HieraError as error:
            logger.error("%s version %d is not served: %s", path.name, path.version, error)
        except Exception:
            logger.exception("%s version %d is not served", path.name, path.version)

    def _load(self, path: PackagePath, entry: _Entry) -> None:
        try:
            package = open_package(path)
            with self._lock:
                if entry.deployment is None:
                    entry.version, entry.manifest, entry.state, entry.reason = (
                        path.version,
                        package.manifest,
                        "loading",
                        None,
                    )
            deployment = self._deploy(package)
        except Exception as error:
            reason = str(error) if isinstance(error, HieraError) else f"{type(error).__name__}: {error}"
            with self._lock:
                if entry.deployment is None:
                    entry.version, entry.state, entry.reason = path.version, "failed", reason
                else:
                    entry.reason = f"version {path.version} was refused: {reason}"
            raise
        with self._lock:
            old = entry.deployment
            refused = self._closed
            if not refused:
                entry.version, entry.manifest, entry.deployment = path.version, package.manifest, deployment
                entry.state, entry.reason = "ready", None
        if refused:
            deployment.close(0.0)
            return
        if old is not None:
            old.close(self._options.drain_s)
        deployment.announce_ready()

    def _deploy(self, package: Package) -> Deployment:
        return Deployment(package, self._engine_options, self._options, self._store, self._observer)

    def _supervised(self) -> list[Supervised]:
        with self._lock:
            return [entry.deployment for entry in self._entries.values() if entry.deployment is not None]

    def _loading(self) -> bool:
        return any(entry.state == "loading" for entry in self._entries.values())

    def _default(self, task: Task) -> str | None:
        if task in self._defaults:
            return self._defaults[task]
        ready = [
            entry.manifest
            for entry in self._entries.values()
            if entry.state == "ready" and entry.manifest is not None and entry.manifest.task == task
        ]
        return min(ready, key=lambda manifest: manifest.preference).name if ready else None


_UNAVAILABLE: dict[State, str] = {
    "loading": "is being loaded; try again soon",
    "ready": "is being loaded; try again soon",
    "failed": "could not be loaded; see the server's list of models",
    "unloading": "is being unloaded",
}


def _status(name: str, entry: _Entry, default: bool) -> ModelStatus:
    deployment = entry.deployment
    reason = entry.reason
    if deployment is not None and deployment.unready_reason is not None:
        reason = deployment.unready_reason
    return ModelStatus(
        name=name,
        version=entry.version,
        state=entry.state,
        reason=reason,
        manifest=entry.manifest,
        model=deployment.model if deployment is not None and entry.state == "ready" else None,
        default=default,
        queue_rows=deployment.queue_rows if deployment is not None else 0,
    )
