"""Where what can be made or fetched again is kept: our folder among the user's caches (XDG Base Directory, 0.8)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """It need not be there."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hiera-serve"
