import asyncio
import statistics
import time
from itertools import pairwise

from app.load.arrivals import keep_time, poisson_arrivals


def test_arrivals_keep_the_rate_and_their_gaps_vary_like_an_exponential() -> None:
    due_s = list(poisson_arrivals(200.0, 50.0, seed=1))
    gaps = [b - a for a, b in pairwise(due_s)]
    assert abs(len(due_s) - 10_000) < 300  # three standard deviations
    assert due_s == sorted(due_s)
    assert due_s[-1] < 50.0
    assert 0.95 < statistics.stdev(gaps) * 200 < 1.05


def test_a_seed_draws_the_same_arrivals_again() -> None:
    assert list(poisson_arrivals(50.0, 2.0, seed=3)) == list(poisson_arrivals(50.0, 2.0, seed=3))
    assert list(poisson_arrivals(50.0, 2.0, seed=3)) != list(poisson_arrivals(50.0, 2.0, seed=4))


def test_nothing_is_yielded_before_it_is_due_and_the_moments_are_the_intended_ones() -> None:
    async def scenario() -> list[tuple[float, float]]:
        started_s = time.perf_counter()
        times = keep_time(iter([0.01, 0.02, 0.05]), started_s)
        return [(due_s - started_s, time.perf_counter() - started_s) async for due_s in times]

    found = asyncio.run(scenario())
    assert [round(due_s, 6) for due_s, _ in found] == [0.01, 0.02, 0.05]
    assert all(yielded_s >= due_s for due_s, yielded_s in found)
