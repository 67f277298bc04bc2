"""Which files a command means: those that are named, and those of folders, which may each be of a class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.errors import InvalidParameter
from app.load.request import IMAGE_SUFFIXES, VIDEO_SUFFIXES, shown
from app.serving.results import Task


@dataclass(frozen=True)
class ClassFolder:
    """A folder of a class, and its files, with those of folders below it."""

    name: str
    files: tuple[Path, ...]


def files_of(paths: Iterable[Path], task: Task | None) -> Iterator[Path]:
    """The files that are named; of folders, and of those below them, those whose ending is that of an image or a video,
    or of the task alone, by name. A folder that cannot be read is given itself, so that whoever opens it hears why."""
    suffixes = (IMAGE_SUFFIXES if task != "video" else frozenset()) | (
        VIDEO_SUFFIXES if task != "image" else frozenset()
    )
    for path in paths:
        if os.path.isdir(path):
            yield from _files_below(path, suffixes)
        else:
            yield path


def class_folders(root: Path, task: Task | None) -> list[ClassFolder]:
    """The folders in `root`, by name, without hidden ones; a folder may hold no file.

    Raises:
        InvalidParameter: it cannot be read, or holds no such folder, or no file of the task in any.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InvalidParameter(f"{shown(root)}: {error.strerror}") from error
    folders = [ClassFolder(name, tuple(files_of([root / name], task))) for name in names]
    if not any(folder.files for folder in folders):
        files = {"image": "photos", "video": "videos", None: "photos or videos"}[task]
        raise InvalidParameter(
            f"{shown(root)} holds no folders with {files}: put those of each class into a folder of the class's name"
        )
    return folders


def _files_below(top: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    closed: list[Path] = []
    for folder, below, names in os.walk(top, onerror=lambda error: closed.append(Path(error.filename))):
        below.sort()
        yield from closed
        closed.clear()
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix.lower() in suffixes)
    yield from closed
