"""Starts a server process for a measurement, waits until it is ready, watches its memory, and stops it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from app.errors import Unavailable
from app.load.ask import ask
from app.load.processes import pss_bytes, session_members

_POLL_S = 0.02


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server and everything that it starts, as one process group.

    Args:
        command: the program and its arguments.
        port: where it will listen on 127.0.0.1.
        ready_path: answers 200 from the moment that it serves.
        environment: added to this process's own.
        ready_timeout_s: for starting.

    Entering the context starts it and waits until it is ready; leaving it stops the whole group, by force after ten
    seconds. `ready_s` is how long the start took, in seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        ready_path: str = "/health/ready",
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        ready_timeout_s: float = 120.0,
    ) -> None:
        self.port = port
        self.ready_s = 0.0
        self._command = list(command)
        self._ready_path = ready_path
        self._environment = {**os.environ, **(environment or {})}
        self._folder = folder
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the first process."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def __enter__(self) -> ServerProcess:
        started_s = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603 - runs what its caller names
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self._folder,
            start_new_session=True,
        )
        try:
            self._wait_until_ready(self._process, started_s + self._ready_timeout_s)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.perf_counter() - started_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # To the first process alone at first: a server that drains must not find its workers gone.
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):  # mostly it leaves nothing behind
            os.killpg(process.pid, signal.SIGKILL)
        self._log.close()

    def terminate(self) -> None:
        """Ask the first process to end (SIGTERM), and do not wait."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> int:
        """The exit status of the first process, once it has ended.

        Raises:
            TimeoutExpired: it has not.
        """
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.wait(timeout_s)

    def log_tail(self, size: int = 2000) -> str:
        """The end of what the server printed."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - size))
        tail = self._log.read().decode(errors="replace")
        self._log.seek(0, os.SEEK_END)
        return tail

    def memory_bytes(self) -> int:
        """Proportional set size of all the group's processes: shared pages count once. Linux."""
        return sum(map(pss_bytes, session_members(self.pid)))

    def _wait_until_ready(self, process: subprocess.Popen[bytes], until_s: float) -> None:
        while time.perf_counter() < until_s:
            if process.poll() is not None:
                raise Unavailable(f"the server ended with exit code {process.returncode}:\n{self.log_tail()}")
            with contextlib.suppress(Unavailable):
                status, _ = ask(self.url, "127.0.0.1", self.port, self._ready_path, timeout_s=5)
                if status == 200:
                    return
            time.sleep(_POLL_S)
        raise Unavailable(f"the server was not ready after {self._ready_timeout_s:g} s:\n{self.log_tail()}")
