"""Finds model packages on disk and reads them whole: manifest, labels, golden sample, and the hash of every file."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.errors import PackageError
from app.repository.manifest import NAME, Manifest, check_regular, read_manifest

logger = logging.getLogger(__name__)

MANIFEST = "model.json"
GRAPH = "model.onnx"
GOLDEN = "golden.npz"
LABELS = "labels.txt"

_NAME = re.compile(NAME)
_VERSION = re.compile(r"[1-9][0-9]*")  # 01 would be a second 1; Triton passes over it, too
_passed_over: set[Path] = set()  # what the log was told of


@dataclass(frozen=True)
class Golden:
    """Rows and what the fp32 reference says of them: a package is served only where the engine agrees."""

    rows: NDArray[np.uint8]  # [n, *row_shape]
    probabilities: NDArray[np.float32]  # [n, classes]


@dataclass(frozen=True)
class PackagePath:
    """One version of one model, `<root>/<name>/<version>`, not read yet."""

    name: str
    version: int
    folder: Path


@dataclass(frozen=True)
class Package:
    """A package whose schema and hashes hold. `fingerprint` is that of its manifest, which names every file's hash."""

    manifest: Manifest
    fingerprint: str
    folder: Path
    labels: tuple[str, ...]
    golden: Golden

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH


def discover(root: Path) -> list[PackagePath]:
    """Every version folder below `root`, by name and then by version. Numbers make versions; other folders are ignored,
    and so are, with a warning in the log, those of a model whose folder has a name that no model may have.

    Raises:
        PackageError: `root` is not a folder, or cannot be read.
    """
    try:
        if not root.is_dir():
            raise PackageError(
                f"{root}: no such folder; set HIERA_MODEL_REPOSITORY, or make a package with hiera-export build"
            )
        found = [
            PackagePath(model.name, int(version.name), version)
            for model in root.iterdir()
            if not model.name.startswith(".")
            for version in _versions(model)
        ]
    except OSError as error:
        raise PackageError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return sorted(found, key=lambda package: (package.name, package.version))


def removed(root: Path, name: str) -> bool:
    """Whether `root` has nothing of that name any more. A folder that is empty, or cannot be read, is still there."""
    try:
        os.lstat(root / name)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # who cannot look does not know
    return False


def _versions(model: Path) -> list[Path]:
    named = _NAME.fullmatch(model.name)
    try:
        versions = [folder for folder in _folders(model) if _VERSION.fullmatch(folder.name)]
    except PermissionError:
        if named:  # unlike ext4's lost+found
            _pass_over(model, "it may not be read by this user")
        return []
    if versions and not named:
        # The name may not even be text (b"\xff"), which no answer and no metric could hold.
        _pass_over(model, "no model may have that name")
        return []
    return versions


def _pass_over(model: Path, reason: str) -> None:
    if model not in _passed_over:  # a watch comes by every few seconds
        _passed_over.add(model)
        logger.warning("%a is passed over: %s", str(model), reason)


def _folders(parent: Path) -> list[Path]:
    """The folders in `parent`: none if it is not a folder, or has just vanished."""
    try:
        return [each for each in parent.iterdir() if each.is_dir()]
    except (NotADirectoryError, FileNotFoundError):
        return []


def latest(packages: list[PackagePath]) -> list[PackagePath]:
    """The highest version of each name: what is served."""
    by_name = {package.name: package for package in sorted(packages, key=lambda p: p.version)}
    return sorted(by_name.values(), key=lambda package: package.name)


def fingerprint(path: PackagePath) -> str | None:
    """What tells two packages apart without reading them whole: the SHA-256 of the manifest. None: unreadable."""
    try:
        return sha256(path.folder / MANIFEST)
    except OSError:
        return None


def open_package(path: PackagePath) -> Package:
    """Read a package and check it against its own manifest.

    Raises:
        PackageError: a file is missing, was changed after the build, or contradicts the manifest.
    """
    file = path.folder / MANIFEST
    try:
        known_by = sha256(file)
    except OSError as error:
        raise PackageError(f"{file}: cannot be read ({error.strerror})") from error
    manifest = read_manifest(file)
    if (manifest.name, manifest.version) != (path.name, path.version):
        raise PackageError(
            f"{path.folder}: the manifest is of {manifest.name} version {manifest.version}; "
            "a package's folders must carry its name and version"
        )
    for required in (GRAPH, GOLDEN, f"../{LABELS}"):
        if required not in manifest.files:
            raise PackageError(f"{path.folder}: the manifest has no hash of {required}")
    for name, expected in manifest.files.items():
        check_hash(path.folder, name, expected)
    labels = read_labels(path.folder.parent / LABELS)
    if len(labels) != manifest.num_classes:
        raise PackageError(f"{path.folder}: {len(labels)} labels for {manifest.num_classes} classes")
    return Package(manifest, known_by, path.folder, labels, _read_golden(path.folder / GOLDEN, manifest))


def read_labels(path: Path) -> tuple[str, ...]:
    """One class a line, in the head's order; blank lines at the end and a byte order mark at the start do not count.

    Raises:
        PackageError: unreadable, empty, or with a blank line between two classes.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")  # a name may hold U+2028 or a form feed
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"{path}: cannot be read as text ({error})") from error
    labels = tuple(line.strip() for line in lines)
    if not labels or "" in labels:
        raise PackageError(f"{path}: a labels file has one class a line and no blank line between them")
    return labels


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hash(folder: Path, name: str, expected: str) -> None:
    """Raises PackageError unless `folder/name`, which must lie inside the package, has the digest."""
    # By the name alone: that a folder or a file of it is a link is the operator's business.
    inside = Path(os.path.normpath(Path(folder.name) / name))
    if inside.is_absolute() or ".." in inside.parts:
        raise PackageError(f"{folder}: the manifest names {name}, which lies outside the package")
    file = folder.parent / inside
    try:
        actual = sha256(file)
    except OSError as error:
        raise PackageError(f"{folder}: {name} cannot be read ({error.strerror})") from error
    except ValueError as error:  # it holds a NUL, or what the file system's encoding lacks
        raise PackageError(f"{folder}: the manifest names {name!a}, which no file can be called") from error
    if actual != expected:
        raise PackageError(
            f"{folder}: {name} was changed after the build (sha256 {actual[:12]}…, not {expected[:12]}…)"
        )


def _read_golden(path: Path, manifest: Manifest) -> Golden:
    try:
        # NumPy leaves a file open that it opens itself and finds to be none of its own.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            golden = Golden(np.asarray(arrays["rows"]), np.asarray(arrays["probabilities"]))
    except Exception as error:  # of a file that is none, NumPy lets through what zipfile, zlib and others say
        raise PackageError(f"{path}: not a golden sample ({error})") from error
    n = len(golden.rows) if golden.rows.ndim else 0
    if n == 0 or golden.rows.shape != (n, *manifest.row_shape) or golden.rows.dtype != np.uint8:
        raise PackageError(
            f"{path}: rows are {golden.rows.dtype} {golden.rows.shape}, not uint8 [n, *{manifest.row_shape}]"
        )
    if golden.probabilities.shape != (n, manifest.num_classes) or golden.probabilities.dtype != np.float32:
        raise PackageError(f"{path}: probabilities are {golden.probabilities.shape}, not [{n}, {manifest.num_classes}]")
    return golden
