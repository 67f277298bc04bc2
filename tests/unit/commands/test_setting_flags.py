"""The settings as flags and as the documentation's table."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from app.commands.setting_flags import add_setting_flags, markdown, setting_rows, settings_from
from app.settings import Settings, variable_of

DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="x", allow_abbrev=False)
    add_setting_flags(made)
    return made


def test_the_documentation_is_what_the_settings_say() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == markdown(), "run python -m app.commands.setting_flags"


def test_help_lists_every_setting_with_its_variable_and_default() -> None:
    text = " ".join(parser().format_help().split())
    for row in setting_rows():
        assert row.flag in text
        assert f"[{variable_of(row.name)}; default {row.default}]" in text.replace("- ", "-"), row.name


def test_every_setting_has_a_heading_and_a_unit_where_its_name_says_one() -> None:
    rows = {row.name: row for row in setting_rows()}
    assert set(rows) == set(Settings.model_fields)
    assert all(row.section for row in rows.values())
    assert rows["max_image_bytes"].unit == "bytes"
    assert rows["shutdown_grace_seconds"].unit == "seconds"
    assert rows["upload_min_bytes_per_second"].unit == "bytes_per_second"
    assert rows["engine"].choices == ("auto", "onnxruntime", "openvino", "tensorrt", "noop")


def test_flags_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIERA_PORT", "1")
    settings = settings_from(parser().parse_args(["--port", "2", "--access-log", "false"]))
    assert (settings.port, settings.access_log) == (2, False)
    assert settings_from(parser().parse_args([])).port == 1
    monkeypatch.setenv("HIERA_HOST", "127.0.0.1")
    unset = settings_from(parser().parse_args(["--host", "", "--port", ""]))  # as of --host "$UNSET"
    assert (unset.host, unset.port) == ("127.0.0.1", 1)
