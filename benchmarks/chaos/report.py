"""The tables of a run, and what is written down of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from app.load.summary import percentiles
from app.load.table import text_table
from benchmarks.chaos.census import Census
from benchmarks.chaos.scene import Rate
from benchmarks.chaos.storm import Sent
from benchmarks.chaos.verdict import BROKEN, Judgement, Verdict
from benchmarks.results import spread


@dataclass(frozen=True)
class Round:
    """One storm, between two measurements of the capacity.

    Attributes:
        before, after: the capacity, of sound files alone.
        mixed: the capacity before, of sound and bad files in the storm's proportion.
        during: what was answered in the storm.
        census: of the server, once it was calm again.
    """

    before: Rate
    mixed: Rate
    during: Rate
    after: Rate
    offered_per_s: float
    judged: Judgement
    sent: Sent
    killed: int
    census: Census

    @property
    def good_share(self) -> float:
        """Sound files answered, of the capacity before."""
        return self.during.good_per_s / self.before.good_per_s

    @property
    def share_of_both(self) -> float:
        """The same of the mean of the capacities before and after: machines change their speed."""
        return 2 * self.during.good_per_s / (self.before.good_per_s + self.after.good_per_s)

    @property
    def answered_share(self) -> float:
        """Sound and bad files answered, of the capacity for the same mixture."""
        return self.during.answers_per_s / self.mixed.answers_per_s


_SHARES: tuple[tuple[str, Callable[[Round], float]], ...] = (
    ("good files ÷ capacity before", lambda each: each.good_share),
    ("good files ÷ mean of before and after", lambda each: each.share_of_both),
    ("all files ÷ capacity for the same mixture", lambda each: each.answered_share),
)


def print_report(rounds: Sequence[Round], at_rest: Census, at_end: Census) -> None:
    """What a person wants to see."""
    rows = [
        (
            str(number),
            f"{each.offered_per_s:.1f}",
            f"{each.before.good_per_s:.1f}",
            f"{each.during.good_per_s:.1f} ({each.during.videos_per_s:.2f})",
            f"{each.after.good_per_s:.1f}",
            *(f"{share(each):.3f}" for _, share in _SHARES),
            f"{each.during.work / each.before.work:.3f}",
        )
        for number, each in enumerate(rounds, start=1)
    ]
    header = ("storm", "offered/s", "before/s", "during/s (videos)", "after/s", "÷ before", "÷ both", "÷ mixed", "work")
    print(text_table(header, rows))
    for name, share in _SHARES:
        print(f"{name}: {spread([share(each) for each in rounds])}")
    for number, each in enumerate(rounds, start=1):
        _print_storm(number, each)
    _print_held({"at rest": at_rest, **{f"after storm {n}": r.census for n, r in enumerate(rounds, 1)}, "end": at_end})


def _print_storm(number: int, each: Round) -> None:
    judged = each.judged
    table = [
        (who, what, f"{count:,}") for who, found in sorted(judged.verdicts.items()) for what, count in found.items()
    ]
    print(f"\nstorm {number}")
    print(text_table(("client", "outcome", "requests"), table))
    broken = sum(judged.count(verdict) for verdict in BROKEN)
    print(
        f"broken promises: {broken}; deadlines missed: {judged.count(Verdict.EXPIRED)}; workers killed: {each.killed}"
    )
    print(
        f"answers compared with those when idle: {judged.compared:,}, {judged.exact:,} the same, "
        f"the farthest off by {judged.farthest:.2g}"
    )
    print(f"latency of right answers, ms: {_latency_ms(judged)}")
    print(f"generator: {_generator(each.sent)}, not sent: {each.sent.unsent}")


def _print_held(counts: dict[str, Census]) -> None:
    held = [
        (
            name,
            f"{each.pss_mib:.0f}",
            f"{each.server_rss_mib:.0f}",
            str(each.descriptors),
            str(each.processes),
            str(each.media_workers),
            str(each.queue_rows),
            str(each.in_flight_rows),
            str(each.restarts),
            str(each.cancelled),
        )
        for name, each in counts.items()
    ]
    header = ("count", "MiB in all", "MiB server", "descriptors", "processes", "workers", "waiting", "in flight")
    print()
    print(text_table((*header, "restarts", "cancelled in"), held))


def as_document(rounds: Sequence[Round], at_rest: Census, at_end: Census) -> dict[str, object]:
    """What is kept."""
    return {
        "shares": {name: [share(each) for each in rounds] for name, share in _SHARES},
        "at_rest": asdict(at_rest),
        "at_end": asdict(at_end),
        "rounds": [
            {
                "offered_per_s": each.offered_per_s,
                "requests": len(each.sent.outcomes),
                "unsent": each.sent.unsent,
                "killed_workers": each.killed,
                "rates": {
                    "before": asdict(each.before),
                    "before, with bad files": asdict(each.mixed),
                    "during": asdict(each.during),
                    "after": asdict(each.after),
                },
                "verdicts": each.judged.verdicts,
                "statuses": dict(each.judged.statuses),
                "compared": each.judged.compared,
                "exact": each.judged.exact,
                "farthest": each.judged.farthest,
                "latency_ms": _latency_ms(each.judged),
                "generator": _generator(each.sent),
                "census": asdict(each.census),
                "faults": each.judged.faults,
            }
            for each in rounds
        ],
    }


def _latency_ms(judged: Judgement) -> dict[str, float]:
    found = percentiles(np.asarray(judged.latencies_s) * 1000)
    return asdict(found) if found else {}


def _generator(sent: Sent) -> dict[str, float]:
    late_ms = percentiles(np.asarray(sent.late_s) * 1000)
    return {
        "cpu_share": sent.cpu_s / sent.wall_s,
        "late_p50_ms": late_ms.p50 if late_ms else 0.0,
        "late_p99_ms": late_ms.p99 if late_ms else 0.0,
    }
