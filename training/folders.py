"""A user's own files in folders: which classes there are, which files train, and which are held out to measure with.

    DIR/train/<class>/*  and  DIR/val/<class>/*     the split is the user's
    DIR/<class>/*                                   every tenth file of a class is held out, by a hash of its name

A class's files may stand in folders below, whose names are parts of theirs then.

The hash keeps a file on its side when others come or go, so that a later model may be compared with an earlier one.
Pictures that are nearly the same (frames of one recording, a series of shots) can come to stand on both sides, which
flatters: their owner should make `train` and `val`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from app.commands.file_lists import classes_in

_HELD_OUT = 10  # one in so many


class FolderError(Exception):
    """A folder that nothing can be learnt from. The message says what to change in it."""


@dataclass(frozen=True)
class File:
    """One photo or clip. `label` is its place in the folder's classes."""

    path: Path
    label: int


@dataclass(frozen=True)
class Folder:
    """What a folder holds. `split` says in words how files came to be held out."""

    classes: tuple[str, ...]
    training: tuple[File, ...]
    held_out: tuple[File, ...]
    split: str


def read_folder(root: Path) -> Folder:
    """List the files of `root`, by class in the order of their names; none is opened.

    What counts, `app.commands.file_lists.classes_in` says, as it does to `hiera-serve evaluate`.

    Raises:
        FolderError: no class or only one, a class without files or with a name that no labels file can hold, a class in
            `val` that `train` lacks.
        OSError: a folder cannot be read.
    """
    if not root.is_dir():
        raise FolderError(f"{root}: no such folder")
    train, val = root / "train", root / "val"
    if train.is_dir() and val.is_dir():
        return _read_split(train, val)
    for part in (train, val):
        if part.is_dir() and classes_in(part):
            raise FolderError(
                f"{root} holds {part.name}, but not both train and val: make the other one, or pass --data {part} to "
                "have every tenth file held out"
            )
    files = _read_classes(root)
    classes = tuple(files)
    training, held_out = [], []
    for label, name in enumerate(classes):
        names = {path: str(path.relative_to(root / name)) for path in files[name]}
        chosen = held_out_names(names.values(), _HELD_OUT)
        training += [File(path, label) for path in files[name] if names[path] not in chosen]
        held_out += [File(path, label) for path in files[name] if names[path] in chosen]
    return Folder(
        classes,
        training=tuple(training),
        held_out=tuple(held_out),
        split="every tenth file of a class, by a hash of its name",
    )


def held_out_names(names: Collection[str], one_in: int) -> set[str]:
    """The names whose hash is divisible by `one_in`; at least one of two or more, and never all."""
    ranked = sorted(names, key=_hash)
    chosen = [name for name in ranked if _hash(name) % one_in == 0] or ranked[:1]
    return set(chosen[: len(ranked) - 1])


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def _read_split(train: Path, val: Path) -> Folder:
    files, measured = _read_classes(train), _read_classes(val, least=1)
    classes = tuple(files)
    unknown = sorted(measured.keys() - files.keys())
    if unknown:
        raise FolderError(f"{val} holds classes that {train} has not: {', '.join(unknown)}")
    return Folder(
        classes,
        training=tuple(File(path, label) for label, name in enumerate(classes) for path in files[name]),
        held_out=tuple(File(path, label) for label, name in enumerate(classes) for path in measured.get(name, ())),
        split="the files of val",
    )


def _read_classes(root: Path, least: int = 2) -> dict[str, list[Path]]:
    """Class name to files, both in order of name."""
    classes = {folder.name: list(folder.files) for folder in classes_in(root)}
    if not classes:
        raise FolderError(f"{root} holds no folders: put the files of each class into a folder of the class's name")
    below = [path for files in classes.values() for path in files]
    if below and all(path.parent.parent != root for path in below):  # train and validation, say, under other names
        raise FolderError(
            f"{root}: the files stand further below, as {below[0].relative_to(root)} does: pass --data the folder that "
            "holds the folders of the classes"
        )
    if len(classes) < least:
        raise FolderError(f"{root} holds one class, {next(iter(classes))!r}: there is nothing to tell apart")
    for name, files in classes.items():
        if not files:
            raise FolderError(f"{root / name} holds no files")
        if not _fits_labels_file(name):
            raise FolderError(f"{str(root / name)!a}: a class can't have that name, for a labels file can't hold it")
    return classes


def _fits_labels_file(name: str) -> bool:
    """Whether the line that the name makes is read as the name again."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes of a file system that are no text
        return False
    return name == name.strip() and not {"\n", "\r"} & set(name) and not name.startswith("\ufeff")
