"""The model that answers for a file on the command line, loaded as a server would take it."""

from __future__ import annotations

import sys
from pathlib import Path

from app.errors import ChangeRefused, PackageError, UnknownModel
from app.repository.manifest import Manifest, read_manifest
from app.repository.store import MANIFEST, PackagePath, discover
from app.serving.registry import ModelRegistry
from app.serving.results import Task
from app.settings import Settings


def load_model(registry: ModelRegistry, packages: Path, task: Task, name: str | None) -> None:
    """Load one model only: the one that was named, or the one that the server would take.

    As in the server, a package that is refused gives way to a lower version; without a name to the next model, too.

    Raises:
        UnknownModel: there is none for the task.
        ChangeRefused: of those that there are, the last was refused.
    """
    fitting = _fitting(packages, task, name)
    if not fitting:
        if name is None:
            raise _no_model(packages, task)
        registry.load(name)  # which says why not, or that it is for another task
        return
    for manifest in fitting[:-1]:
        try:
            registry.load(manifest.name, manifest.version)
        except ChangeRefused as error:
            _pass_over(error)
        else:
            return
    registry.load(fitting[-1].name, fitting[-1].version)


def default_model(settings: Settings, task: Task) -> str | None:
    """The model that the settings name for a task."""
    return settings.default_image_model if task == "image" else settings.default_video_model


def first_choice(packages: Path, task: Task, name: str | None) -> Manifest:
    """What `load_model` tries first.

    Raises:
        UnknownModel: there is none for the task.
    """
    fitting = _fitting(packages, task, name)
    if fitting:
        return fitting[0]
    raise UnknownModel(f"{packages} has no {task} model named {name}") if name else _no_model(packages, task)


def task_of_model(packages: Path, name: str) -> Task | None:
    """The task of the model `name`; None where no package says."""
    manifests = (_manifest(package) for package in discover(packages) if package.name == name)
    return next((manifest.task for manifest in manifests if manifest is not None), None)


def _fitting(packages: Path, task: Task, name: str | None) -> list[Manifest]:
    """The versions that may answer, the first choice first."""
    fitting = [
        manifest
        for package in discover(packages)
        if name in (None, package.name) and (manifest := _manifest(package)) is not None and manifest.task == task
    ]
    return sorted(fitting, key=lambda manifest: (manifest.preference, -manifest.version))


def _no_model(packages: Path, task: Task) -> UnknownModel:
    return UnknownModel(f"{packages} holds no model for the task {task}; make one with hiera-export build")


def _manifest(package: PackagePath) -> Manifest | None:
    try:
        return read_manifest(package.folder / MANIFEST)
    except PackageError as error:
        _pass_over(error)
        return None


def _pass_over(error: Exception) -> None:
    print(f"hiera-serve: passed over: {error}", file=sys.stderr)
