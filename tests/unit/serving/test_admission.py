"""Who is let in: bounds on rows and bytes, predicted waits, and room that is given back once."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest
from serving_fakes import Clock

from app.errors import Overloaded
from app.serving.admission import Admission
from app.serving.backlog import Lane
from app.serving.demand import NOTHING, Demand, InFlight


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


def lane(name: str, device: str, row_s: float, measured_s: float | None = None) -> Lane:
    """Of a model that takes `row_s` seconds for each row, one by one."""
    measured = row_s if measured_s is None else measured_s
    return Lane(name, device, lambda rows: rows * row_s, lambda rows: rows * measured, lambda: row_s)


SLOW, FAST, ELSEWHERE = lane("slow", "cpu", 1.0), lane("fast", "cpu", 0.1), lane("elsewhere", "cuda:0", 0.1)


def test_rows_in_flight_are_bounded_and_the_refusal_says_when_there_is_room(
    admission: Admission, rejections: list[tuple[str, str]]
) -> None:
    admission.admit(Demand(SLOW, rows=9, nbytes=0, deadline=9999))
    admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=9999))
    with pytest.raises(Overloaded) as refusal:
        admission.admit(Demand(SLOW, rows=3, nbytes=0, deadline=9999))
    assert refusal.value.retry_after_s == 3.0
    assert rejections == [("slow", "queue_rows")]


def test_bytes_in_flight_are_bounded(admission: Admission, rejections: list[tuple[str, str]]) -> None:
    admission.admit(Demand(SLOW, rows=2, nbytes=900, deadline=9999))
    with pytest.raises(Overloaded) as refusal:
        admission.admit(Demand(SLOW, rows=1, nbytes=101, deadline=9999))
    assert refusal.value.retry_after_s == 2.0
    assert rejections == [("slow", "queue_bytes")]


def test_what_is_in_flight_is_told_until_it_is_nothing() -> None:
    told: list[tuple[int, int]] = []
    admission = Admission(max_rows=10, max_bytes=1000, on_change=lambda rows, nbytes: told.append((rows, nbytes)))
    reservation = admission.admit(Demand(SLOW, rows=2, nbytes=900, deadline=float("inf")))
    reservation.grow(rows=1)
    with pytest.raises(Overloaded):
        admission.admit(Demand(SLOW, rows=8, nbytes=0, deadline=float("inf")))
    reservation.release()
    assert told == [(2, 900), (3, 900), (0, 0)]


def test_a_wait_that_leaves_no_headroom_before_the_deadline_is_refused_before_decoding(
    admission: Admission, clock: Clock, rejections: list[tuple[str, str]]
) -> None:
    admission.admit(Demand(SLOW, rows=4, nbytes=0, deadline=clock.now + 8.0))
    admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 10.0))
    with pytest.raises(Overloaded) as refusal:
        admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 10.0))
    assert refusal.value.retry_after_s == pytest.approx(1.0)  # one more row done, and it fits
    assert rejections == [("slow", "deadline")]


def test_an_upload_that_takes_long_keeps_its_room_but_nobody_is_predicted_to_wait_for_it(
    admission: Admission, clock: Clock
) -> None:
    slow = admission.admit(Demand(SLOW, rows=5, nbytes=900, deadline=9999))
    slow.set_aside()
    assert admission.predicted_wait_s("cpu") == 0.0
    assert admission.in_flight == InFlight(5, 900)
    admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 3.0))
    slow.grow(rows=1)
    assert admission.predicted_wait_s("cpu") == pytest.approx(1.0)
    slow.resume(0.0)
    assert admission.predicted_wait_s("cpu") == pytest.approx(7.0)
    slow.resume(9999.0)  # it counts already
    slow.release()
    slow.set_aside()
    assert admission.predicted_wait_s("cpu") == pytest.approx(1.0)
    assert admission.in_flight == InFlight(1, 0)


def test_an_upload_that_took_long_is_refused_if_others_have_taken_its_place(
    admission: Admission, clock: Clock, rejections: list[tuple[str, str]]
) -> None:
    slow = admission.admit(Demand(SLOW, rows=1, nbytes=10, deadline=clock.now + 9.0))
    slow.set_aside()
    admission.admit(Demand(SLOW, rows=4, nbytes=0, deadline=clock.now + 8.0))
    with pytest.raises(Overloaded):
        slow.resume(0.0)
    assert rejections == [("slow", "deadline")]
    assert admission.predicted_wait_s("cpu") == pytest.approx(4.0)
    slow.release()
    assert admission.in_flight == InFlight(4, 0)
    assert admission.predicted_wait_s("cpu") == pytest.approx(4.0)  # nobody's place went with it


def test_an_upload_that_took_long_and_is_alone_goes_on_whatever_is_predicted(
    admission: Admission, clock: Clock
) -> None:
    slow = admission.admit(Demand(SLOW, rows=5, nbytes=10, deadline=clock.now + 0.001))
    slow.set_aside()
    slow.resume(0.0)
    assert admission.predicted_wait_s("cpu") == pytest.approx(5.0)


def test_models_on_one_device_wait_for_each_other_and_not_for_another_device(
    admission: Admission, clock: Clock
) -> None:
    admission.admit(Demand(SLOW, rows=4, nbytes=0, deadline=clock.now + 1.0))
    with pytest.raises(Overloaded):
        admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 1.0))
    admission.admit(Demand(ELSEWHERE, rows=1, nbytes=0, deadline=clock.now + 1.0))
    assert admission.predicted_wait_s("cpu") == pytest.approx(4.0)


def test_the_wait_for_a_media_worker_counts_too(admission: Admission, clock: Clock) -> None:
    admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=9999))
    with pytest.raises(Overloaded):
        admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 2.0, decode_s=3.0))


def test_a_busy_spell_that_is_over_keeps_nobody_out_of_a_lane_that_stands_empty(
    admission: Admission, clock: Clock
) -> None:
    once_busy = lane("once busy", "cpu", 4.0, measured_s=1.0)
    admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 3.0))
    first = admission.admit(Demand(once_busy, rows=1, nbytes=0, deadline=clock.now + 3.0))
    with pytest.raises(Overloaded):  # what was observed counts for whoever comes behind
        admission.admit(Demand(once_busy, rows=1, nbytes=0, deadline=clock.now + 9.0))
    first.release()
    admission.admit(Demand(once_busy, rows=1, nbytes=0, deadline=clock.now + 3.0))


def test_who_is_in_a_hurry_does_not_wait_for_those_who_are_not(admission: Admission, clock: Clock) -> None:
    patient = admission.admit(Demand(SLOW, rows=8, nbytes=0, deadline=clock.now + 30.0))
    with pytest.raises(Overloaded) as refusal:  # a row that runs is not interrupted: 2 × (1 s of it + 1 s of its own)
        admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 3.9))
    assert refusal.value.retry_after_s == pytest.approx(0.05)
    hurried = admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 4.0))
    with pytest.raises(Overloaded):  # behind the one before
        admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 4.0))
    hurried.release()
    admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 2.2)).release()
    patient.release()
    assert admission.predicted_wait_s("cpu") == 0.0


def test_the_batch_that_runs_is_no_more_than_there_is(admission: Admission, clock: Clock) -> None:
    batches = Lane("batches", "cpu", lambda rows: rows * 0.1, lambda rows: rows * 0.1, lambda: 5.0)
    admission.admit(Demand(batches, rows=2, nbytes=0, deadline=clock.now + 30.0))
    admission.admit(Demand(batches, rows=1, nbytes=0, deadline=clock.now + 0.6))


def test_nobody_is_overtaken_who_cannot_bear_it(
    admission: Admission, clock: Clock, rejections: list[tuple[str, str]]
) -> None:
    patient = admission.admit(Demand(SLOW, rows=6, nbytes=0, deadline=clock.now + 12.0))
    # 1.5 × (2 + 6) s is what the patient one has.
    admission.admit(Demand(SLOW, rows=2, nbytes=0, deadline=clock.now + 10.0))
    with pytest.raises(Overloaded) as refusal:
        admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 9.0))
    assert refusal.value.retry_after_s == pytest.approx(0.1)
    assert rejections == [("fast", "deadline")]
    patient.release()
    admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 9.0))


def test_the_worst_off_of_those_who_are_overtaken_decides(admission: Admission, clock: Clock) -> None:
    for rows, within_s in ((2, 4.45), (1, 20.0)):
        admission.admit(Demand(SLOW, rows=rows, nbytes=0, deadline=clock.now + within_s))
    with pytest.raises(Overloaded):
        admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 4.4))
    admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 19.0))


def test_who_is_lost_already_keeps_nobody_out(admission: Admission, clock: Clock) -> None:
    admission.admit(Demand(SLOW, rows=5, nbytes=0, deadline=clock.now + 13.0))
    clock.now += 10.0  # and nothing was done
    admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 2.5))


def test_who_turns_out_to_be_in_a_hurry_goes_before_others(admission: Admission, clock: Clock) -> None:
    first = admission.admit(Demand(SLOW, rows=4, nbytes=0, deadline=clock.now + 60.0))
    admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 30.0))
    first.hurry(clock.now + 10.0)
    with pytest.raises(Overloaded):  # 2 × (4 s of the first, 1 s of what may run, 1 s of its own)
        admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 11.9))
    admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 12.1))
    first.release()
    first.hurry(clock.now)  # nothing waits any more
    assert admission.predicted_wait_s("cpu") == pytest.approx(2.0)


def test_an_upload_that_takes_long_stands_in_nobody_s_way_when_it_hurries(admission: Admission, clock: Clock) -> None:
    slow = admission.admit(Demand(SLOW, rows=5, nbytes=0, deadline=clock.now + 60.0))
    slow.set_aside()
    slow.hurry(clock.now + 10.0)
    assert admission.predicted_wait_s("cpu") == 0.0
    admission.admit(Demand(SLOW, rows=1, nbytes=0, deadline=clock.now + 2.0))
    with pytest.raises(Overloaded):
        slow.resume(0.0)  # 2 × (1 + 5) s by now


def test_a_request_alone_is_tried_whatever_is_predicted(admission: Admission, clock: Clock) -> None:
    admission.admit(Demand(SLOW, rows=50, nbytes=5000, deadline=clock.now + 0.001)).release()
    assert admission.in_flight == InFlight(0, 0)


def test_a_request_that_grows_is_bounded_and_keeps_what_it_had(admission: Admission) -> None:
    reservation = admission.admit(Demand(FAST, rows=1, nbytes=10, deadline=9999))
    reservation.grow(rows=5, nbytes=90)
    with pytest.raises(Overloaded):
        reservation.grow(rows=5)
    assert admission.in_flight == InFlight(6, 100)
    reservation.release()
    assert admission.in_flight == InFlight(0, 0)


def test_what_is_released_stays_released(admission: Admission) -> None:
    first = admission.admit(Demand(FAST, rows=3, nbytes=30, deadline=9999))
    admission.admit(Demand(FAST, rows=2, nbytes=20, deadline=9999))
    for _ in range(3):
        first.release()
        first.grow(rows=1, nbytes=1)
    assert admission.in_flight == InFlight(2, 20)


class Noticeboard:
    """Other processes, which have nothing in flight; keeps what they are told."""

    processes = 2

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
    admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=9999))
    slow = admission.admit(Demand(SLOW, rows=4, nbytes=10, deadline=9999))
    slow.set_aside()
    slow.resume(0.0)
    slow.release()
    assert [backlog_s["cpu"] for _, backlog_s in board.told] == pytest.approx([0.1, 4.1, 0.1, 4.1, 0.1])
    assert [mine for mine, _ in board.told] == [InFlight(1, 0), *[InFlight(5, 10)] * 3, InFlight(1, 0)]


def test_the_work_of_other_processes_is_as_urgent_as_what_is_here(clock: Clock) -> None:
    class Busy(Noticeboard):
        def backlog_s(self, device: str) -> float:
            return 8.0

    admission = Admission(max_rows=100, max_bytes=1000, clock=clock, peers=Busy())
    patient = admission.admit(Demand(SLOW, rows=4, nbytes=0, deadline=clock.now + 60.0))
    with pytest.raises(Overloaded):  # of four seconds here one may be before it, so of eight elsewhere two
        admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 6.1))
    admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 6.3)).release()
    patient.release()
    admission.admit(Demand(FAST, rows=1, nbytes=10, deadline=clock.now + 60.0)).set_aside()
    with pytest.raises(Overloaded):  # nothing here says how urgent theirs is
        admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 16.1))
    with pytest.raises(Overloaded):  # a turn of others, and one's own
        admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 0.39, caller="alice"))
    admission.admit(Demand(FAST, rows=1, nbytes=0, deadline=clock.now + 0.41, caller="alice"))


def test_many_threads_leave_nothing_behind(admission: Admission) -> None:
    def come_and_go() -> None:
        for _ in range(300):
            try:
                reservation = admission.admit(Demand(FAST, rows=2, nbytes=7, deadline=9999))
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
