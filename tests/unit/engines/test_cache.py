"""The engines' cache folder."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from app.engines.cache import usable_cache


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "caches" / "hiera"
    assert usable_cache(folder) == folder
    assert folder.is_dir()
    assert list(folder.iterdir()) == [], "the trial left something"


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        for folder in (tmp_path / "file" / "cache", Path("/proc/self")):  # in the latter even root cannot make a file
            assert usable_cache(folder) is None
    assert len(caplog.records) == 2
    assert "/proc/self cannot be used" in caplog.text


def test_none_stays_none(caplog: pytest.LogCaptureFixture) -> None:
    assert usable_cache(None) is None
    assert not caplog.records
