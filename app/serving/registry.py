"""The models of a repository: loads packages beside each other, swaps versions, unloads.

A new version is built beside the one that serves and takes its place only when it is proven; requests that the old one
has admitted finish on the old one. One bad package never stops another. What state a model is in, the catalog knows.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from app.engines.factory import EngineOptions
from app.errors import ChangeRefused, EngineUnavailable, HieraError, PackageError, Unavailable, UnknownModel
from app.media.heap import give_back_freed_memory, map_large_blocks
from app.repository.store import PackagePath, discover, fingerprint, open_package
from app.serving.catalog import Entry, ModelCatalog
from app.serving.changes import Change
from app.serving.deployment import Deployment, ServingOptions
from app.serving.measured import MeasuredStore
from app.serving.observer import ServingObserver, SilentObserver
from app.serving.results import Task
from app.serving.supervisor import Supervised, Supervisor

logger = logging.getLogger(__name__)


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
        self._catalog = catalog = ModelCatalog(root, defaults)
        # What is asked of the models, the catalog answers.
        self.get, self.models = catalog.get, catalog.models
        self.unready_reason, self.hopeless_reason = catalog.unready_reason, catalog.hopeless_reason
        self._engine_options = engine_options
        self._options = options or ServingOptions()
        self._observer = observer or SilentObserver()
        self._store = MeasuredStore(engine_options.cache_dir / "measured" if engine_options.cache_dir else None)
        self._changing = threading.Lock()  # one load, swap or unload at a time after the start
        self._draining: list[Deployment] = []  # at most the one that a change has taken out of service
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
                self._catalog.judged("the model repository cannot be read")
                raise
            names = self._catalog.expect({name: paths[0].version for name, paths in versions.items()})
            threads = [
                threading.Thread(target=self._load_first_good, args=(versions[name],), name=f"load-{name}", daemon=True)
                for name in names
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self._catalog.judged()
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
            self._catalog.judged()
            if self._begin(path).answers_with(path.version, found):
                return Change(name, "unchanged", path.version)
            try:
                deployment, old = self._load(path)
            except Unavailable:
                raise
            except Exception as error:
                reason = str(error)
                if not isinstance(error, HieraError):
                    reason = f"{type(error).__name__}: {error}"
                    logger.exception("%s version %d cannot be loaded", name, path.version)
                self._refuse(path, error)
                raise ChangeRefused(f"{name} version {path.version} is refused: {reason}") from error
            ready = time.monotonic()
            drained = old is None or self._drain(old)
            return Change(
                name,
                "loaded" if old is None else "swapped",
                path.version,
                replaced=old.model.version if old is not None else None,
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
            before = self._catalog.withdraw(name)
            ready = time.monotonic()
            old = before.deployment
            if old is None:  # telemetry may have heard that it was refused
                self._observer.version_gone(name, before.version)
            drained = old is None or self._drain(old)
            self._catalog.remove(name)
            self._observer.model_gone(name)
            return Change(
                name,
                "unloaded",
                None,
                replaced=before.version if old is not None else None,
                ready_s=ready - began,
                drain_s=time.monotonic() - ready,
                drained=drained,
            )

    def close(self, timeout_s: float = 30.0) -> None:
        """End every engine. Waits for admitted requests, so let the service drain first."""
        deployments = self._catalog.close()
        self._supervisor.stop()
        closers = [threading.Thread(target=each.close, args=(timeout_s,)) for each in deployments]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()

    def _say_which_defaults_are_missing(self) -> None:
        known = {status.name: status.manifest for status in self.models()}
        for task, name in self._catalog.defaults.items():
            manifest = known.get(name)
            if name not in known or (manifest is not None and manifest.task != task):
                logger.error(
                    "HIERA_DEFAULT_%s_MODEL is %s, which is no model for the task %s in %s: requests without a name "
                    "get 404",
                    task.upper(),
                    name,
                    task,
                    self._root,
                )

    def _find(self, name: str, version: int | None) -> PackagePath:
        self._catalog.check_open()
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

    def _load_first_good(self, paths: list[PackagePath]) -> None:
        highest: tuple[PackagePath, Exception] | None = None
        for path in paths:
            try:
                self._begin(path)
                self._load(path)
            except Unavailable:
                return  # the server ends before it has begun
            except Exception as error:
                expected = isinstance(error, HieraError)
                logger.error("%s version %d is not served: %s", path.name, path.version, error, exc_info=not expected)
                highest = highest or (path, error.with_traceback(None))  # its frames hold this one, and the package
            else:
                break
        if highest is not None:
            self._refuse(*highest)

    def _begin(self, path: PackagePath) -> Entry:
        """What there was before this version is tried; telemetry forgets that it was refused."""
        before = self._catalog.loading(path.name, path.version)
        if before.state == "failed":
            self._observer.version_gone(path.name, before.version)
        return before

    def _load(self, path: PackagePath) -> tuple[Deployment, Deployment | None]:
        """The new deployment, in service, and the one that it has replaced, which is not drained yet."""
        package = open_package(path)
        self._catalog.loading(path.name, path.version, package.manifest)
        deployment = Deployment(package, self._engine_options, self._options, self._store, self._observer)
        try:
            old = self._catalog.serve(deployment).deployment
        except Unavailable:
            deployment.close(0.0)
            raise
        if old is not None:
            old.withdraw()
        deployment.announce_ready()
        return deployment, old

    def _refuse(self, path: PackagePath, error: Exception) -> None:
        """The list of models says why, telemetry if nothing serves."""
        why = "its engine failed; the server's log says how"
        if isinstance(error, PackageError | EngineUnavailable):  # strangers see no paths but those in the repository
            why = str(error).replace(f"{self._root}/", "").replace(f"{self._root.resolve()}/", "")
        no_engine = str(error) if isinstance(error, EngineUnavailable) else None
        reason = f"version {path.version} was refused: {why}"
        if self._catalog.refused(path.name, path.version, reason, no_engine).deployment is None:
            self._observer.model_ready(path.name, path.version, False)

    def _supervised(self) -> list[Supervised]:
        return [*self._catalog.serving(), *self._draining]

    def _drain(self, deployment: Deployment) -> bool:
        """Let what was taken out of service finish, under supervision still, and end it."""
        self._draining = [deployment]
        try:
            deployment.withdraw()
            return deployment.close(self._options.drain_s)
        finally:
            # Weights were allocated by many threads; glibc keeps their pages for these, and the next version's come on
            # top.
            give_back_freed_memory()
            self._draining = []
