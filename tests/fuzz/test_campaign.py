"""Spoilt files and spoilt requests against a real server: CASES of them, from SEED (see `make fuzz`)."""

from __future__ import annotations

import campaign
from cases import make_case
from target import CASES, ONLY_CASE, SEED, Target


def test_whatever_comes_is_answered_as_documented(target: Target) -> None:
    numbers = range(CASES) if ONLY_CASE is None else range(ONLY_CASE, ONLY_CASE + 1)
    before = target.tally.cases
    campaign.run(target.server, SEED, numbers, target.tally)
    assert target.tally.cases - before == len(numbers)
    assert not target.tally.failures, "\n".join(target.tally.failures)


def test_a_case_is_the_same_whenever_it_is_made() -> None:
    for number in range(200):
        assert make_case(SEED, number) == make_case(SEED, number)
    assert make_case(SEED, 0).data != make_case(SEED + 1, 0).data
