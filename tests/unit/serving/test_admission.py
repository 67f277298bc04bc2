"""Who is let in: bounds on rows and bytes, predicted waits, and room that is given back once."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest
from serving_fakes import Clock

from app.errors import Overloaded
from app.serving.admission import NOTHING, Admission, InFlight, Lane


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rejections() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def admission(clock: Clock, rejections: list[tuple[str, str]]) -> Admission:
    return Admission(
        max_rows=10, max_bytes=1000, on_reject=lambda model, reason: rejections.append((model, reason)), clock=clock
    )


SLOW = Lane("slow", "cpu", lambda rows: rows * 1.0, lambda rows: rows * 1.0)
FAST = Lane("fast", "cpu", lambda rows: rows * 0.1, lambda rows: rows * 0.1)
ELSEWHERE = Lane("elsewhere", "cuda:0", lambda rows: rows * 0.1, lambda rows: rows * 0.1)


def test_rows_in_flight_are_bounded_and_the_refusal_says_when_there_is_room(
    admission: Admission, rejections: list[tuple[str, str]]
) -> None:
    admission.admit(SLOW, rows=9, nbytes=0, deadline=9999)
    admission.admit(SLOW, rows=1, nbytes=0, deadline=9999)
    with pytest.raises(Overloaded) as refusal:
        admission.admit(SLOW, rows=3, nbytes=0, deadline=9999)
    assert refusal.value.retry_after_s == 3.0
    assert rejections == [("slow", "queue_rows")]


def test_bytes_in_flight_are_bounded(admission: Admission, rejections: list[tuple[str, str]]) -> None:
    admission.admit(SLOW, rows=2, nbytes=900, deadline=9999)
    with pytest.raises(Overloaded) as refusal:
        admission.admit(SLOW, rows=1, nbytes=101, deadline=9999)
    assert refusal.value.retry_after_s == 2.0
    assert rejections == [("slow", "queue_bytes")]


def test_what_is_in_flight_is_told_until_it_is_nothing() -> None:
    told: list[tuple[int, int]] = []
    admission = Admission(max_rows=10, max_bytes=1000, on_change=lambda rows, nbytes: told.append((rows, nbytes)))
    reservation = admission.admit(SLOW, rows=2, nbytes=900, deadline=float("inf"))
    reservation.grow(rows=1)
    with pytest.raises(Overloaded):
        admission.admit(SLOW, rows=8, nbytes=0, deadline=float("inf"))
    reservation.release()
    assert told == [(2, 900), (3, 900), (0, 0)]


def test_a_wait_that_leaves_no_headroom_before_the_deadline_is_refused_before_decoding(
    admission: Admission, clock: Clock, rejections: list[tuple[str, str]]
) -> None:
    admission.admit(SLOW, rows=4, nbytes=0, deadline=9999)
    admission.admit(SLOW, rows=1, nbytes=0, deadline=clock.now + 10.0)
    with pytest.raises(Overloaded) as refusal:
        admission.admit(SLOW, rows=1, nbytes=0, deadline=clock.now + 10.0)
    assert refusal.value.retry_after_s == pytest.approx(1.0)  # one more row done, and it fits
    assert rejections == [("slow", "deadline")]


def test_an_upload_that_takes_long_keeps_its_room_but_nobody_is_predicted_to_wait_for_it(
    admission: Admission, clock: Clock
) -> None:
    slow = admission.admit(SLOW, rows=5, nbytes=900, deadline=9999)
    slow.set_aside()
    assert admission.predicted_wait_s("cpu") == 0.0
    assert admission.in_flight == InFlight(5, 900)
    admission.admit(SLOW, rows=1, nbytes=0, deadline=clock.now + 3.0)
    slow.grow(rows=1)
    assert admission.predicted_wait_s("cpu") == pytest.approx(1.0)
    slow.resume(9999, 0.0)
    assert admission.predicted_wait_s("cpu") == pytest.approx(7.0)
    slow.resume(0, 0.0)  # it counts already
    slow.release()
    slow.set_aside()
    assert admission.predicted_wait_s("cpu") == pytest.approx(1.0)
    assert admission.in_flight == InFlight(1, 0)


def test_an_upload_that_took_long_is_refused_if_others_have_taken_its_place(
    admission: Admission, clock: Clock, rejections: list[tuple[str, str]]
) -> None:
    slow = admission.admit(SLOW, rows=1, nbytes=10, deadline=clock.now + 5.0)
    slow.set_aside()
    admission.admit(SLOW, rows=4, nbytes=0, deadline=9999)
    with pytest.raises(Overloaded):
        slow.resume(clock.now + 5.0, 0.0)
    assert rejections == [("slow", "deadline")]
    assert admission.predicted_wait_s("cpu") == pytest.approx(4.0)
    slow.release()
    assert admission.in_flight == InFlight(4, 0)
    assert admission.predicted_wait_s("cpu") == pytest.approx(4.0)  # nobody's place went with it


def test_an_upload_that_took_long_and_is_alone_goes_on_whatever_is_predicted(
    admission: Admission, clock: Clock
) -> None:
    slow = admission.admit(SLOW, rows=5, nbytes=10, deadline=9999)
    slow.set_aside()
    slow.resume(clock.now + 0.001, 0.0)
    assert admission.predicted_wait_s("cpu") == pytest.approx(5.0)


def test_models_on_one_device_wait_for_each_other_and_not_for_another_device(
    admission: Admission, clock: Clock
) -> None:
    admission.admit(SLOW, rows=4, nbytes=0, deadline=9999)
    with pytest.raises(Overloaded):
        admission.admit(FAST, rows=1, nbytes=0, deadline=clock.now + 1.0)
    admission.admit(ELSEWHERE, rows=1, nbytes=0, deadline=clock.now + 1.0)
    assert admission.predicted_wait_s("cpu") == pytest.approx(4.0)


def test_the_wait_for_a_media_worker_counts_too(admission: Admission, clock: Clock) -> None:
    admission.admit(FAST, rows=1, nbytes=0, deadline=9999)
    with pytest.raises(Overloaded):
        admission.admit(FAST, rows=1, nbytes=0, deadline=clock.now + 2.0, decode_s=3.0)


def test_a_busy_spell_that_is_over_keeps_nobody_out_of_a_lane_that_stands_empty(
    admission: Admission, clock: Clock
) -> None:
    once_busy = Lane("once busy", "cpu", lambda rows: rows * 4.0, lambda rows: rows * 1.0)
    admission.admit(FAST, rows=1, nbytes=0, deadline=9999)
    first = admission.admit(once_busy, rows=1, nbytes=0, deadline=clock.now + 3.0)
    with pytest.raises(Overloaded):  # what was observed counts for whoever comes behind
        admission.admit(once_busy, rows=1, nbytes=0, deadline=clock.now + 9.0)
    first.release()
    admission.admit(once_busy, rows=1, nbytes=0, deadline=clock.now + 3.0)


def test_a_request_alone_is_tried_whatever_is_predicted(admission: Admission, clock: Clock) -> None:
    admission.admit(SLOW, rows=50, nbytes=5000, deadline=clock.now + 0.001).release()
    assert admission.in_flight == InFlight(0, 0)


def test_a_request_that_grows_is_bounded_and_keeps_what_it_had(admission: Admission) -> None:
    reservation = admission.admit(FAST, rows=1, nbytes=10, deadline=9999)
    reservation.grow(rows=5, nbytes=90)
    with pytest.raises(Overloaded):
        reservation.grow(rows=5)
    assert admission.in_flight == InFlight(6, 100)
    reservation.release()
    assert admission.in_flight == InFlight(0, 0)


def test_what_is_released_stays_released(admission: Admission) -> None:
    first = admission.admit(FAST, rows=3, nbytes=30, deadline=9999)
    admission.admit(FAST, rows=2, nbytes=20, deadline=9999)
    for _ in range(3):
        first.release()
        first.grow(rows=1, nbytes=1)
    assert admission.in_flight == InFlight(2, 20)


class Noticeboard:
    """Other processes, which have nothing in flight; keeps what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[InFlight, dict[str, float]]] = []

    def publish(self, mine: InFlight, backlog_s: Mapping[str, float]) -> None:
        self.told.append((mine, dict(backlog_s)))

    def in_flight(self) -> InFlight:
        return NOTHING

    def backlog_s(self, device: str) -> float:
        return 0.0


def test_other_processes_are_told_of_all_that_waits_on_a_device_and_not_of_uploads_that_take_long(clock: Clock) -> None:
    board = Noticeboard()
    admission = Admission(max_rows=10, max_bytes=1000, clock=clock, peers=board)
    admission.admit(FAST, rows=1, nbytes=0, deadline=9999)
    slow = admission.admit(SLOW, rows=4, nbytes=10, deadline=9999)
    slow.set_aside()
    slow.resume(9999, 0.0)
    slow.release()
    assert [backlog_s["cpu"] for _, backlog_s in board.told] == pytest.approx([0.1, 4.1, 0.1, 4.1, 0.1])
    assert [mine for mine, _ in board.told] == [InFlight(1, 0), *[InFlight(5, 10)] * 3, InFlight(1, 0)]


def test_many_threads_leave_nothing_behind(admission: Admission) -> None:
    def come_and_go() -> None:
        for _ in range(300):
            try:
                reservation = admission.admit(FAST, rows=2, nbytes=7, deadline=9999)
            except Overloaded:
                continue
            reservation.release()
            reservation.release()

    threads = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admission.in_flight == InFlight(0, 0)
