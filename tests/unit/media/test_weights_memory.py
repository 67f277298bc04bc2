"""What weights took is given back to the kernel. Seen in a process of its own, as it is a setting of the process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# Two blocks such as weights, from a thread's part of the heap: the C library has seen a larger one before.
SCRIPT = """
import ctypes, sys, threading
from pathlib import Path
from app.engines.factory import EngineOptions
from app.media.heap import give_back_freed_memory
from app.serving.registry import ModelRegistry

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def use(*megabytes):
    blocks = [libc.malloc(each << 20) for each in megabytes]
    for block, each in zip(blocks, megabytes):
        ctypes.memset(block, 1, each << 20)
    for block in reversed(blocks):
        libc.free(block)

def in_a_thread(*megabytes):
    thread = threading.Thread(target=use, args=megabytes)
    thread.start()
    thread.join()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

registry = ModelRegistry(Path(sys.argv[1]), EngineOptions())
registry.load_all()
in_a_thread(24)
before = resident()
in_a_thread(23, 22)
give_back_freed_memory()
print((resident() - before) >> 20)
registry.close()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other ways")
def test_a_process_with_models_gives_back_what_their_weights_took(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 8, f"{done.stdout.strip()} MiB are kept"
