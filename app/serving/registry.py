"""The models of a repository: loads packages beside each other, swaps versions, unloads.

    discovered ──> loading ──> ready ──> unloading ──> gone
                      └──> failed(reason)

A new version is built beside the one that serves and takes its place only when it is proven; requests that the old one
has admitted finish on the old one. One bad package never stops another.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from app.engines.factory import EngineOptions
from app.errors import ChangeRefused, EngineUnavailable, HieraError, PackageError, Unavailable, UnknownModel
from app.media.heap import give_back_freed_memory, map_large_blocks
from app.repository.store import Package, PackagePath, discover, fingerprint, open_package
from app.serving.catalog import Entry, ModelCatalog
from app.serving.changes import Change
from app.serving.deployment import Deployment, ServingOptions
from app.serving.measured import MeasuredStore
from app.serving.observer import ServingObserver, SilentObserver
from app.serving.results import Task
from app.serving.supervisor import Supervisor

logger = logging.getLogger(__name__)


class ModelRegistry(ModelCatalog):
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
        super().__init__(root, defaults)
        self._engine_options = engine_options
        self._options = options or ServingOptions()
        self._observer = observer or SilentObserver()
        self._store = MeasuredStore(engine_options.cache_dir / "measured" if engine_options.cache_dir else None)
        self._changing = threading.Lock()  # one load, swap or unload at a time after the start
        self._closed = False
        self._supervisor = Supervisor(self._supervised, self._options.supervision.interval_s)

    def load_all(self) -> None:
        """Load every model, each in its own thread; returns when each is ready or failed. A version that is refused
        gives way to the next lower one.

        Raises:
            PackageError: the repository is not a folder.
        """
        if self._engine_options.name == "noop":
            logger.warning(
                "HIERA_ENGINE=noop: NO MODEL IS RUN, every answer is made up; for measuring the server alone"
            )
        map_large_blocks()
        with self._changing:
            self._supervisor.start()
            versions: dict[str, list[PackagePath]] = {}
            try:
                for path in reversed(discover(self._root)):
                    versions.setdefault(path.name, []).append(path)
            except PackageError:
                self._trouble, self._judged = "the model repository cannot be read", True
                raise
            with self._lock:
                self._judged = False
                for name, paths in versions.items():
                    self._entries.setdefault(name, Entry(paths[0].version))
                # What an admin has had loaded before the start came to it serves on.
                names = [name for name in versions if self._entries[name].deployment is None]
            threads = [
                threading.Thread(target=self._load_first_good, args=(versions[name],), name=f"load-{name}", daemon=True)
                for name in names
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self._judged = True
            self._say_which_defaults_are_missing()

    def load(self, name: str, version: int | None = None) -> Change:
        """Load a version of `name`, by default the highest on disk; where one serves already, swap between two batches.

        The new version is proven and warmed beside the old one. Blocks until it serves and the old one is drained.

        Raises:
            UnknownModel: the repository has no such package.
            ChangeRefused: the package is bad; what served before serves on.
            Unavailable: the registry is closed.
        """
        began = time.monotonic()
        with self._changing:
            path = self._find(name, version)
            found = fingerprint(path)  # not under the lock: every request needs that, and a file system can hang
            with self._lock:
                self._judged, self._trouble = True, None
                entry = self._entries.setdefault(name, Entry(path.version))
                before = entry.version if entry.deployment is not None else None
                if entry.answers and entry.deployment is not None:
                    served = entry.deployment.package
                    if (served.manifest.version, served.fingerprint) == (path.version, found):
                        entry.reason = None
                        return Change(name, "unchanged", path.version)
            try:
                deployment, old = self._load(path, entry)
            except Unavailable:
                raise
            except Exception as error:
                if not isinstance(error, HieraError):
                    logger.exception("%s version %d cannot be loaded", name, path.version)
                self._announce_refused(name, entry)
                raise ChangeRefused(f"{name} version {path.version} is refused: {_reason(error)}") from error
            ready = time.monotonic()
            drained = old is None or self._drain(old)
            return Change(
                name,
                "loaded" if before is None else "swapped",
                path.version,
                replaced=before,
                golden=deployment.golden,
                ready_s=ready - began,
                drain_s=time.monotonic() - ready,
                drained=drained,
            )

    def unload(self, name: str) -> Change:
        """Take `name` out of service: refuse new requests, finish the admitted ones, give the memory back.

        Raises:
            UnknownModel: there is no such model.
            Unavailable: the registry is closed.
        """
        began = time.monotonic()
        with self._changing:
            self._check_open()
            with self._lock:
                entry = self._entries.get(name)
                if entry is None:
                    raise UnknownModel(f"there is no model named {name}")
                before = entry.version if entry.deployment is not None else None
                deployment, entry.deployment, entry.state = entry.deployment, None, "unloading"
            ready = time.monotonic()
            if deployment is None:  # telemetry may have heard that it was refused
                self._observer.version_gone(name, entry.version)
            drained = deployment is None or self._drain(deployment)
            with self._lock:
                del self._entries[name]
            self._observer.model_gone(name)
            return Change(
                name,
                "unloaded",
                None,
                replaced=before,
                ready_s=ready - began,
                drain_s=time.monotonic() - ready,
                drained=drained,
            )

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

    def _say_which_defaults_are_missing(self) -> None:
        for task, name in self._defaults.items():
            entry = self._entries.get(name)
            if entry is None or (entry.manifest is not None and entry.manifest.task != task):
                logger.error(
                    "HIERA_DEFAULT_%s_MODEL is %s, which is no model for the task %s in %s: requests without a name "
                    "get 404",
                    task.upper(),
                    name,
                    task,
                    self._root,
                )

    def _find(self, name: str, version: int | None) -> PackagePath:
        self._check_open()
        try:
            found = [path for path in discover(self._root) if path.name == name]
        except PackageError as error:
            raise ChangeRefused(str(error)) from error
        if not found:
            raise UnknownModel(f"the repository has no model named {name}")
        if version is None:
            return found[-1]
        for path in found:
            if path.version == version:
                return path
        have = ", ".join(str(path.version) for path in found)
        raise UnknownModel(f"the repository has no version {version} of {name}; it has {have}")

    def _check_open(self) -> None:
        with self._lock:
            if self._closed:
                raise Unavailable("the server is shutting down", code="draining")

    def _load_first_good(self, paths: list[PackagePath]) -> None:
        entry = self._entries[paths[0].name]
        refusal: str | None = None
        for path in paths:
            try:
                self._load(path, entry)
            except Unavailable:
                return  # the server ends before it has begun
            except Exception as error:
                expected = isinstance(error, HieraError)
                logger.error("%s version %d is not served: %s", path.name, path.version, error, exc_info=not expected)
                refusal = refusal or f"version {path.version} was refused: {_for_strangers(error, self._root)}"
            else:
                break
        with self._lock:
            entry.reason = refusal
            if entry.deployment is None:
                entry.version = paths[0].version
        self._announce_refused(paths[0].name, entry)

    def _announce_refused(self, name: str, entry: Entry) -> None:
        """Telemetry hears of a model of which nothing serves because its package was refused."""
        with self._lock:
            refused = entry.refused
        if refused is not None:
            self._observer.model_ready(name, refused, False)

    def _load(self, path: PackagePath, entry: Entry) -> tuple[Deployment, Deployment | None]:
        """The new deployment, in service, and the one that it has replaced, which is not drained yet."""
        with self._lock:
            refused = entry.refused
        if refused is not None:
            self._observer.version_gone(path.name, refused)
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
            with self._lock:
                entry.reason = f"version {path.version} was refused: {_for_strangers(error, self._root)}"
                if entry.deployment is None:
                    entry.version, entry.state = path.version, "failed"
                    entry.no_engine = str(error) if isinstance(error, EngineUnavailable) else None
            raise
        with self._lock:
            closed, old = self._closed, entry.deployment
            if not closed:
                entry.version, entry.manifest, entry.deployment = path.version, package.manifest, deployment
                entry.state, entry.reason = "ready", None
        if closed:
            deployment.close(0.0)
            raise Unavailable("the server is shutting down", code="draining")
        if old is not None:
            old.withdraw()
        deployment.announce_ready()
        return deployment, old

    def _drain(self, deployment: Deployment) -> bool:
        """Let what was taken out of service finish, under supervision still, and end it."""
        with self._lock:
            self._draining.append(deployment)
        try:
            deployment.withdraw()
            return deployment.close(self._options.drain_s)
        finally:
            # Weights were allocated by many threads; glibc keeps their pages for these, and the next version's come on
            # top.
            give_back_freed_memory()
            with self._lock:
                self._draining.remove(deployment)

    def _deploy(self, package: Package) -> Deployment:
        return Deployment(package, self._engine_options, self._options, self._store, self._observer)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, HieraError) else f"{type(error).__name__}: {error}"


def _for_strangers(error: Exception, root: Path) -> str:
    """What the list of models may say: nothing of a library's own, and no path but those within the repository."""
    if not isinstance(error, PackageError | EngineUnavailable):
        return "its engine failed; the server's log says how"
    return str(error).replace(f"{root}/", "").replace(f"{root.resolve()}/", "")
