"""A fork server whose workers take files for orders: they crash, hang, lie or break out as the first words say.

Everything but the decoder is the real one's: the start, the sandbox, the loop. The pool runs it as a script.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from app.errors import BrokenMedia
from app.media import forkserver
from app.media.limits import MediaLimits
from app.media.spec import DecodeInfo, DecodeJob
from app.media.worker import CHANNEL_FD

SERVER_PID = int(sys.argv[2])


def hang() -> None:
    time.sleep(3600)


def hang_up() -> None:
    os.close(CHANNEL_FD)
    hang()


def say_and_hang(packet: bytes) -> None:
    os.write(CHANNEL_FD, packet)
    hang()


def shout() -> None:
    for _ in range(20):
        with contextlib.suppress(OSError):
            os.write(2, b"x" * 1_000_000)


def spin() -> None:
    while True:
        pass


def run_threads() -> None:
    threads = [threading.Thread(target=sum, args=(range(1000),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def map_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def call(x86_64: int, aarch64: int, *arguments: int) -> Callable[[], None]:
    """A raw system call by its numbers, which raises OSError as Python's own wrappers do."""

    def run() -> None:
        number = aarch64 if platform.machine() == "aarch64" else x86_64
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return run


ATTEMPTS: dict[str, Callable[[], object]] = {
    "read a file": lambda: open("/etc/passwd").close(),
    "write a file": lambda: open("/tmp/left-by-a-media-worker", "w").close(),
    "list a folder": lambda: os.listdir("/"),
    "open a socket": lambda: socket.socket().close(),
    "open a pair of sockets": lambda: socket.socketpair(),
    "fork": os.fork,
    "clone": call(56, 220, signal.SIGCHLD, 0, 0, 0, 0),
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "make a file": lambda: os.memfd_create("more"),
    "signal the server": lambda: os.kill(SERVER_PID, 0),
    "trace the server": call(101, 117, 16, SERVER_PID, 0, 0),
    "read the server's memory": call(310, 270, SERVER_PID, 0, 0, 0, 0, 0),
    "limit the server": call(302, 261, SERVER_PID, 7, 0, 0),
    "limit the server's processor time": call(302, 261, SERVER_PID, 0, 0, 0),
    "abort the server": call(234, 131, SERVER_PID, SERVER_PID, 0),
    "have the server signalled": call(72, 25, CHANNEL_FD, 8, SERVER_PID),  # F_SETOWN
    "map code": map_code,
    "watch system calls": call(425, 425, 1, 0),  # io_uring_setup, which would do calls unseen by the filter
    "become another user": lambda: os.setuid(1),
    "leave the sandbox": call(157, 167, 38, 0, 0, 0, 0),
    "run threads": run_threads,
    "draw random numbers": lambda: os.urandom(8),
    "use numpy": lambda: np.linalg.inv(np.eye(64)),
    "raise a limit": call(302, 261, 0, 9, ctypes.addressof((ctypes.c_uint64 * 2)(2**62, 2**62)), 0),
}

ORDERS: dict[str, Callable[[], object]] = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "hang": hang,
    "spin": spin,
    "bomb": lambda: np.ones(1 << 36, np.uint8).sum(),
    "die of the processor limit": lambda: os.kill(os.getpid(), signal.SIGXCPU),
    "garble": lambda: say_and_hang(b"\x80\x04pickle?"),
    "forge": lambda: say_and_hang(b'{"job": 77777, "decode_s": 0, "info": [1, 1, "", 1, 1, 1, []]}'),
    "hang up": hang_up,
    "shout": shout,
}


def obey(data: memoryview, job: DecodeJob, limits: MediaLimits, rows: NDArray[np.uint8], threads: int) -> DecodeInfo:
    """Do what the upload says: "fill N" and "sleep SECONDS" give rows, "try X" reports what came of an attempt."""
    order, _, argument = bytes(data).decode().rstrip().partition(":")
    rows[:] = 0
    found = ""
    if order == "fill":
        rows[:] = int(argument)
    elif order == "sleep":
        time.sleep(float(argument))
    elif order == "bug":
        raise RuntimeError("a decoder's bug")
    elif order == "broken":
        raise BrokenMedia("broken as ordered")
    elif order == "length":
        found = str(len(data))
    elif order == "threads":
        found = str(threads)
    elif order == "descriptors":
        found = str(sum(_is_open(fd) for fd in range(64)))
    elif order == "environment":
        found = str(argument in os.environ)
    elif order == "try":
        found = "done"
        try:
            ATTEMPTS[argument]()
        except OSError as error:
            found = type(error).__name__
    else:
        ORDERS[order]()
    return DecodeInfo(width=os.getpid(), height=1, format=found)


def _is_open(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError as error:
        return error.errno == 29  # ESPIPE: open, and a socket or a pipe
    return True


if __name__ == "__main__":
    forkserver.serve(int(sys.argv[1]), SERVER_PID, load=lambda kind, limits: obey)
    os._exit(0)
