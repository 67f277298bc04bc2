"""A real server process for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx


class RunningServer:
    """`hiera-serve run` as a process of its own, on a port of its own. Its log is in `log`.

    Args:
        settings: by environment variable, without the prefix.
        under: a command that starts the command after it, such as `nohup`.
    """

    def __init__(
        self,
        folder: Path,
        repository: Path,
        settings: Mapping[str, object] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        defaults = {
            "host": "127.0.0.1",
            "port": 0,
            "grpc_port": 0,
            "model_repository": repository,
            "engine": "onnxruntime",
            "engine_cache_folder": "none",
            "warmup_budget_seconds": 0.2,
            "image_workers": 1,
            "video_workers": 1,
            "shutdown_grace_seconds": 0,
            "log_format": "json",
        }
        chosen = {**defaults, **(settings or {})}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HIERA_")}
        environment = inherited | {f"HIERA_{name.upper()}": str(value) for name, value in chosen.items()}
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "app.cli", "run"], stderr=log, stdout=log, env=environment
            )
        try:
            self.url = self.wait_for(r'\burl"?[=:] ?"?(http[^"\s]+)')  # in either format of the log
        except BaseException:
            self.kill()
            raise
        self.port = int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self._log.read_text()

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> str:
        """Wait until a line of the log matches; the first group, or all of the match."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = re.search(pattern, self.log)
            if found is not None:
                return found[1] if found.groups() else found[0]
            if self.process.poll() is not None and re.search(pattern, self.log) is None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
            time.sleep(0.02)
        raise AssertionError(f"{pattern} is not in the log:\n{self.log}")

    def wait_until_ready(self) -> RunningServer:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if httpx.get(f"{self.url}/health/ready").status_code == 200:
                return self
            time.sleep(0.05)
        raise AssertionError(f"the server does not become ready:\n{self.log}")

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server does not end:\n{self.log}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
