"""Work in a process of its own: what comes back, and what is said on the way."""

import os

import pytest

from app.load.generator import Progress
from app.load.isolated import GeneratorDied, in_a_process


def in_two_steps(order: int, progress: Progress) -> list[int]:
    progress(0.5, order)
    progress(1.0, 2 * order)
    return [order, os.getpid()]


def end_early(order: int, progress: Progress) -> None:
    progress(0.5, 0)
    os._exit(order)


def test_progress_is_told_as_it_comes_and_the_result_is_what_the_work_returns() -> None:
    told: list[tuple[float, int]] = []
    order, process = in_a_process(in_two_steps, 3, lambda fraction, answers: told.append((fraction, answers)))
    assert told == [(0.5, 3), (1.0, 6)]
    assert order == 3
    assert process != os.getpid()


def test_progress_that_nobody_wants_is_no_result() -> None:
    assert in_a_process(in_two_steps, 4)[0] == 4


def test_a_process_that_ends_without_a_result_is_an_error() -> None:
    with pytest.raises(GeneratorDied, match="exit code 7 and no result"):
        in_a_process(end_early, 7)
