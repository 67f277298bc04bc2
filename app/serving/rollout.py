"""Changes to the models of a running server: carried out one after the other, reported, and written to the log with
the name of who wanted them. Admin calls and the watch of the repository both come through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from app.errors import ChangeRefused, HieraError, PackageError, UnknownModel
from app.repository.store import PackagePath, discover, fingerprint, removed
from app.serving.changes import Action, Change, Order, Pending, Report, Standing, VersionOnDisk
from app.serving.registry import ModelRegistry
from app.serving.status import ModelStatus

_log = logging.getLogger("hiera.admin")

Result = TypeVar("Result")


class Rollout:
    """Carries out orders on a registry.

    Args:
        registry: the models.
        root: the repository that it loads from.
    """

    def __init__(self, registry: ModelRegistry, root: Path) -> None:
        self._registry = registry
        self._root = root

    async def administer(self, order: Order) -> Report:
        """`perform` without blocking the event loop. What was ordered is carried out even if its caller leaves.

        Raises:
            UnknownModel, ChangeRefused, Unavailable: see `perform`.
        """
        return await _in_thread(lambda: self.perform(order))

    def perform(self, order: Order) -> Report:
        """Do what is wanted; blocks until it is done and what was replaced is drained. The registry makes one change at
        a time, whoever wants it.

        Raises:
            UnknownModel: there is no such model, or no such version of it.
            ChangeRefused: the package is bad, or the repository cannot be read or is empty; what served serves on.
            Unavailable: the server is shutting down.
        """
        if order.action == "survey":
            return Report(standings=self._survey())
        if order.action == "reload":
            return Report(changes=tuple(self._reload(order)))
        return Report(changes=(self._change(order),))

    def _change(self, order: Order) -> Change:
        name = order.name or ""
        try:
            unload = order.action == "unload"
            change = self._registry.unload(name) if unload else self._registry.load(name, order.version)
        except HieraError as error:
            _log.warning("no change: %s", error, extra={"fields": _fields(order)})
            raise
        fields = _fields(order) | {
            "version": change.version,
            "replaced": change.replaced,
            "ready_s": round(change.ready_s, 3),
            "drain_s": round(change.drain_s, 3),
            "drained": change.drained,
        }
        _log.info("%s %s", name, _WORDS.get(change.outcome, change.outcome), extra={"fields": fields})
        return change

    def _reload(self, order: Order) -> list[Change]:
        standings = self._survey()
        if not any(standing.on_disk for standing in standings):
            raise ChangeRefused(
                f"{self._root} holds no package, as it would if a volume were not mounted; nothing is changed. "
                "Unload models one by one if that is meant"
            )
        changes = []
        for standing in standings:
            served = standing.version if standing.state == "ready" else None
            if standing.pending is None:
                if not standing.on_disk:
                    _log.warning(
                        "no change: %s", _UNSEEN, extra={"fields": _fields(replace(order, name=standing.name))}
                    )
                    changes.append(Change(standing.name, "refused", served, reason=_UNSEEN))
                continue
            action: Action = "unload" if standing.pending == "unload" else "load"
            try:
                changes.append(self._change(Order(action, order.by, standing.name, request_id=order.request_id)))
            except UnknownModel:  # what was to be unloaded or loaded has gone since the survey
                continue
            except ChangeRefused as error:
                changes.append(Change(standing.name, "refused", served, reason=str(error)))
        return changes

    def _survey(self) -> tuple[Standing, ...]:
        try:
            found = discover(self._root)
        except PackageError as error:
            raise ChangeRefused(str(error)) from error
        known = {status.name: status for status in self._registry.models()}
        on_disk: dict[str, list[PackagePath]] = {}
        for path in found:
            on_disk.setdefault(path.name, []).append(path)
        return tuple(
            _standing(name, known.get(name), on_disk.get(name, []), removed(self._root, name))
            for name in sorted({*known, *on_disk})
        )


_UNSEEN = (
    "no version can be seen in the model's folder, as if it were not mounted, or not for this user; "
    "unload the model if that is meant"
)
_WORDS = {"swapped": "is swapped", "loaded": "is loaded", "unloaded": "is unloaded", "unchanged": "serves already"}


def _standing(name: str, status: ModelStatus | None, paths: list[PackagePath], gone: bool) -> Standing:
    served = (status.version, status.fingerprint) if status is not None and status.state == "ready" else None
    versions = tuple(VersionOnDisk(path.version, fingerprint(path), False) for path in paths)
    versions = tuple(
        VersionOnDisk(each.version, each.fingerprint, (each.version, each.fingerprint) == served) for each in versions
    )
    pending: Pending | None = None
    if not versions:
        pending = "unload" if gone else None
    elif not versions[-1].serves:
        pending = "load" if served is None else "swap"
    return Standing(
        name,
        version=status.version if status else None,
        state=status.state if status else None,
        reason=status.reason if status else None,
        fingerprint=status.fingerprint if status else None,
        on_disk=versions,
        pending=pending,
    )


def _fields(order: Order) -> dict[str, object]:
    fields: dict[str, object] = {"key": order.by, "action": order.action, "model": (order.name or "")[:128]}
    if order.version is not None:
        fields["wanted_version"] = order.version
    if order.request_id is not None:
        fields["request_id"] = order.request_id
    return fields


async def _in_thread(work: Callable[[], Result]) -> Result:
    """The result of `work` in a thread of its own. Not in the event loop's pool: a drain takes as long as the longest
    request, and must neither use up the pool nor keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type] # without an error there is a result

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="model-change", daemon=True).start()
    return await done
