"""Photos and videos of a user's folders as bytes. Imported by `training`, too."""

from __future__ import annotations

import os
from pathlib import Path

from app.media.limits import MediaLimits
from app.repository.manifest import check_regular


def read_media(path: Path, limits: MediaLimits) -> bytes:
    """The bytes of a file, whose size is asked before any is read.

    Raises:
        LimitExceeded: it has more bytes than `limits` allow.
        OSError: it cannot be opened, or is no regular file.
    """
    check_regular(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        limits.check_bytes(size)
        return file.read(size)  # and no more, should it grow
