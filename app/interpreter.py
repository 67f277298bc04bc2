"""Our own modules in other processes: from this code, whatever lies in the folder that somebody works in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import app

# Without -P the current folder would come first, and any app/ or queue.py in it would be run as ours.
MODULE_COMMAND = (sys.executable, "-P", "-m")

_IMPORT_ROOT = str(Path(app.__file__).resolve().parent.parent)


def import_path() -> str:
    """A PYTHONPATH with which such a process imports what this one does."""
    # A relative entry would mean another folder there.
    others = filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join([_IMPORT_ROOT, *others])
