"""The wait for a media worker, predicted from what lately was before files, and from how long they waited and took."""

from __future__ import annotations

import pytest

from app.serving.decode_load import DecodeLoad, Expected

SOON, LATER = 1.0, 2.0


def alone(load: DecodeLoad, taken_s: float, worker_s: float | None = None, caller: str = "") -> None:
    """A file that nobody was before was decoded after so long."""
    expected = load.enter(LATER, caller)
    load.leave(LATER, caller)
    load.observe(expected, taken_s, taken_s if worker_s is None else worker_s, caller)


def test_nothing_is_predicted_before_anything_was_seen() -> None:
    load = DecodeLoad(workers=2)
    load.enter(LATER)
    assert load.predict_s(1, LATER) == 0.0


def test_a_file_that_has_a_worker_to_itself_takes_its_own_time() -> None:
    load = DecodeLoad(workers=2)
    load.observe(load.enter(LATER), 0.5, 0.5)
    assert load.predict_s(1, LATER) == pytest.approx(0.5)
    assert load.predict_s(3, LATER) == pytest.approx(1.0)


def test_nothing_is_predicted_of_a_file_that_is_alone() -> None:
    load = DecodeLoad(workers=1)
    alone(load, 9.0)
    assert load.predict_s(1, LATER) == 0.0
    assert load.predict_s(2, LATER) == pytest.approx(18.0)


def test_files_that_wait_are_waited_for() -> None:
    load = DecodeLoad(workers=2)
    for _ in range(7):
        expected = load.enter(LATER)
    load.observe(expected, 3.5, 1.0)  # the seventh of two workers: 3.5 turns of a second each
    assert load.predict_s(1, LATER) == pytest.approx(4.0)
    for _ in range(7):
        load.leave(LATER)
    assert load.predict_s(2, LATER) == pytest.approx(1.0)


def test_the_whole_time_counts_and_not_what_the_workers_take() -> None:
    load = DecodeLoad(workers=1)
    alone(load, 5.0, worker_s=2.0)
    assert load.predict_s(2, LATER) == pytest.approx(10.0)
    for _ in range(200):
        alone(load, 2.0)
    assert load.predict_s(2, LATER) == pytest.approx(4.0, rel=0.01)


def test_what_is_seen_later_counts_more_and_more() -> None:
    load = DecodeLoad(workers=2)
    alone(load, 1.0)
    for _ in range(200):
        alone(load, 3.0)
    assert load.predict_s(2, LATER) == pytest.approx(3.0, rel=0.01)


def test_about_the_last_twenty_files_count() -> None:
    load = DecodeLoad(workers=2)
    alone(load, 1.0)
    alone(load, 3.0, worker_s=1.0)
    assert load.predict_s(2, LATER) == pytest.approx(1.1)
    alone(load, 1.1, worker_s=3.0)
    assert load.predict_s(2, LATER) == pytest.approx(1.1 * 1.1)


def test_a_file_that_leaves_is_no_longer_waited_for_and_the_others_are() -> None:
    load = DecodeLoad(workers=1)
    alone(load, 1.0)
    for deadline in (SOON, SOON, LATER, LATER, LATER):
        load.enter(deadline)
    load.leave(LATER)
    assert load.predict_s(1, 1.5) == pytest.approx(3.5)  # two before it, half of one that is in hand, and itself
    load.leave(SOON)
    assert load.predict_s(1, 1.5) == pytest.approx(2.5)


def test_an_expiry_says_that_files_take_longer_and_never_that_they_take_less() -> None:
    load = DecodeLoad(workers=2)
    alone(load, 1.0)
    load.observe_expiry(Expected(1.0, in_seconds=True), 0.1)
    assert load.predict_s(2, LATER) == 1.0
    load.observe_expiry(Expected(2.0, in_seconds=True), 6.0)
    assert load.predict_s(2, LATER) > 1.0


def test_an_expiry_is_better_than_nothing() -> None:
    load = DecodeLoad(workers=2)
    load.observe_expiry(load.enter(LATER), 2.0)
    assert load.predict_s(1, LATER) == 2.0


def test_who_is_in_a_hurry_waits_for_those_before_it_and_for_what_the_workers_have_in_hand() -> None:
    load = DecodeLoad(workers=2)
    alone(load, 1.0)
    for _ in range(10):
        load.enter(LATER)
    assert load.predict_s(1, LATER) == pytest.approx(5.5)
    assert load.predict_s(2, SOON) == pytest.approx(1.5)
    assert load.enter(SOON) == Expected(1.0, in_seconds=True)
    assert load.enter(SOON) == Expected(1.5, in_seconds=True)
    assert load.predict_s(1, SOON) == pytest.approx(2.0)
    load.leave(SOON)
    assert load.predict_s(1, SOON) == pytest.approx(1.5)
    for _ in range(9):
        load.leave(LATER)
    assert load.predict_s(1, SOON) == pytest.approx(1.25)  # one worker alone has something in hand


def test_callers_take_turns() -> None:
    load = DecodeLoad(workers=1)
    alone(load, 1.0)
    for _ in range(10):
        load.enter(LATER, "many")
    assert load.predict_s(1, LATER, "many") == pytest.approx(11.0)
    assert load.predict_s(1, LATER, "few") == pytest.approx(2.5)  # a turn of the other's, half of one in hand, its own
    assert load.enter(SOON, "few") == Expected(2.5, in_seconds=True)
    assert load.predict_s(1, LATER, "few") == pytest.approx(4.5)
    assert load.predict_s(1, SOON, "many") == pytest.approx(2.5)
    assert load.predict_s(1, LATER, "many") == pytest.approx(12.0)
    load.leave(SOON, "few")
    assert load.predict_s(1, LATER, "many") == pytest.approx(11.0)


def test_who_sends_small_files_waits_for_no_more_of_another_s_large_ones_than_is_in_hand() -> None:
    load = DecodeLoad(workers=2)
    alone(load, 2.4, caller="large")
    alone(load, 0.01, caller="small")
    for _ in range(10):
        load.enter(LATER, "large")
    assert load.predict_s(1, LATER, "small") == pytest.approx(1.2, rel=0.06)
    assert load.predict_s(1, LATER, "large") == pytest.approx(13.2, rel=0.06)


def test_of_a_caller_who_has_nothing_here_the_best_is_assumed() -> None:
    load = DecodeLoad(workers=1)
    alone(load, 1.0, caller="changed")
    alone(load, 0.1, caller="small")
    load.enter(LATER, "small")
    for caller in ("changed", "unknown"):
        assert load.predict_s(1, LATER, caller) == pytest.approx(load.predict_s(1, LATER, "small"))
    load.enter(LATER, "changed")
    assert load.predict_s(1, LATER, "changed") > 2 * load.predict_s(1, LATER, "unknown")


def test_a_caller_s_last_file_leaves_nothing_behind() -> None:
    load = DecodeLoad(workers=1)
    alone(load, 1.0)
    load.enter(LATER, "alice")
    load.leave(LATER, "alice")
    assert load.predict_s(1, LATER, "bob") == 0.0
    assert load._deadlines == {}
