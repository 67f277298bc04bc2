"""A model as it is shown: by `/models`, to HTTP workers, and in the log."""

from __future__ import annotations

from dataclasses import dataclass

from app.repository.manifest import Manifest
from app.serving.changes import State
from app.serving.model import LoadedModel


@dataclass(frozen=True)
class ModelStatus:
    """A model as `/models` shows it.

    Attributes:
        version: the one in `state`; while another is being loaded beside it, still the one that serves.
        reason: why it failed, or why an engine is being rebuilt, or why another version was refused.
        manifest: None while the package has not been read, or could not be.
        model: None unless ready; engine, curve and choice are there.
        default: answers when a request of its task names no model.
        queue_rows: rows that wait for its engines.
        fingerprint: of the package that serves; None unless ready, and in processes without engines.
    """

    name: str
    version: int
    state: State
    reason: str | None
    manifest: Manifest | None
    model: LoadedModel | None
    default: bool
    queue_rows: int
    fingerprint: str | None = None
