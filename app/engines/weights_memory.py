"""Large blocks of memory, as weights are, go back to the kernel as soon as they are freed."""

from __future__ import annotations

import contextlib
import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_LARGE = 1 << 20
_KEPT = 8 << 20


def map_large_blocks() -> None:
    """Have glibc map every block of 1 MiB or more by itself. Call it once in a process that loads models.

    By default glibc raises that bound with every larger block that is freed, up to 32 MiB. Weights then come from the
    heaps of threads, which `malloc_trim` does not empty to their ends: after some swaps of a model of 48 MiB, 47 were
    kept. Engines hold on to what they compute in, so that no batch has to fault in pages again.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)  # else the other has fixed it at 128 KiB, too little for requests
