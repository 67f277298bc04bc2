"""What may be asked of a server's models while it runs, and what came of it: plain records that travel as JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Action = Literal["survey", "load", "unload", "reload"]
Outcome = Literal["loaded", "swapped", "unloaded", "unchanged", "refused"]
Pending = Literal["load", "swap", "unload"]
State = Literal["loading", "ready", "failed", "unloading"]


@dataclass(frozen=True)
class Order:
    """What somebody who may do so wants done.

    Attributes:
        action: "survey" only looks; "load" and "unload" are for one model; "reload" brings all models in line with the
            repository.
        by: the name of the admin key, or "watch", for the log.
        name, version: of the model, for "load" and "unload"; without a version the highest on disk is meant.
        request_id: of the request that brought it.
    """

    action: Action
    by: str
    name: str | None = None
    version: int | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class Change:
    """What became of one model.

    Attributes:
        outcome: "refused" leaves what served before; "unchanged" says that the package serves already.
        version: the one that serves now; None when none does.
        replaced: the version that served before, if it does no longer.
        golden: what the golden check said of the new version.
        reason: why it was refused.
        ready_s: until requests went to the new version; for an unload, until they were refused.
        drain_s: from there until what was replaced had answered its last request and its engines had ended.
        drained: False when it had not within the bound, and was ended all the same.
    """

    name: str
    outcome: Outcome
    version: int | None
    replaced: int | None = None
    golden: str | None = None
    reason: str | None = None
    ready_s: float = 0.0
    drain_s: float = 0.0
    drained: bool = True


@dataclass(frozen=True)
class VersionOnDisk:
    """A version folder. `fingerprint` is None when its manifest cannot be read."""

    version: int
    fingerprint: str | None
    serves: bool


@dataclass(frozen=True)
class Standing:
    """A model on disk and in service.

    Attributes:
        version, state, reason, fingerprint: as the server has it; None when it has not.
        on_disk: the versions in the repository.
        pending: what a reload would do about it; None for nothing.
    """

    name: str
    version: int | None
    state: State | None
    reason: str | None
    fingerprint: str | None
    on_disk: tuple[VersionOnDisk, ...]
    pending: Pending | None


@dataclass(frozen=True)
class Report:
    """The answer to an order: what was changed, or for a survey how things stand."""

    changes: tuple[Change, ...] = ()
    standings: tuple[Standing, ...] = ()


Administer = Callable[[Order], Awaitable[Report]]
"""Carries out a change of the models."""


def encode_order(order: Order) -> bytes:
    return json.dumps(asdict(order)).encode()


def decode_order(text: bytes) -> Order:
    """Raises ValueError or TypeError when it is none."""
    order = Order(**json.loads(text))
    named = order.action in ("load", "unload")
    if (
        order.action not in ("survey", "load", "unload", "reload")
        or named != isinstance(order.name, str)
        or not isinstance(order.version, int | None)
        or not isinstance(order.by, str)
    ):
        raise ValueError("an order that is none")
    return order


def encode_report(report: Report) -> bytes:
    return json.dumps(asdict(report)).encode()


def decode_report(text: bytes) -> Report:
    document: dict[str, Any] = json.loads(text)
    return Report(
        tuple(Change(**change) for change in document["changes"]),
        tuple(
            Standing(**{**standing, "on_disk": tuple(VersionOnDisk(**each) for each in standing["on_disk"])})
            for standing in document["standings"]
        ),
    )
