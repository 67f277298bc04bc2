"""`hiera-serve`: each command is a module in `app/commands/`."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import select
import signal
import sys
from collections.abc import Sequence

from app.errors import HieraError
from app.open_files import drop_output, open_standard_files
from app.settings import SettingsError

# Each module has `add_arguments(parser)` and `run(arguments) -> exit status`; only the one asked for is imported.
_COMMANDS = {
    "run": "serve the model repository over HTTP",
    "models": "list the packages of the model repository, or of a running server",
    "classify": "classify files without a server: one, or folders of them",
    "evaluate": "measure a model's accuracy on folders of labelled files",
    "bench": "measure a server under load",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 when it failed, 2 when it was called or set up wrongly."""
    open_standard_files()
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()  # now: what the interpreter cannot write at its end, it complains of
    except BrokenPipeError:
        if _is_read():
            raise
        drop_output()
        return 128 + signal.SIGPIPE  # as a shell has it of commands that end so
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"hiera-serve: the output cannot be written: {error.strerror}", file=sys.stderr)
        drop_output()
        return 1


def _is_read() -> bool:
    """Whether somebody still reads our output, unlike behind `| head -1`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are told without being asked for
    return not poll.poll(0)


def _main(argv: Sequence[str] | None) -> int:
    try:
        return _run_command(list(sys.argv[1:] if argv is None else argv))
    except SettingsError as error:
        for line in error.lines:
            print(f"hiera-serve: {line}", file=sys.stderr)
        return 2
    except HieraError as error:
        print(f"hiera-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run_command(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hiera-serve", description="Hiera image and video classification.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        sub = commands.add_parser(name, help=summary)
        if name == asked:
            importlib.import_module(f"app.commands.{name}").add_arguments(sub)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse(commands.choices[arguments.command], unknown)
    status: int = importlib.import_module(f"app.commands.{arguments.command}").run(arguments)
    return status


def _refuse(command: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    """Ends the process as argparse does, with the flag that was perhaps meant."""
    flags = [flag for action in command._actions for flag in action.option_strings]  # it tells them in no other way
    meant = (difflib.get_close_matches(word.partition("=")[0], flags, n=1, cutoff=0.7) for word in unknown)
    near = next((match[0] for match in meant if match), None)
    hint = f"; did you mean {near}?" if near else ""
    command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


if __name__ == "__main__":
    sys.exit(main())
