"""Descriptors: the first three, and how many this process may have."""

from __future__ import annotations

import os
import resource
import sys


def allow_open_files() -> None:
    """Lift the soft limit of open files to the hard one: uploads and rows in shared memory take a descriptor each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_standard_files() -> None:
    """Open what is closed of standard input, output and error on nothing, for this process and those that it starts.

    Else the next file to be opened gets that number, and what anybody has to say is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which gives the lowest free number
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - they stay open
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def drop_output() -> None:
    """Of what is still in standard output's buffer and can't be written, the interpreter would complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
