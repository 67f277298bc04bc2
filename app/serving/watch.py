"""Watches the model repository: what was added, replaced or removed there is loaded, swapped or unloaded here.

A look costs a few system calls a file and reads none. A model's files are acted upon once they have held still from one
look to the next, so a package that is being copied is waited for; and once only, so one that is refused is neither
tried nor logged again until it changes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from app.errors import HieraError, PackageError
from app.repository.store import MANIFEST, PackagePath, discover, removed
from app.serving.changes import Action, Order
from app.serving.registry import ModelRegistry
from app.serving.rollout import Rollout

_log = logging.getLogger("hiera.admin")

WATCH = "watch"  # who it was that wanted a change, in the log

_Stamp = tuple[str, int, int, int]


@dataclass(frozen=True)
class _Seen:
    """A model's highest version on disk, and what tells whether its files have changed.

    Attributes:
        stamps: path, size, time of change and inode of every file of the version, and of those that versions share.
        orphaned: the version that serves is no longer on disk.
    """

    version: int
    stamps: tuple[_Stamp, ...]
    orphaned: bool


class RepositoryWatch:
    """Looks at the repository every `interval_s` seconds, from `start` on, and has `rollout` act.

    Two things it leaves alone: a model that an admin call has put back to an older version, or unloaded, stays so until
    its highest version on disk changes; and nothing is unloaded because the whole repository, or the model's folder,
    is empty or cannot be read, for so does a volume look that is not mounted.
    """

    def __init__(self, registry: ModelRegistry, rollout: Rollout, root: Path, interval_s: float) -> None:
        self._registry = registry
        self._rollout = rollout
        self._root = root
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._known: dict[str, _Seen] = {}  # acted upon, or loaded by the start
        self._before: dict[str, _Seen] = {}  # at the last look
        self._missing: set[str] = set()  # at the last look
        self._complaint: str | None = None

    def note(self) -> None:
        """Take what is on disk for known: the start is about to load it."""
        try:
            self._known, _ = self._scan()
        except PackageError:
            self._known = {}

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._look_on, name="watch-repository", daemon=True).start()

    def stop(self) -> None:
        """Look no more; a change that is under way is left to the registry's own end."""
        self._stop.set()

    def look(self) -> None:
        """Look once, and act on what has held still since the last time."""
        try:
            seen, names = self._scan()
        except PackageError as error:
            self._complain(f"{error}; what serves is left as it is")
            return
        served = {status.name for status in self._registry.models()}
        if served and not names:
            self._complain(
                f"{self._root} holds no model any more, as if it were not mounted: nothing is unloaded; "
                "models can be unloaded one by one with an admin call"
            )
            return
        missing = {name for name in served - names if removed(self._root, name)}
        if unseen := sorted(served - names - missing):
            self._complain(
                f"no version can be seen in the folder of {', '.join(unseen)}, as if it were not mounted, or not for "
                "this user: what serves is left as it is"
            )
        else:
            self._complaint = None
        for name in sorted(missing & self._missing):
            self._known.pop(name, None)
            self._act("unload", name)
        for name, now in seen.items():
            if self._known.get(name) == replace(now, orphaned=True):
                self._known[name] = now  # that a version of those on disk serves again is no news of its files
            elif now != self._known.get(name) and now == self._before.get(name):
                self._known[name] = now
                self._act("load", name, now.version)
        self._before, self._missing = seen, missing

    def _look_on(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.look()
            except Exception as error:
                self._complain(f"{type(error).__name__}: {error}")

    def _act(self, action: Action, name: str, version: int | None = None) -> None:
        try:
            self._rollout.perform(Order(action, WATCH, name, version))
        except HieraError:
            return  # the rollout has written it to the log, and the catalog keeps the reason

    def _complain(self, trouble: str) -> None:
        """Say what is wrong once, not at every look."""
        if trouble != self._complaint:
            self._complaint = trouble
            _log.warning("the model repository cannot be followed: %s", trouble)

    def _scan(self) -> tuple[dict[str, _Seen], set[str]]:
        """What is on disk, of the models that have a manifest; and the names of all whose versions can be read."""
        serving = {status.name: status.version for status in self._registry.models() if status.state == "ready"}
        versions: dict[str, list[PackagePath]] = {}
        for path in discover(self._root):
            versions.setdefault(path.name, []).append(path)
        seen: dict[str, _Seen] = {}
        names: set[str] = set()
        for name, paths in versions.items():
            try:
                whole = [path for path in paths if _has_manifest(path)]
            except OSError:
                continue  # a version below one that cannot be read is not the highest
            names.add(name)
            if whole:
                orphaned = name in serving and serving[name] not in {path.version for path in paths}
                seen[name] = _Seen(whole[-1].version, tuple(sorted(_stamps(whole[-1].folder))), orphaned)
        return seen, names


def _has_manifest(path: PackagePath) -> bool:
    """Raises OSError when it cannot be told; `Path.exists` would take that for a no, from Python 3.14 on."""
    try:
        (path.folder / MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _stamps(folder: Path) -> Iterator[_Stamp]:
    """Of the files below a version's folder, and of those beside it."""
    for base, recursive in ((folder, True), (folder.parent, False)):
        for place, _, files in os.walk(base):
            for file in files:
                path = os.path.join(place, file)
                try:
                    status = os.stat(path)
                except OSError:
                    continue  # it has gone since, which the next look sees
                yield path, status.st_size, status.st_mtime_ns, status.st_ino
            if not recursive:
                break
