"""Which files a command means: those that are named, and those of folders, which may each be of a class."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.errors import InvalidParameter
from app.load.request import IMAGE_SUFFIXES, VIDEO_SUFFIXES, shown
from app.repository.manifest import check_regular
from app.serving.results import Task


@dataclass(frozen=True)
class ClassFolder:
    """What stands for a class, a folder's name or a list's word, and its files."""

    name: str
    files: tuple[Path, ...]


def files_of(paths: Iterable[Path], task: Task | None) -> Iterator[Path]:
    """The files that are named; of folders, and of those below them, those whose ending is that of an image or a video,
    or of the task alone, by name. A folder that cannot be read is given itself, so that whoever opens it hears why."""
    for path in paths:
        if os.path.isdir(path):
            yield from _files_below(path, _suffixes(task), hidden=True)
        else:
            yield path


def classes_in(root: Path, suffixes: frozenset[str] | None = None) -> list[ClassFolder]:
    """The folders in `root`, by name, with the files in and below each; a folder may hold no file.

    What is hidden, by a dot before its name, does not count. Fine-tuning reads classes by this rule, too.

    Args:
        suffixes: of the files that count, in lower case; every file without it.

    Raises:
        OSError: `root` cannot be read.
    """
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    return [ClassFolder(name, tuple(_files_below(root / name, suffixes, hidden=False))) for name in names]


def class_folders(root: Path, task: Task | None) -> list[ClassFolder]:
    """`classes_in` a folder, with the files that end as those of the task do.

    Raises:
        InvalidParameter: it cannot be read, or holds no such folder, or no file of the task in any.
    """
    try:
        folders = classes_in(root, _suffixes(task))
    except OSError as error:
        raise InvalidParameter(f"{shown(root)}: {error.strerror}") from error
    if not any(folder.files for folder in folders):
        files = {"image": "photos", "video": "videos", None: "photos or videos"}[task]
        raise InvalidParameter(
            f"{shown(root)} holds no folders with {files}: put those of each class into a folder of the class's name, "
            "or name a list of them with --labels"
        )
    return folders


def _suffixes(task: Task | None) -> frozenset[str]:
    return {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, None: IMAGE_SUFFIXES | VIDEO_SUFFIXES}[task]


def _files_below(top: Path, suffixes: frozenset[str] | None, *, hidden: bool) -> Iterator[Path]:
    closed: list[Path] = []
    for folder, below, names in os.walk(top, onerror=lambda error: closed.append(Path(error.filename))):
        below[:] = sorted(name for name in below if hidden or not name.startswith("."))
        yield from closed
        closed.clear()
        for name in sorted(names):
            if (hidden or not name.startswith(".")) and (suffixes is None or Path(name).suffix.lower() in suffixes):
                yield Path(folder, name)
    yield from closed


def listed_classes(root: Path, labels: Path, task: Task | None) -> list[ClassFolder]:
    """The classes of a list, by number or name, with their files in the list's order; those that end like
    another task's do not count.

    A line has a file's path, from `root` on or absolute, and its class: ImageNet's val.txt and the csv files of
    Kinetics are such. A tab stands between them, else a comma (quotes are as in csv), else the last blank. `path,label`
    may be the first.

    Raises:
        InvalidParameter: `labels` cannot be read, a line is no such pair, or of a file that is not there or has had
            another class; the message names the line.
    """
    try:
        check_regular(labels)
        lines = labels.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise InvalidParameter(f"{shown(labels)}: {error.strerror}") from error
    if not os.path.isdir(root):
        raise InvalidParameter(f"{shown(root)}: no such folder")
    class_of: dict[Path, str] = {}
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, line in numbered:
        where = f"{shown(labels)}, line {number}"
        name, label = _pair(line, where)
        file = Path(os.path.normpath(root / name))
        if not os.path.isfile(file):
            if number == numbered[0][0] and label.lower() in ("label", "class"):
                continue  # the columns' names
            raise InvalidParameter(f"{where}: {shown(root)} has no file {shown(Path(name))}")
        if class_of.setdefault(file, label) != label:
            raise InvalidParameter(f"{where}: {shown(Path(name))} has another class in a line before")
    if not class_of:
        raise InvalidParameter(f"{shown(labels)}: the list is empty")
    others = frozenset() if task is None else _suffixes(None) - _suffixes(task)
    files: dict[str, list[Path]] = {}
    for file, label in class_of.items():
        if file.suffix.lower() not in others:
            files.setdefault(label, []).append(file)
    if not files:
        raise InvalidParameter(f"{shown(labels)}: no file in the list is for the task {task}, by their names' endings")
    return [ClassFolder(label, tuple(files[label])) for label in sorted(files)]


def _pair(line: str, where: str) -> tuple[str, str]:
    parts: list[str] = []
    if "\t" in line:
        parts = line.split("\t")
    elif "," in line:
        with contextlib.suppress(csv.Error):  # a field of a hundred thousand characters
            parts = next(csv.reader([line], skipinitialspace=True))
    else:
        parts = line.rsplit(maxsplit=1)
    name, label = (part.strip() for part in parts) if len(parts) == 2 else ("", "")
    if not (name and label):
        raise InvalidParameter(f"{where}: a path and a class are wanted, with a tab, a comma or a blank between them")
    return name, label
