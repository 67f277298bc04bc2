from __future__ import annotations

from app.pauses import growing_pause_s


def test_pauses_double_up_to_the_longest() -> None:
    assert [growing_pause_s(failures, 0.25, 3.0) for failures in range(1, 7)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_failing_for_ever_so_long_is_no_arithmetic_error() -> None:
    assert growing_pause_s(10**6, 0.25, 30.0) == 30.0
