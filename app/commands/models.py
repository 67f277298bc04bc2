"""`hiera-serve models`: the packages of the model repository, or what a running server says of them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pydantic import ValidationError

from app.api.schemas import Models
from app.commands.api_key import api_key
from app.commands.setting_flags import add_repository_flag, settings_here
from app.errors import PackageError, Unavailable
from app.load.ask import ask
from app.load.table import text_table
from app.load.target import split_address
from app.repository.store import Package, PackagePath, discover, latest, open_package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.description = __doc__
    parser.add_argument("--url", help="ask this server instead of reading the folder")
    parser.add_argument("--api-key", type=api_key, help="for a server that wants one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_repository_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the list. Returns 1 when a package of the folder is refused.

    Raises:
        SettingsError, HieraError: a setting is wrong, the folder or the server cannot be read.
    """
    if arguments.url:
        return _from_server(arguments.url, arguments.api_key, as_json=arguments.json)
    return _from_folder(settings_here(arguments).model_repository, as_json=arguments.json)


def _from_folder(root: Path, *, as_json: bool) -> int:
    packages, refused = [], {}
    for path in latest(discover(root)):
        try:
            packages.append(open_package(path))
        except PackageError as error:
            refused[path] = str(error)
    if as_json:
        manifests = [package.manifest.model_dump(mode="json", exclude={"files"}) for package in packages]
        faults = [{"name": path.name, "version": path.version, "reason": reason} for path, reason in refused.items()]
        print(json.dumps({"models": manifests, "refused": faults}, indent=2))
    else:
        _print_folder(packages, refused, root)
    return 1 if refused else 0


def _print_folder(packages: list[Package], refused: dict[PackagePath, str], root: Path) -> None:
    if not packages and not refused:
        print(f"{root} holds no model package; make one with hiera-export build")
    if packages:
        header = ("model", "version", "task", "classes", "input", "parameters", "weights", "licence")
        rows = []
        for manifest in (package.manifest for package in packages):
            kind = "random" if manifest.random_weights else "demo" if manifest.demo else "trained"
            shape = "x".join(map(str, manifest.row_shape[:-1]))
            size = f"{manifest.parameters / 1e6:.2f} M"
            row = (manifest.name, manifest.version, manifest.task, manifest.num_classes, shape, size, kind)
            rows.append((*map(str, row), manifest.weights.licence))
        print(text_table(header, rows))
    for path, reason in refused.items():
        print(f"{path.name} version {path.version} is refused: {reason}", file=sys.stderr)


def _from_server(url: str, key: str | None, *, as_json: bool) -> int:
    parts, host = split_address(url, "http", "https")
    headers = {"X-API-Key": key} if key else {}
    status, body = ask(url, host, parts.port, "/models", headers=headers, encrypted=parts.scheme == "https")
    if status != 200:
        raise Unavailable(f"{url} answers {status}: {body[:500].decode(errors='replace')}")
    if as_json:
        print(body.decode(errors="replace"))
        return 0
    try:
        answer = Models.model_validate_json(body)
    except ValidationError as error:
        raise Unavailable(f"{url} answers, but not as hiera-serve does: is it one, of this release?") from error
    header = ("model", "version", "state", "task", "classes", "engine", "batch", "ms", "note")
    rows = []
    for entry in answer.models:
        cost = next((cost for cost in entry.batch_curve if cost.rows == entry.useful_batch_rows), None)
        notes = [word for word in ("default", "demo", "random_weights", "noop") if getattr(entry, word)]
        row = (
            entry.name,
            entry.version,
            entry.state,
            entry.task or "",
            entry.classes or "",
            f"{entry.engine.name} {entry.engine.precision}" if entry.engine else "",
            cost.rows if cost else "",
            f"{cost.milliseconds:.1f}" if cost else "",
            ", ".join([*notes, *([entry.reason] if entry.reason else [])]),
        )
        rows.append(tuple(map(str, row)))
    print(text_table(header, rows))
    return 0
