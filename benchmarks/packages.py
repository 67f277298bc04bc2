"""Model packages with random weights, for measuring speed: built once, kept below `.cache/benchmarks`.

Those of another exporter are passed over: a figure must be of the graph that is exported today.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from app.repository.store import Package, PackagePath, discover, latest, open_package


def _exporter() -> str:
    """Names the code that decides what a package holds."""
    digest = hashlib.sha256()
    for source in sorted((Path(__file__).parents[1] / "export").glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


REPOSITORY = Path(".cache/benchmarks/packages") / _exporter()


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


def add_package_arguments(parser: argparse.ArgumentParser) -> None:
    """What `packages_of` reads, and `--rows`, as `export.agreement.rows_to_compare` takes it."""
    parser.add_argument("variants", nargs="*", help="of `hiera-export list`, with random weights")
    parser.add_argument("--package", type=Path, action="append", default=[], help="the folder of a version in fp32")
    parser.add_argument("--rows", default="200", help="a number of rendered rows, or a folder of photos")


def packages_of(arguments: argparse.Namespace) -> list[Package]:
    """The packages that were asked for; those with random weights are built where they are missing."""
    folders = [PackagePath(folder.parent.name, int(folder.name), folder) for folder in arguments.package]
    return [*map(random_package, arguments.variants), *map(open_package, folders)]
