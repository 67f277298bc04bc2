"""What admission predicts and promises where callers take turns, and how much of the room one of them may have."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping

import pytest
from serving_fakes import Clock

from app.errors import Overloaded
from app.serving.admission import Admission
from app.serving.backlog import Backlog, Lane
from app.serving.demand import NOTHING, Demand, InFlight
from app.turns import Turns

NOW = 1000.0


def lane_of(row_s: float, batch_s: float = 0.0, name: str = "model", device: str = "cpu") -> Lane:
    return Lane(name, device, lambda rows: rows * row_s, lambda rows: rows * row_s, lambda: batch_s)


SECOND = lane_of(1.0)


def admission_of(clock: Clock, rejections: list[str] | None = None, max_rows: int = 1000) -> Admission:
    told = [] if rejections is None else rejections
    return Admission(
        max_rows=max_rows, max_bytes=10_000, on_reject=lambda model, reason: told.append(reason), clock=clock
    )


def done_at(work: list[tuple[str, float, int]], mine: tuple[str, float]) -> int:
    """When a newcomer's one row is done, if callers take turns row by row: rows of (caller, deadline, rows)."""
    turns: Turns[tuple[str, float]] = Turns()
    for caller, deadline, rows in work:
        for _ in range(rows):
            turns.add((caller, deadline), caller, deadline)
    turns.add(mine, mine[0], mine[1])
    done = 0
    while True:
        caller, deadline = turns.pop()
        turns.charge(caller, 1.0)
        done += 1
        if (caller, deadline) == mine:
            return done


@pytest.mark.parametrize("seed", range(40))
def test_the_wait_is_that_of_turns_that_are_really_taken(seed: int) -> None:
    draw = random.Random(seed)
    callers = [f"caller {number}" for number in range(draw.randint(1, 5))]
    work = [(draw.choice(callers), NOW + draw.uniform(1.0, 30.0), draw.randint(1, 6)) for _ in range(40)]
    backlog = Backlog()
    for caller, deadline, rows in work:
        backlog.join(SECOND, caller, rows, deadline)
    mine = (draw.choice([*callers, "newcomer"]), NOW + draw.uniform(1.0, 30.0))
    predicted_s = backlog.seconds_before("cpu", *mine, 1.0) + 1.0
    # Among equals whoever's deadline is earlier begins: that is a row of each other caller.
    assert abs(predicted_s - done_at(work, mine)) <= len(callers)


def test_who_has_nothing_in_the_queue_waits_for_a_turn_of_each_other_and_for_the_batch_that_runs() -> None:
    lane = lane_of(1.0, batch_s=4.0)
    backlog = Backlog()
    for caller in ("a", "b"):
        backlog.join(lane, caller, 50, NOW + 10.0)
    assert backlog.seconds_before("cpu", "c", NOW + 30.0, 2.0) == pytest.approx(2.0 + 2.0 + 4.0)
    assert backlog.seconds_before("cpu", "a", NOW + 30.0, 2.0) == pytest.approx(100.0)
    assert backlog.seconds_before("cpu", "a", NOW + 5.0, 2.0) == pytest.approx(2.0 + 4.0)
    assert backlog.seconds_before("cuda:0", "c", NOW + 30.0, 2.0) == 0.0


def test_turns_are_of_time_and_not_of_rows() -> None:
    slow, fast = lane_of(1.0, name="slow"), lane_of(0.1, name="fast")
    backlog = Backlog()
    backlog.join(slow, "a", 10, NOW + 10.0)
    backlog.join(fast, "a", 10, NOW + 10.0)
    # A tenth of the 11 s that "a" has, in whole rows of both models.
    assert backlog.seconds_before("cpu", "b", NOW + 30.0, 1.1) == pytest.approx(1.1)


def test_a_caller_with_few_is_let_in_beside_one_who_filled_the_queue() -> None:
    clock, rejections = Clock(), list[str]()
    admission = admission_of(clock, rejections)
    for _ in range(15):
        admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 30.0, caller="many"))
    with pytest.raises(Overloaded):
        admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 30.0, caller="many"))
    for _ in range(3):
        admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 30.0, caller="few"))
    admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 6.0, caller="third"))
    assert rejections == ["deadline"]


