"""The wait for a media worker, predicted from how long files lately waited and took, by how many were before them."""

from __future__ import annotations

import pytest

from app.serving.decode_load import DecodeLoad

SOON, LATER = 1.0, 2.0


def test_nothing_is_predicted_before_anything_was_seen() -> None:
    load = DecodeLoad(workers=2)
    load.enter(LATER)
    assert load.predict_s(1, LATER) == 0.0


def test_a_file_that_has_a_worker_to_itself_takes_its_own_time() -> None:
    load = DecodeLoad(workers=2)
    load.observe(load.enter(LATER), 0.5)
    assert load.predict_s(1, LATER) == pytest.approx(0.5)
    assert load.predict_s(3, LATER) == pytest.approx(1.0)


def test_nothing_is_predicted_of_a_file_that_is_alone() -> None:
    load = DecodeLoad(workers=1)
    load.observe(load.enter(LATER), 9.0)
    load.leave(LATER)
    assert load.predict_s(1, LATER) == 0.0
    assert load.predict_s(2, LATER) == pytest.approx(18.0)


def test_files_that_wait_are_waited_for() -> None:
    load = DecodeLoad(workers=2)
    for _ in range(7):
        turns = load.enter(LATER)
    load.observe(turns, 3.5)  # the seventh of two workers: 3.5 turns of a second each
    assert load.predict_s(1, LATER) == pytest.approx(4.0)
    for _ in range(7):
        load.leave(LATER)
    assert load.predict_s(2, LATER) == pytest.approx(1.0)


def test_what_is_seen_later_counts_more_and_more() -> None:
    load = DecodeLoad(workers=2)
    load.observe(1.0, 1.0)
    for _ in range(200):
        load.observe(1.0, 3.0)
    assert load.predict_s(2, LATER) == pytest.approx(3.0, rel=0.01)


def test_about_the_last_twenty_files_count() -> None:
    load = DecodeLoad(workers=2)
    load.observe(1.0, 1.0)
    load.observe(1.0, 3.0)
    assert load.predict_s(2, LATER) == pytest.approx(1.1)


def test_a_file_that_leaves_is_no_longer_waited_for_and_the_others_are() -> None:
    load = DecodeLoad(workers=1)
    load.observe(1.0, 1.0)
    for deadline in (SOON, SOON, LATER, LATER, LATER):
        load.enter(deadline)
    load.leave(LATER)
    assert load.predict_s(1, 1.5) == pytest.approx(4.0)  # two before it, one in hand, and itself
    load.leave(SOON)
    assert load.predict_s(1, 1.5) == pytest.approx(3.0)


def test_an_expiry_says_that_files_take_longer_and_never_that_they_take_less() -> None:
    load = DecodeLoad(workers=2)
    load.observe(1.0, 1.0)
    load.observe_expiry(1.0, 0.1)
    assert load.predict_s(2, LATER) == 1.0
    load.observe_expiry(2.0, 6.0)
    assert load.predict_s(2, LATER) > 1.0


def test_an_expiry_is_better_than_nothing() -> None:
    load = DecodeLoad(workers=2)
    load.observe_expiry(1.0, 2.0)
    assert load.predict_s(2, LATER) == 2.0


def test_who_is_in_a_hurry_waits_for_those_before_it_and_for_what_the_workers_have_in_hand() -> None:
    load = DecodeLoad(workers=2)
    load.observe(1.0, 1.0)
    for _ in range(10):
        load.enter(LATER)
    assert load.predict_s(1, LATER) == pytest.approx(5.5)
    assert load.predict_s(1, SOON) == pytest.approx(1.5)
    assert load.enter(SOON) == pytest.approx(1.5)
    assert load.enter(SOON) == pytest.approx(2.0)
    assert load.predict_s(1, SOON) == pytest.approx(2.5)
    load.leave(SOON)
    assert load.predict_s(1, SOON) == pytest.approx(2.0)
    for _ in range(9):
        load.leave(LATER)
    assert load.predict_s(1, SOON) == pytest.approx(1.5)  # one worker alone has something in hand


def test_callers_take_turns() -> None:
    load = DecodeLoad(workers=1)
    load.observe(1.0, 1.0)
    for _ in range(10):
        load.enter(LATER, "many")
    assert load.predict_s(1, LATER, "many") == pytest.approx(11.0)
    assert load.predict_s(1, LATER, "few") == pytest.approx(3.0)  # a turn of the other's, what is in hand, its own
    assert load.enter(SOON, "few") == pytest.approx(3.0)
    assert load.predict_s(1, LATER, "few") == pytest.approx(5.0)
    assert load.predict_s(1, SOON, "many") == pytest.approx(3.0)
    assert load.predict_s(1, LATER, "many") == pytest.approx(12.0)
    load.leave(SOON, "few")
    assert load.predict_s(1, LATER, "many") == pytest.approx(11.0)


def test_a_caller_s_last_file_leaves_nothing_behind() -> None:
    load = DecodeLoad(workers=1)
    load.observe(1.0, 1.0)
    load.enter(LATER, "alice")
    load.leave(LATER, "alice")
    assert load.predict_s(1, LATER, "bob") == 0.0
    assert load._deadlines == {}
