"""`hiera-serve` as a person types it: a process, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys


def command_environment(**settings: object) -> dict[str, str]:
    """The environment of a command over the ONNX Runtime engine, with further settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HIERA_")}
    clean |= {"HIERA_ENGINE": "onnxruntime", "HIERA_ENGINE_CACHE_FOLDER": "none", "HIERA_WARMUP_BUDGET_SECONDS": "0.2"}
    return clean | {f"HIERA_{name.upper()}": str(value) for name, value in settings.items()}


def hiera_serve(*words: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "app.cli", *map(str, words)]
    environment = command_environment(**settings)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
