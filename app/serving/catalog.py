"""What is known of every model, and the one place where that changes: each arrow is a method, under one lock.

                                        serve (a swap), loading, refused: it serves on
                                          ┌──┐
    expect,                               ▼  │
    loading ──▶ loading ─────serve─────▶ ready ──────────┐
                 │   ▲                                   │
             refused loading                             ├─withdraw─▶ unloading ──remove──▶ gone
                 ▼   │                                   │
                failed ──────────────────────────────────┘ (and from loading)

`close` makes all of them unloading for good: what comes after it raises. Changes of one model come one after the other,
which the registry sees to; requests, `/models`, readiness and the supervisor look at any time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from app.errors import Unavailable, UnknownModel
from app.repository.manifest import Manifest
from app.serving.changes import State
from app.serving.deployment import Deployment
from app.serving.model import LoadedModel
from app.serving.results import Task
from app.serving.status import ModelStatus


@dataclass(frozen=True)
class Entry:
    """A model by its name. It has a deployment while it is ready, and then only.

    Attributes:
        manifest: of the last version that could be read.
        reason: why the last version that was tried is refused.
        no_engine: what this machine lacks for it, where that is why it failed.
    """

    state: State
    version: int
    manifest: Manifest | None = None
    reason: str | None = None
    no_engine: str | None = None
    deployment: Deployment | None = None

    def answers_with(self, version: int, fingerprint: str | None) -> bool:
        """Whether that very package answers now, and not only after a rebuild."""
        if self.deployment is None or self.deployment.unready_reason is not None:
            return False
        return (self.version, self.deployment.package.fingerprint) == (version, fingerprint)


class ModelCatalog:
    """The models by name; thread-safe. A change returns the entry that it has replaced.

    Args:
        root: the model repository, for messages.
        defaults: a model's name for a task.
    """

    def __init__(self, root: Path, defaults: dict[Task, str] | None = None) -> None:
        self._root = root
        self.defaults = dict(defaults or {})
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._trouble: str | None = None
        self._judged = False  # every package that was there at the start
        self._closed = False

    def expect(self, versions: dict[str, int]) -> list[str]:
        """The start has found these, by name, and loads those that are returned: the others an admin had loaded."""
        with self._lock:
            self._judged = False
            for name, version in versions.items():
                self._entries.setdefault(name, Entry("loading", version))
            return [name for name in versions if self._entries[name].deployment is None]

    def judged(self, trouble: str | None = None) -> None:
        """No more is to be waited for: every package was judged, or there is `trouble` with all of them."""
        with self._lock:
            self._judged, self._trouble = True, trouble

    def check_open(self) -> None:
        """Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the server is shutting down", code="draining")

    def loading(self, name: str, version: int, manifest: Manifest | None = None) -> Entry:
        """A version is being tried, and its manifest has been read, or not yet. A model that serves stays ready."""
        with self._lock:
            self.check_open()
            before = self._entries.get(name) or Entry("loading", version)
            if before.deployment is not None:
                self._entries[name] = replace(before, reason=None)
            else:
                self._entries[name] = Entry("loading", version, manifest or before.manifest)
            return before

    def refused(self, name: str, version: int, reason: str, no_engine: str | None) -> Entry:
        """A version cannot be served; the model has failed unless another one serves."""
        with self._lock:
            before = self._entries[name]
            if before.deployment is not None:
                self._entries[name] = replace(before, reason=reason)
            elif before.state == "loading":
                self._entries[name] = Entry("failed", version, before.manifest, reason, no_engine)
            return before

    def serve(self, deployment: Deployment) -> Entry:
        """Lead requests to a deployment that is proven."""
        model = deployment.model
        with self._lock:
            self.check_open()
            before = self._entries[model.name]
            self._entries[model.name] = Entry("ready", model.version, model.manifest, deployment=deployment)
            return before

    def withdraw(self, name: str) -> Entry:
        """Refuse requests for a model that is about to go. Raises UnknownModel if there is none."""
        with self._lock:
            self.check_open()
            before = self._entries.get(name)
            if before is None:
                raise UnknownModel(f"there is no model named {name}")
            self._entries[name] = replace(before, state="unloading", deployment=None)
            return before

    def remove(self, name: str) -> None:
        """A model that was withdrawn is gone."""
        with self._lock:
            del self._entries[name]

    def close(self) -> list[Deployment]:
        """Refuse requests and changes for good; what has served is for the caller to end."""
        with self._lock:
            self._closed = True
            serving = self._serving()
            for name, entry in self._entries.items():
                self._entries[name] = replace(entry, state="unloading", deployment=None)
            return serving

    def get(self, task: Task, name: str | None) -> LoadedModel:
        """The model that answers, retained for the caller, who must `release` it.

        Raises:
            UnknownModel: no such model, or none for the task.
            Unavailable: it is loading, has failed, or its engine is being rebuilt.
        """
        with self._lock:
            wanted = name
            # A demo model, which is loaded sooner, must not answer for the real one.
            if not wanted and (self._judged or task in self.defaults):
                wanted = self._default(task)
            entry = self._entries.get(wanted) if wanted else None
            if not wanted or entry is None:
                if not self._judged:
                    raise Unavailable("the models are being loaded; try again soon")
                if not wanted:
                    raise UnknownModel(f"there is no model for the task {task}")
                if not name:
                    raise UnknownModel(f"the default model for the task {task} is not there; name one with ?model=")
                raise UnknownModel(f"there is no model named {name}")
            if entry.manifest is not None and entry.manifest.task != task:
                raise UnknownModel(f"{wanted} is a model for the task {entry.manifest.task}, not {task}")
            if entry.deployment is None:
                raise Unavailable(f"the model {wanted} {_UNAVAILABLE[entry.state]}")
            if entry.deployment.unready_reason is not None:
                raise Unavailable(f"the model {wanted} is being restarted; try again soon")
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
            if not self._judged:
                return "the models are being loaded"
            serving = self._serving()
            if not self._entries:
                return self._trouble or f"{self._root.name} holds no model package, or all were unloaded"
            if not serving:
                lacks = dict.fromkeys(entry.no_engine for entry in self._entries.values() if entry.no_engine)
                return "no model could be loaded" + (f": {'; '.join(lacks)}" if lacks else "")
            lost = [each.model.name for each in serving if each.unready_reason is not None]
            return f"the engine of {', '.join(lost)} is being rebuilt" if lost else None

    def hopeless_reason(self) -> str | None:
        """Why the process should be restarted; None when there is no need."""
        with self._lock:
            stuck = [each.model.name for each in self._serving() if each.hopeless]
        return f"the engine of {', '.join(stuck)} cannot be had again by this process" if stuck else None

    def serving(self) -> list[Deployment]:
        """What requests are led to."""
        with self._lock:
            return self._serving()

    def _serving(self) -> list[Deployment]:
        return [entry.deployment for entry in self._entries.values() if entry.deployment is not None]

    def _default(self, task: Task) -> str | None:
        if task in self.defaults:
            return self.defaults[task]
        ready = [each.model.manifest for each in self._serving() if each.model.manifest.task == task]
        return min(ready, key=lambda manifest: manifest.preference).name if ready else None


_UNAVAILABLE: dict[State, str] = {
    "loading": "is being loaded; try again soon",
    "failed": "could not be loaded; see the server's list of models",
    "unloading": "is being unloaded",
}


def _status(name: str, entry: Entry, default: bool) -> ModelStatus:
    deployment = entry.deployment
    reason = entry.reason
    if deployment is not None and deployment.unready_reason is not None:
        reason = "its engine is being rebuilt; the server's log says why"
    return ModelStatus(
        name=name,
        version=entry.version,
        state=entry.state,
        reason=reason,
        manifest=entry.manifest,
        model=deployment.model if deployment is not None else None,
        default=default,
        queue_rows=deployment.queue_rows if deployment is not None else 0,
        fingerprint=deployment.package.fingerprint if deployment is not None else None,
    )
