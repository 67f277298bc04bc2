"""The folder in which engines keep what they compiled and measured."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

_log = logging.getLogger("hiera.engines")


def usable_cache(folder: Path | None) -> Path | None:
    """`folder`, made if need be; None, with a warning, where nothing can be written: no cache must cost the models."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        _log.warning("nothing is kept for the next start, which will be slower: %s cannot be used (%s)", folder, error)
        return None
    return folder
