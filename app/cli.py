"""`hiera-serve`: run a server, list models, classify a file, measure a server; each is a module in `app/commands/`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from app.errors import HieraError
from app.settings import SettingsError

# Each module has `add_arguments(parser)` and `run(arguments) -> exit status`; only the one asked for is imported.
_COMMANDS = {
    "run": "serve the model repository over HTTP",
    "models": "list the packages of the model repository, or of a running server",
    "classify": "classify one file without a server",
    "bench": "measure a server under load",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 when it failed, 2 when it was called or set up wrongly."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="hiera-serve", description="Hiera image and video classification.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        sub = commands.add_parser(name, help=summary)
        if name == asked:
            importlib.import_module(f"app.commands.{name}").add_arguments(sub)
    arguments = parser.parse_args(words)
    try:
        status: int = importlib.import_module(f"app.commands.{arguments.command}").run(arguments)
    except SettingsError as error:
        for line in error.lines:
            print(f"hiera-serve: {line}", file=sys.stderr)
        return 2
    except HieraError as error:
        print(f"hiera-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
