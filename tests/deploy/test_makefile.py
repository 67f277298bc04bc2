"""`make run` with a Python that will not do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.mark.parametrize("script", ["import sys; sys.version_info = (3, 10, 13)", None], ids=["old", "missing"])
@pytest.mark.parametrize("target", ["run", "check"])
def test_an_environment_is_not_made_with_an_older_python(tmp_path: Path, script: str | None, target: str) -> None:
    python = tmp_path / "python"
    if script is not None:
        # It runs what it is told as an older one would; it cannot make an environment.
        python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec python3 -c "{script}; $2"\n', encoding="utf-8")
        python.chmod(0o755)
    made = tmp_path / "made"
    done = subprocess.run(
        ["make", "-C", ROOT, target, f"VENV={made}", f"TEST_VENV={made}", f"PYTHON={python}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"Python 3.11 or later is needed: make {target} PYTHON=python3.12\n" in done.stderr
    assert not made.exists()
