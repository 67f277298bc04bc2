"""What `hiera-serve run` does before its server handles signals, and what it says."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys

import pytest

from app.commands.run import _say_where_to_look
from app.settings import load_settings

SIGNALLED_WHERE_EXCEPTIONS_ARE_LOST = """
import os, signal, sys, weakref
from app.commands.run import _handle_signals_of_the_start

class Lock: ...

def signalled(dead):  # importlib has such callbacks
    os.kill(os.getpid(), int(sys.argv[1]))
    for _ in range(1000): pass  # the handler runs here

_handle_signals_of_the_start()
lock = Lock()
reference = weakref.ref(lock, signalled)
del lock
raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("number", "under", "status"), [(signal.SIGTERM, (), 0), (signal.SIGHUP, (), 0), (signal.SIGHUP, ("nohup",), 3)]
)
def test_a_signal_ends_the_start_wherever_it_comes(number: int, under: tuple[str, ...], status: int) -> None:
    command = [*under, sys.executable, "-c", SIGNALLED_WHERE_EXCEPTIONS_ARE_LOST, str(int(number))]
    assert subprocess.run(command, timeout=60, check=False).returncode == status


@pytest.mark.parametrize(("keys", "is_open"), [("", True), (" ", True), ("alice:secret", False)])
def test_a_server_that_is_open_to_all_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, keys: str, is_open: bool
) -> None:
    monkeypatch.delenv("HIERA_API_KEYS_FILE", raising=False)
    settings = load_settings({"host": "127.0.0.1", "api_keys": keys})
    with caplog.at_level(logging.INFO, "hiera.server"), socket.create_server(("127.0.0.1", 0)) as listener:
        _say_where_to_look(settings, listener)
    assert ("no API keys are set" in caplog.text) == is_open
