"""Descriptors: how many this process may have."""

from __future__ import annotations

import resource


def allow_open_files() -> None:
    """Lift the soft limit of open files to the hard one: uploads and rows in shared memory take a descriptor each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
