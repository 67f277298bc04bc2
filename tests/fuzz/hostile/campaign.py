"""Runs cases against a server and judges every answer. A run is a function of a seed and a number of cases."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from answers import Answer, NotHttp, complaints, read_answers
from cases import Case, make_case
from running_server import RunningServer
from sending import BOUND_S, Exchange, send

_CONNECTIONS = 16
# Lines of the log above "info" that a hostile file, or a machine that has no time for new workers, may cause.
_EXPECTED_LINES = (r"a worker for (image|video)s (ended: |was not ready after )",)


@dataclass
class Tally:
    """What a run saw; everything that should not be is in `failures`, each with the command that repeats it."""

    cases: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    hangs: int = 0
    slowest: list[tuple[float, int, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def judge(self, case: Case, exchange: Exchange) -> None:
        """Count `case`, and note what is wrong with what came back."""
        self.cases += 1
        self.kinds[case.kind.partition(",")[0].partition(" (")[0]] += 1
        self.slowest = sorted([*self.slowest, (round(exchange.seconds, 2), case.number, case.kind)], reverse=True)[:10]
        wrong: list[str] = []
        answers = []
        try:
            answers = read_answers(exchange.received, case.data)
        except NotHttp as error:
            wrong.append(f"not a whole answer: {error}")
        if exchange.hung:
            self.hangs += 1
            wrong.append(f"neither answered nor hung up within {BOUND_S:g} s")
        if case.owed and not answers and not wrong:
            wrong.append("no answer")
        for answer in answers:
            self.statuses[str(answer.status)] += 1
            wrong += complaints(answer)
        if not answers:
            self.statuses["none: " + case.manner.value] += 1
        if wrong:
            self.failures.append(f"{case.kind}, {case.manner.value}: {'; '.join(wrong)}\n    {repeat(case)}")

    def count(self, kind: str, answer: Answer) -> None:
        """Count a case that something else has sent and judges."""
        self.cases += 1
        self.kinds[kind] += 1
        self.statuses[str(answer.status)] += 1

    def add(self, other: Tally) -> None:
        """Count what `other` has counted."""
        self.cases += other.cases
        self.kinds += other.kinds
        self.statuses += other.statuses
        self.hangs += other.hangs
        self.failures += other.failures

    def report(self) -> dict[str, Any]:
        """For a file: what was run and what it found."""
        return {
            "cases": self.cases,
            "seconds": round(self.seconds, 1),
            "kinds": dict(sorted(self.kinds.items())),
            "answers": dict(sorted(self.statuses.items())),
            "status_500": self.statuses["500"],
            "hangs": self.hangs,
            "slowest": [{"seconds": seconds, "case": number, "kind": kind} for seconds, number, kind in self.slowest],
            "failures": self.failures,
        }


def repeat(case: Case) -> str:
    """The command that sends this one case again."""
    return f"make fuzz SEED={case.seed} CASE={case.number}"


def run(server: RunningServer, seed: int, numbers: Iterable[int], tally: Tally) -> None:
    """Send the cases `numbers` of `seed`, a few at a time."""
    began = time.monotonic()
    asyncio.run(_run(server, seed, iter(numbers), tally))
    tally.seconds += time.monotonic() - began


async def _run(server: RunningServer, seed: int, numbers: Iterable[int], tally: Tally) -> None:
    async def one_after_the_other() -> None:
        for number in numbers:
            case = make_case(seed, number)
            tally.judge(case, await send(server.port, case))

    async with asyncio.TaskGroup() as connections:
        for _ in range(_CONNECTIONS):
            connections.create_task(one_after_the_other())


def surprises(log: str) -> list[str]:
    """Warnings and errors of a server's log that no file should be able to cause."""
    found = []
    for text in log.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            found.append(text)
            continue
        expected = any(re.match(pattern, line["message"]) for pattern in _EXPECTED_LINES)
        if line["level"] not in ("debug", "info") and not expected:
            found.append(f"{line['message']} {line.get('exception', '')}")
    return found
