"""Model packages with random weights, for measuring speed: built once, kept below `.cache/benchmarks`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from app.repository.store import Package, discover, latest, open_package

REPOSITORY = Path(".cache/benchmarks/packages")


def random_package(name: str, repository: Path = REPOSITORY) -> Package:
    """The package `name` with random weights; building it needs the `export` extra."""
    build_packages([name], repository)
    return next(open_package(path) for path in latest(discover(repository)) if path.name == name)


def build_packages(names: Sequence[str], repository: Path = REPOSITORY) -> None:
    """Build those of `names` that are not there yet."""
    repository.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (repository / name).is_dir()]
    if missing:
        command = [sys.executable, "-m", "export.cli", "build", *missing, "--random-weights", "0"]
        subprocess.run([*command, "--output", str(repository)], check=True)
