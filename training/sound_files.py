"""What training does when a file cannot be decoded: another takes its place, and it says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from app.errors import RequestError
from training.folders import FolderError

_TRIES = 100

T = TypeVar("T")


class LeftOut:
    """The files that a run leaves out. Each is told of once; threads may share it."""

    def __init__(self) -> None:
        self._reasons: dict[Path, str] = {}

    def add(self, path: Path, error: RequestError | OSError) -> None:
        """Say that a file is left out, and why, if that was not said before."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if self._reasons.setdefault(path, reason) is reason:  # in one step, whatever other threads do
            tqdm.write(f"left out: {path}: {reason}", file=sys.stderr)

    def listed(self) -> list[tuple[str, str]]:
        """Path and reason of each, for a record."""
        return [(str(path), reason) for path, reason in sorted(self._reasons.items())]


def draw_sound(
    draw: Callable[[int], T], first: int, paths: Sequence[Path], rng: np.random.Generator, left_out: LeftOut
) -> T:
    """What `draw` makes of the file `first`, or of another by chance where that one cannot be decoded.

    So a batch keeps its size, and a run its steps. A file is tried again when its turn comes again.

    Args:
        draw: takes a place in `paths`.

    Raises:
        FolderError: a hundred in a row cannot be decoded.
    """
    index = first
    for _ in range(_TRIES):
        try:
            return draw(index)
        except (RequestError, OSError) as error:
            left_out.add(paths[index], error)
            index = int(rng.integers(len(paths)))
    raise FolderError(f"{_TRIES} files in a row cannot be decoded, {paths[first]} is the first: see above for why")
