"""Admission over several processes: what the others have in flight counts here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from app.errors import Overloaded
from app.serving.admission import Admission
from app.serving.backlog import Lane
from app.serving.board import AdmissionBoard, clear_line, create_board
from app.serving.demand import Demand, InFlight

LANE = Lane("model", "cpu", float, float, lambda: 1.0)  # a second for each row
ON_GPU = Lane("model", "cuda:1", float, float, lambda: 1.0)


@pytest.fixture
def board() -> Iterator[int]:
    descriptor = create_board(2)
    yield descriptor
    os.close(descriptor)


def admissions(board: int, max_rows: int = 4) -> list[Admission]:
    return [
        Admission(max_rows=max_rows, max_bytes=1000, peers=AdmissionBoard(board, workers=2, line=line))
        for line in range(2)
    ]


def admit(admission: Admission, rows: int, *, lane: Lane = LANE, nbytes: int = 10, within_s: float = 1000) -> object:
    return admission.admit(Demand(lane, rows=rows, nbytes=nbytes, deadline=time.monotonic() + within_s))


def test_rows_of_one_process_leave_less_room_in_the_other(board: int) -> None:
    here, there = admissions(board)
    admit(here, 3)
    with pytest.raises(Overloaded, match="the queue is full"):
        admit(there, 2)
    admit(there, 1)


def test_bytes_count_together_too(board: int) -> None:
    here, there = admissions(board)
    admit(here, 1, nbytes=900)
    with pytest.raises(Overloaded, match="bytes"):
        admit(there, 1, nbytes=200)


def test_the_predicted_wait_holds_the_work_of_the_others_on_that_device(board: int) -> None:
    here, there = admissions(board, max_rows=100)
    admit(here, 20)
    assert there.predicted_wait_s("cpu") == 20
    with pytest.raises(Overloaded, match="deadline"):
        admit(there, 1, within_s=15)
    admit(there, 1, lane=ON_GPU, within_s=15)
    assert here.predicted_wait_s("cuda:1") == 1


def test_a_model_on_several_gpus_counts_for_the_first_of_them(board: int) -> None:
    here, there = admissions(board)
    admit(there, 3, lane=Lane("both", "cuda:1,cuda:2", float, float, lambda: 1.0))
    assert here.predicted_wait_s("cuda:1") == 3
    assert here.predicted_wait_s("cuda:2") == 0


def test_what_is_released_is_off_the_board(board: int) -> None:
    here, there = admissions(board)
    here.admit(Demand(LANE, rows=4, nbytes=10, deadline=time.monotonic() + 1000)).release()
    assert there.predicted_wait_s("cpu") == 0
    admit(there, 4)


def test_a_dead_process_has_nothing_in_flight(board: int) -> None:
    here, there = admissions(board)
    admit(here, 4)
    clear_line(board, 0)
    assert there.predicted_wait_s("cpu") == 0
    admit(there, 4)


def test_one_process_alone_needs_no_board() -> None:
    alone = Admission(max_rows=4, max_bytes=1000)
    admit(alone, 4)
    assert alone.in_flight == InFlight(4, 10)
