"""Plays the scenes of draining_scenes.py in a process of their own, which may be sent signals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCENES = Path(__file__).parent / "draining_scenes.py"


def test_a_draining_server_hears_real_signals() -> None:
    command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", str(SCENES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, start_new_session=True)
    assert done.returncode == 0, done.stdout + done.stderr
