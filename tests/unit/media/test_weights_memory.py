"""What is kept of freed memory and what is given back to the kernel: what weights took is, what the last file took is
not, until it is asked for. Seen in processes of their own, as it is a setting of the process.
"""

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


# Three blocks such as a photo's pixels; all that is freed lies at the end of the heap.
DECODING_SCRIPT = """
import ctypes, resource
from pathlib import Path
from app.media.heap import give_back_freed_memory, keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def use(megabytes=17, times=3):
    blocks = [libc.malloc(megabytes << 20) for _ in range(times)]
    for block in blocks:
        ctypes.memset(block, 1, megabytes << 20)
    for block in reversed(blocks):
        libc.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

assert keep_freed_memory()
use()
before = faults()
use()
use(31, 1)
faulted = faults() - before
kept = resident()
give_back_freed_memory()
print(faulted, (kept - resident()) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other ways")
def test_a_process_that_decodes_keeps_what_a_file_took_for_the_next_one_until_it_is_to_be_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DECODING_SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    faulted, given_back = map(int, done.stdout.split())
    assert faulted < 1000, "pages were faulted in again"  # of 12,500
    assert given_back >= 48
