"""What `hiera-serve run` does before its server handles signals."""

from __future__ import annotations

import subprocess
import sys

SIGNALLED_WHERE_EXCEPTIONS_ARE_LOST = """
import os, signal, time, weakref
from app.commands.run import _end_at_once

class Lock: ...

def signalled(dead):  # importlib has such callbacks
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000): pass  # the handler runs here

signal.signal(signal.SIGTERM, _end_at_once)
lock = Lock()
reference = weakref.ref(lock, signalled)
del lock
raise SystemExit(3)
"""


def test_a_signal_ends_the_start_wherever_it_comes() -> None:
    ended = subprocess.run([sys.executable, "-c", SIGNALLED_WHERE_EXCEPTIONS_ARE_LOST], timeout=60, check=False)
    assert ended.returncode == 0
