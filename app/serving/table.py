"""The models of the engine host's registry, as its HTTP workers are told of them."""

from __future__ import annotations

import itertools

from app.errors import HieraError
from app.serving.model import LoadedModel
from app.serving.registry import ModelRegistry
from app.serving.results import Task
from app.serving.status import ModelStatus
from app.serving.wire import LoadedRecord, ModelRecord, State, Table, encode_error

_TASKS: tuple[Task, ...] = ("image", "video")


class ModelTable:
    """Follows a registry. Used on one event loop.

    Attributes:
        table: as of the last `refresh`; None before there was anything to tell.
        models: the loaded ones by key, retained, so that none is unloaded before the workers have let go of it.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._keys = itertools.count(1)
        self._passed: list[LoadedModel] = []
        self.table: Table | None = None
        self.models: dict[int, LoadedModel] = {}

    def refresh(self) -> bool:
        """Look at the registry; True when there is something new to show, after which `let_go` is due."""
        statuses = self._registry.models()
        if not statuses and self.table is None and self._registry.unready_reason() is not None:
            return False  # the packages are being discovered
        models: dict[int, LoadedModel] = {}
        records = tuple(self._record(status, models) for status in statuses)
        table = Table(records, {task: self._default(task) for task in _TASKS})
        self._passed += [model for key, model in self.models.items() if key not in models]
        self.models = models
        changed = table != self.table
        self.table = table
        return changed

    def let_go(self) -> None:
        """Release the models that are no longer in the table: whoever uses them has retained them by now."""
        while self._passed:
            self._passed.pop().release()

    def state(self, workers_reason: str | None) -> State:
        """How the models are now. `workers_reason` is why the HTTP workers are not ready, if they are not."""
        live = {
            status.name: (status.model.cost.correction if status.model else 1.0, status.queue_rows)
            for status in self._registry.models()
        }
        return State(self._registry.unready_reason() or workers_reason, self._registry.hopeless_reason(), live)

    def close(self) -> None:
        """Release everything."""
        self._passed += self.models.values()
        self.models = {}
        self.let_go()

    def _record(self, status: ModelStatus, models: dict[int, LoadedModel]) -> ModelRecord:
        """The wire's view of a package; the model that answers is added to `models`, retained."""
        task = status.manifest.task if status.manifest is not None else "image"
        version, manifest, model, refusal = status.version, status.manifest, status.model, None
        try:
            model = self._registry.get(task, status.name)
            version, manifest = model.version, model.manifest  # it may have been swapped since `status` was taken
        except HieraError as error:
            refusal = encode_error(error)
        key = next((key for key, known in self.models.items() if known is model), None)
        if refusal is None:
            if key is None:
                key = next(self._keys)
            elif model is not None:
                model.release()  # retained once already
        loaded = None
        if model is not None and key is not None:
            models[key] = model
            loaded = LoadedRecord(
                key, model.labels, model.engine, model.choice, model.curve, model.instances, model.feature_dim
            )
        return ModelRecord(
            name=status.name,
            version=version,
            state=status.state,
            reason=status.reason,
            manifest=manifest,
            default=status.default,
            loaded=loaded,
            refusal=refusal,
        )

    def _default(self, task: Task) -> str | bytes:
        try:
            model = self._registry.get(task, None)
        except HieraError as error:
            return encode_error(error)
        model.release()
        return model.name
