"""Whose turn it is."""

from __future__ import annotations

import random
from collections import Counter

from app.turns import Turns


def filled(*items: tuple[str, str, float]) -> Turns[str]:
    """What each caller brought, until when, in this order."""
    turns: Turns[str] = Turns()
    for item, caller, deadline in items:
        turns.add(item, caller, deadline)
    return turns


def served(turns: Turns[str], costs: dict[str, float], many: int = 1000) -> list[str]:
    """The order in which items leave; an item's caller, its first letter, is charged what its items cost."""
    order: list[str] = []
    while turns and len(order) < many:
        item = turns.first()
        assert turns.pop() == item
        order.append(item)
        turns.charge(item[0], costs.get(item[0], 1.0))
    return order


def test_one_caller_is_served_in_order_of_deadline_and_of_arrival_among_equals() -> None:
    turns = filled(("a1", "a", 3.0), ("a2", "a", 1.0), ("a3", "a", 2.0), ("a4", "a", 1.0))
    assert len(turns) == 4
    assert sorted(turns) == ["a1", "a2", "a3", "a4"]
    assert served(turns, {}) == ["a2", "a4", "a3", "a1"]
    assert not turns
    assert len(turns) == 0


def test_callers_alternate_however_many_items_and_however_early_deadlines_they_have() -> None:
    turns = filled(*((f"a{n}", "a", 1.0 + n) for n in range(6)), ("b0", "b", 99.0), ("b1", "b", 98.0))
    assert served(turns, {}) == ["a0", "b1", "a1", "b0", "a2", "a3", "a4", "a5"]


def test_it_is_what_they_are_given_that_is_equal_and_not_the_number_of_items() -> None:
    turns = filled(*((f"a{n}", "a", 1.0) for n in range(90)), *((f"b{n}", "b", 1.0) for n in range(90)))
    shares = Counter(item[0] for item in served(turns, {"a": 3.0, "b": 1.0}, many=80))
    assert shares == {"a": 20, "b": 60}


def test_absence_is_no_credit_and_no_debt_beyond_what_was_had() -> None:
    turns = filled(*((f"a{n}", "a", 1.0) for n in range(20)))
    served(turns, {}, many=10)
    for n in range(6):
        turns.add(f"b{n}", "b", 1.0)
    order = served(turns, {}, many=6)
    assert all({first[0], second[0]} == {"a", "b"} for first, second in zip(order[::2], order[1::2], strict=True))


def test_who_is_charged_later_waits_until_the_others_have_had_as_much() -> None:
    turns = filled(("a0", "a", 1.0), *((f"b{n}", "b", 2.0) for n in range(8)))
    assert turns.pop() == "a0"
    turns.charge("a", 4.5)  # a worker took so long, and nothing of a's waits by then
    turns.add("a1", "a", 1.0)
    assert served(turns, {}, many=7) == ["b0", "b1", "b2", "b3", "b4", "a1", "b5"]


def test_when_nobody_has_waited_all_begin_anew() -> None:
    turns = filled(("a0", "a", 1.0))
    turns.charge("a", 100.0)
    assert turns.pop() == "a0"
    for item in ("b0", "b1", "a1", "a2"):
        turns.add(item, item[0], float(item[1]))
    assert served(turns, {}) == ["b0", "a1", "b1", "a2"]
    turns.add("b2", "b", 1.0)
    turns.charge("a", 1.5)  # for what was taken before
    for item in ("a3", "b3", "b4"):
        turns.add(item, item[0], 1.0)
    assert served(turns, {}) == ["b2", "b3", "a3", "b4"]


def test_among_callers_who_have_had_the_same_the_most_urgent_item_is_next() -> None:
    assert served(filled(("a0", "a", 3.0), ("b0", "b", 1.0), ("c0", "c", 2.0)), {}) == ["b0", "c0", "a0"]


def test_the_order_is_kept_when_an_item_is_removed() -> None:
    turns = filled(*((f"a{n}", "a", float(n)) for n in (0, 10, 1, 11, 12, 2, 3)))
    turns.remove(next(item for item in turns if item == "a0"), "a")
    assert served(turns, {}) == ["a1", "a2", "a3", "a10", "a11", "a12"]


def test_an_item_that_is_removed_is_gone_and_another_stays() -> None:
    turns = filled(("a1", "a", 1.0), ("a2", "a", 2.0), ("b1", "b", 3.0))
    assert sorted(turns.most_urgent()) == ["a1", "b1"]
    turns.remove(next(item for item in turns if item == "a1"), "a")
    turns.remove("never there", "a")
    turns.remove("never there", "c")
    assert sorted(turns) == ["a2", "b1"]
    turns.remove(next(item for item in turns if item == "b1"), "b")
    assert served(turns, {}) == ["a2"]
    turns.add("c1", "c", 1.0)
    turns.clear()
    assert not turns
    assert list(turns.most_urgent()) == []


def test_callers_who_went_away_are_forgotten() -> None:
    turns: Turns[str] = Turns()
    for number in range(1000):
        turns.add("item", f"caller {number}", 1.0)
        turns.pop()
        turns.charge(f"caller {number}", 1.0)
    assert len(turns._had) < 10


def test_whoever_waits_all_the_time_gets_the_same_to_within_one_item_each() -> None:
    draw = random.Random(0)
    turns: Turns[tuple[str, float]] = Turns()
    largest = 4.0
    had = {"a": 0.0, "b": 0.0, "c": 0.0}

    def bring(caller: str) -> None:
        turns.add((caller, draw.uniform(0.5, largest)), caller, draw.random())

    for caller in had:
        for _ in range(draw.randint(1, 5)):
            bring(caller)
    for _ in range(2000):
        caller, cost = turns.pop()
        turns.charge(caller, cost)
        had[caller] += cost
        bring(caller)
        assert max(had.values()) - min(had.values()) <= largest