def test_a_deadline_is_no_way_past_another_caller() -> None:
    clock = Clock()
    admission = admission_of(clock)
    admission.admit(Demand(SECOND, rows=10, nbytes=0, deadline=clock.now + 60.0, caller="patient"))
    admission.admit(Demand(SECOND, rows=2, nbytes=0, deadline=clock.now + 8.0, caller="hurried"))
    with pytest.raises(Overloaded):  # two rows of its own, and three of the other's beside these and the new one
        admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 11.9, caller="hurried"))
    admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 12.1, caller="hurried"))


def test_what_was_promised_to_one_caller_is_kept_when_another_comes() -> None:
    clock, rejections = Clock(), list[str]()
    admission = admission_of(clock, rejections)
    for _ in range(10):
        admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 20.0, caller="first"))
    # The last of them can bear 20 / 1.5 s, of which 10 are taken: three more rows in between.
    for _ in range(3):
        admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 60.0, caller="second"))
    with pytest.raises(Overloaded) as refusal:
        admission.admit(Demand(SECOND, rows=1, nbytes=0, deadline=clock.now + 60.0, caller="second"))
    assert refusal.value.retry_after_s == pytest.approx(14.0 - 20.0 / 1.5)
    assert rejections == ["deadline"]


def test_who_has_less_in_the_queue_than_the_newcomer_is_not_delayed_by_it() -> None:
    backlog = Backlog()
    backlog.join(SECOND, "small", 2, NOW + 3.0)
    backlog.join(SECOND, "large", 5, NOW + 60.0)
    spare_s = backlog.shortest_spare_s("cpu", "large", NOW + 60.0, 1.0, NOW, 1.5)
    assert spare_s == math.inf
    # One that is more urgent than the large caller's own delays these, and still not the small one.
    spare_s = backlog.shortest_spare_s("cpu", "large", NOW + 50.0, 1.0, NOW, 1.5)
    assert spare_s == pytest.approx(60.0 / 1.5 - 8.0)
    # A third caller delays both, but the small one, done after 4 s, is lost already.
    spare_s = backlog.shortest_spare_s("cpu", "third", NOW + 60.0, 1.0, NOW, 1.5)
    assert spare_s == pytest.approx(60.0 / 1.5 - 8.0)
    backlog.join(SECOND, "patient", 1, NOW + 20.0)
    spare_s = backlog.shortest_spare_s("cpu", "third", NOW + 60.0, 2.0, NOW, 1.5)
    assert spare_s == pytest.approx(20.0 / 1.5 - 4.0)


def test_no_caller_takes_all_of_the_room_once_another_has_come() -> None:
    clock, rejections = Clock(), list[str]()
    admission = admission_of(clock, rejections, max_rows=90)
    instant = lane_of(0.0)

    def fill(caller: str) -> list[object]:
        held: list[object] = []
        while True:
            try:
                held.append(admission.admit(Demand(instant, rows=1, nbytes=0, deadline=math.inf, caller=caller)))
            except Overloaded:
                return held

    held = fill("a")
    assert (len(held), rejections) == (90, ["queue_rows"])
    assert fill("b") == []  # until then nobody knew of it
    for reservation in held:
        reservation.release()  # type: ignore[attr-defined]
    rejections.clear()
    assert len(fill("a")) == 60
    assert len(fill("b")) == 20
    assert len(fill("c")) == 6
    assert rejections == ["share", "share", "share"]


def test_bytes_are_shared_as_rows_are() -> None:
    clock, rejections = Clock(), list[str]()
    admission = admission_of(clock, rejections)
    instant = lane_of(0.0)
    admission.admit(Demand(instant, rows=1, nbytes=1000, deadline=math.inf, caller="a"))
    admission.admit(Demand(instant, rows=1, nbytes=1000, deadline=math.inf, caller="b"))
    large = admission.admit(Demand(instant, rows=1, nbytes=3000, deadline=math.inf, caller="a"))
    with pytest.raises(Overloaded, match="more in the queue than it leaves free"):
        large.grow(nbytes=3000)
    large.release()
    admission.admit(Demand(instant, rows=1, nbytes=3500, deadline=math.inf, caller="a"))
    assert rejections == ["share"]


