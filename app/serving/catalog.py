"""What is known of every model, for whoever asks: requests, `/models`, readiness, the supervisor."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from app.errors import Unavailable, UnknownModel
from app.repository.manifest import Manifest
from app.serving.changes import State
from app.serving.deployment import Deployment
from app.serving.model import LoadedModel
from app.serving.results import Task
from app.serving.status import ModelStatus
from app.serving.supervisor import Supervised


@dataclass
class Entry:
    """A model by its name. Its fields change under the catalog's lock alone."""

    version: int
    state: State = "loading"
    reason: str | None = None
    manifest: Manifest | None = None
    deployment: Deployment | None = None
    no_engine: str | None = None  # what this machine lacks for it, where that is why it failed

    @property
    def refused(self) -> int | None:
        """The version that was refused, where nothing serves in its place."""
        return self.version if self.state == "failed" else None

    @property
    def answers(self) -> bool:
        """Whether requests are answered now, and not only after a rebuild."""
        return self.deployment is not None and self.deployment.unready_reason is None


class ModelCatalog:
    """The models by name; thread-safe. `ModelRegistry` is the one that changes it.

    Args:
        root: the model repository, for messages.
        defaults: a model's name for a task; without one a real package answers before a demo, and one with random
            weights last.
    """

    def __init__(self, root: Path, defaults: dict[Task, str] | None = None) -> None:
        self._root = root
        self._defaults = dict(defaults or {})
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._draining: list[Deployment] = []
        self._trouble: str | None = None
        self._judged = False  # every package that was there at the start

    def get(self, task: Task, name: str | None) -> LoadedModel:
        """The model that answers, retained for the caller, who must `release` it.

        Raises:
            UnknownModel: no such model, or none for the task.
            Unavailable: it is loading, has failed, or its engine is being rebuilt.
        """
        with self._lock:
            wanted = name
            # A demo model, which is loaded sooner, must not answer for the real one.
            if not wanted and (self._judged or task in self._defaults):
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
            if entry.deployment is None or entry.state == "unloading":
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
            ready = [entry.deployment for entry in self._entries.values() if entry.deployment is not None]
            if not ready and not self._entries:
                return self._trouble or f"{self._root.name} holds no model package, or all were unloaded"
            if not ready:
                lacks = dict.fromkeys(entry.no_engine for entry in self._entries.values() if entry.no_engine)
                return "no model could be loaded" + (f": {'; '.join(lacks)}" if lacks else "")
            lost = [each.model.name for each in ready if each.unready_reason is not None]
            return f"the engine of {', '.join(lost)} is being rebuilt" if lost else None

    def hopeless_reason(self) -> str | None:
        """Why the process should be restarted; None when there is no need."""
        with self._lock:
            stuck = [name for name, entry in self._entries.items() if entry.deployment and entry.deployment.hopeless]
        return f"the engine of {', '.join(stuck)} cannot be had again by this process" if stuck else None

    def _supervised(self) -> list[Supervised]:
        with self._lock:
            serving = (entry.deployment for entry in self._entries.values() if entry.deployment is not None)
            return [*serving, *self._draining]

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
        model=deployment.model if deployment is not None and entry.state == "ready" else None,
        default=default,
        queue_rows=deployment.queue_rows if deployment is not None else 0,
        fingerprint=deployment.package.fingerprint if deployment is not None else None,
    )
