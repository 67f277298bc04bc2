"""This project's server, as benchmarks start it: on a free port of this machine, with what the command line says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from app.load.server import ServerProcess, free_port
from benchmarks.contenders import ROOT

_READY_S = 300.0  # a large model's first start: it is measured, or compiled


def add_server_arguments(parser: argparse.ArgumentParser, engine: str = "auto") -> None:
    """`--engine`, and `--set` for all other settings; both are for `own_server`."""
    parser.add_argument("--engine", default=engine)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="a setting of the server, as engine_threads=1; may be repeated",
    )


def own_server(
    repository: Path,
    engine: str,
    chosen: Iterable[tuple[str, str]] = (),
    *,
    command: Sequence[str] = (sys.executable, "-m", "app.cli", "run"),
    **settings: object,
) -> ServerProcess:
    """A context that runs the server of `repository`; settings that were `chosen`, by `--set`, outdo `settings`."""
    port = free_port()
    every = {
        "port": port,
        "host": "127.0.0.1",
        "model_repository": repository.absolute(),
        "engine": engine,
        **settings,
        **dict(chosen),
    }
    environment = {f"HIERA_{name.upper()}": str(value) for name, value in every.items()}
    return ServerProcess(list(command), port=port, environment=environment, folder=ROOT, ready_timeout_s=_READY_S)


def _setting(text: str) -> tuple[str, str]:
    """NAME=VALUE; the name with or without the prefix that it has in the environment."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.lower().removeprefix("hiera_"), value