class Alone:
    """Other processes, which have nothing in flight."""

    processes = 2

    def publish(self, mine: InFlight, backlog_s: Mapping[str, float]) -> None: ...

    def in_flight(self) -> InFlight:
        return NOTHING

    def backlog_s(self, device: str) -> float:
        return 0.0


def test_who_holds_nothing_may_have_all_that_is_free() -> None:
    clock = Clock()
    admission = admission_of(clock, max_rows=100)
    instant = lane_of(0.0)
    admission.admit(Demand(instant, rows=40, nbytes=0, deadline=math.inf, caller="a"))
    admission.admit(Demand(instant, rows=60, nbytes=0, deadline=math.inf, caller="b"))


def test_a_request_alone_may_grow_to_all_of_the_room_whoever_came_before() -> None:
    clock = Clock()
    admission = admission_of(clock, max_rows=100)
    instant = lane_of(0.0)
    admission.admit(Demand(instant, rows=1, nbytes=0, deadline=math.inf, caller="b")).release()
    alone = admission.admit(Demand(instant, rows=1, nbytes=10, deadline=math.inf, caller="a"))
    alone.grow(rows=98, nbytes=9_000)
    with pytest.raises(Overloaded, match="than it leaves free"):
        admission.admit(Demand(instant, rows=1, nbytes=0, deadline=math.inf, caller="a"))
    admission.admit(Demand(instant, rows=1, nbytes=0, deadline=math.inf, caller="b"))


def test_room_is_kept_for_another_caller_for_a_minute_after_it_left() -> None:
    clock = Clock()
    admission = admission_of(clock, max_rows=90)
    instant = lane_of(0.0)

    def held_by(caller: str) -> int:
        held = []
        with contextlib.suppress(Overloaded):
            while True:
                held.append(admission.admit(Demand(instant, rows=1, nbytes=0, deadline=math.inf, caller=caller)))
        for reservation in held:
            reservation.release()
        return len(held)

    assert held_by("a") == 90
    other = admission.admit(Demand(instant, rows=0, nbytes=1, deadline=math.inf, caller="b"))
    assert held_by("a") == 60
    clock.now += 61.0
    assert held_by("a") == 60  # it has not left yet
    other.release()
    assert held_by("a") == 90
    admission.admit(Demand(instant, rows=1, nbytes=0, deadline=math.inf, caller="b")).release()
    clock.now += 59.0
    assert held_by("a") == 60
    assert held_by("b") == 60  # the other one has come now
    clock.now += 61.0
    assert held_by("b") == 90
    assert admission._held == {}


def test_a_caller_has_as_much_in_other_processes() -> None:
    class Three(Alone):
        processes = 3

    clock = Clock()
    admission = Admission(max_rows=90, max_bytes=10_000, clock=clock, peers=Three())
    instant = lane_of(0.0)
    admission.admit(Demand(instant, rows=1, nbytes=0, deadline=math.inf, caller="b")).release()
    held = 0
    with contextlib.suppress(Overloaded):
        while True:
            admission.admit(Demand(instant, rows=1, nbytes=0, deadline=math.inf, caller="a"))
            held += 1
    assert held == 36  # 3 × 35 + 1 rows are within twice the 54 that are left


def test_a_place_without_rows_is_left_like_any_other() -> None:
    backlog = Backlog()
    place = backlog.join(SECOND, "a", 0, NOW)
    other = backlog.join(SECOND, "a", 2, NOW)
    backlog.leave(other)
    backlog.leave(place)
    assert SECOND not in backlog


def test_of_a_long_line_some_places_stand_for_all() -> None:
    backlog = Backlog()
    for number in range(1000):
        backlog.join(SECOND, "long", 1, NOW + 3.0 * number + 10.0)
    spare_s = backlog.shortest_spare_s("cpu", "new", NOW + 9999.0, 4.0, NOW, 2.0)
    exact = [(3.0 * number + 10.0) / 2.0 - (number + 1 + min(4.0, number + 1)) for number in range(1000)]
    assert spare_s == pytest.approx(min(exact), abs=10.0)
