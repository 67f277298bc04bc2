"""When the benchmark of rising rates goes on to the next rate, and what its table shows."""

import pytest

from app.load.arrivals import poisson_arrivals
from app.load.connection import LOST, Answer
from app.load.generator import Samples, Workload
from app.load.summary import Summary, summarise
from app.load.target import Target
from benchmarks.rates import kept_up, table


def run(rate_per_s: float, seconds: float = 5.0, status: int = 200, lateness: float = 1.0) -> Summary:
    """Every request is answered after 1 ms and, if the server falls behind, `lateness` times as late as it was due."""
    samples = Samples(seconds=seconds)
    for due_s in poisson_arrivals(rate_per_s, seconds, 0):
        samples.add(Answer(status, b"", b"", due_s * lateness + 0.001), due_s, 0.0)
    target = Target("127.0.0.1", 8000, "127.0.0.1")
    return summarise(Workload(target, (b"x",), 256, seconds, rate_per_s=rate_per_s), samples)


def test_a_server_that_answers_all_keeps_up_also_where_chance_makes_few_requests_due() -> None:
    summary = run(25.0)
    assert summary.answers < 0.9 * 25 * 5
    assert kept_up(summary)


@pytest.mark.parametrize("fault", [{"lateness": 1.3}, {"status": LOST}])
def test_a_server_that_answers_late_or_not_at_all_does_not_keep_up(fault: dict[str, int]) -> None:
    assert not kept_up(run(100.0, **fault))


def test_a_server_that_answered_nothing_has_its_row() -> None:
    row = table({"ours": [run(100.0, status=LOST)]}).splitlines()[-1]
    assert row.split() == ["ours", "100", "0", "-", "-", str(len(list(poisson_arrivals(100.0, 5.0, 0))))]
