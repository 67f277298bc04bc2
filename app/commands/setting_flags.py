"""The settings as command-line flags, and as the table of `docs/configuration.md`: both drawn from `app.settings`."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.settings import Settings, load_settings, unknown_variables, variable_of
from app.telemetry import logs

_log = logging.getLogger("hiera.settings")
_UNITS = ("bytes_per_second", "seconds", "bytes", "pixels", "rows", "ms", "frames")
_SECTION = re.compile(r"    # (\w[\w ]*)$")
_FIELD = re.compile(r"    (\w+): ")

_INTRODUCTION = """\
# Configuration

Every setting is an environment variable, or a flag of `hiera-serve run` (`HIERA_MAX_IMAGE_BYTES` is
`--max-image-bytes`), which comes first. A wrong value stops the start with a line that names it; an unknown `HIERA_`
variable is warned about.
An empty variable or flag counts as not set. `hiera-serve run --help` prints the same list.

This page is written by `python -m app.commands.setting_flags > docs/configuration.md`.
"""


@dataclass(frozen=True)
class SettingRow:
    """One setting as people read it."""

    section: str
    name: str
    unit: str
    default: str
    choices: tuple[str, ...]
    description: str

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


def setting_rows() -> Iterator[SettingRow]:
    """Every setting, in the order and under the headings of `app/settings.py`."""
    section_of = _sections()
    for name, field in Settings.model_fields.items():
        yield SettingRow(
            section_of[name], name, _unit(name), _default(name, field), _choices(field), field.description or ""
        )


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting, grouped, with unit, default and variable in its help."""
    groups: dict[str, Any] = {}
    for row in setting_rows():
        if row.section not in groups:
            groups[row.section] = parser.add_argument_group(row.section)
        note = f"{row.description} [{variable_of(row.name)}; default {row.default}]"
        groups[row.section].add_argument(
            row.flag,
            dest=f"setting_{row.name}",
            metavar="|".join(row.choices) or (row.unit or "VALUE").upper(),
            help=note.replace("%", "%%"),
        )


def add_repository_flag(parser: argparse.ArgumentParser) -> None:
    """The one setting that commands without a server have as a flag."""
    parser.add_argument(
        "--model-repository", dest="setting_model_repository", metavar="DIR", help="where the packages are"
    )


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The settings by flags and environment.

    Raises:
        SettingsError: a value is wrong.
    """
    prefix = "setting_"
    given = {
        name.removeprefix(prefix): value
        for name, value in vars(arguments).items()
        if name.startswith(prefix) and value not in (None, "")
    }
    return load_settings(given)


def settings_here(arguments: argparse.Namespace) -> Settings:
    """The same for a command that does its work in this process, and has a log of warnings alone.

    Raises:
        SettingsError: a value is wrong.
    """
    settings = settings_from(arguments)
    logs.configure(settings.log_format, "warning")
    for warning in unknown_variables(os.environ):
        _log.warning("%s", warning)
    return settings


def markdown() -> str:
    """`docs/configuration.md`."""
    lines = [_INTRODUCTION]
    section = None
    for row in setting_rows():
        if row.section != section:
            section = row.section
            lines += [f"## {section}", "", "| variable | unit | default | meaning |", "| --- | --- | --- | --- |"]
        values = f" One of {', '.join(row.choices)}." if row.choices else ""
        unit = row.unit.replace("_", " ")
        lines.append(f"| `{variable_of(row.name)}` | {unit} | {row.default} | {row.description}{values} |")
    text = "\n".join(lines) + "\n"
    return re.sub(r"\n(## )", r"\n\n\1", text).replace("\n\n\n", "\n\n")


def _sections() -> dict[str, str]:
    """The heading above each field in the source: the file is its own table of contents."""
    source = Path(sys.modules[Settings.__module__].__file__ or "").read_text(encoding="utf-8")
    sections, current = {}, ""
    for line in source.splitlines():
        if heading := _SECTION.match(line):
            current = heading[1]
        elif (field := _FIELD.match(line)) and field[1] in Settings.model_fields:
            sections[field[1]] = current
    return sections


def _unit(name: str) -> str:
    return next((unit for unit in _UNITS if name.endswith(f"_{unit}") or f"_{unit}_per_" in name), "")


def _default(name: str, field: FieldInfo) -> str:
    if name == "engine_cache_folder":
        return "~/.cache/hiera-serve"
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    values = get_args(field.annotation)
    return tuple(values) if values and all(isinstance(value, str) for value in values) else ()


if __name__ == "__main__":
    sys.stdout.write(markdown())
