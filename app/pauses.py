"""How long to wait before what has failed is tried again."""

from __future__ import annotations

_MOST_DOUBLINGS = 64  # beyond any bound, and far from what a float can hold


def growing_pause_s(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds: `first_s` after the first failure, twice as long after each further one, `longest_s` at most."""
    return min(first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), longest_s)
