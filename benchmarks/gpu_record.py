"""The outcomes of the jobs of `benchmarks.gpu`, in a file that is whole after each: a later call goes on from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_jobs import Job, Outcome
from benchmarks.machine import describe_machine
from benchmarks.results import write_document


class Record:
    """Outcomes by the key of their job, those of an earlier call included.

    Args:
        path: the file; None keeps nothing.
        method: what makes figures comparable: all outcomes of one file are of the same.

    Attributes:
        done: the outcomes.

    Raises:
        SystemExit: the file is there and of something else.
    """

    def __init__(self, path: Path | None, method: Mapping[str, object]) -> None:
        self._path = path
        self._head = {"benchmark": "gpu", "machine": describe_machine(), "method": dict(method)}
        self.done: dict[str, Outcome] = {}
        if path is not None and path.exists():
            self.done.update(_outcomes(path, json.loads(json.dumps(self._head["method"]))))

    def has(self, job: Job, *, again: bool) -> bool:
        """Whether there is an outcome of this very job; with `again`, one that failed does not count."""
        outcome = self.done.get(job.key)
        return outcome is not None and outcome["job"] == job.document() and not (again and "error" in outcome)

    def keep(self, job: Job, outcome: Outcome) -> None:
        """Add an outcome, and write all."""
        self.done[job.key] = outcome
        self.write([])

    def write(self, summary: list[tuple[str, str, str]]) -> None:
        """Write the file anew, in one piece."""
        if self._path is None:
            return
        document = {**self._head, "measured": {"summary": summary, "jobs": self.done}}
        write_document(self._path, document)


def _outcomes(path: Path, method: Mapping[str, object]) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        theirs, outcomes = dict(document["method"]), dict(document["measured"]["jobs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is not of this benchmark ({error!r}): choose another --output") from error
    if other := [
        f"{name} was {theirs.get(name)} and is {now}" for name, now in method.items() if theirs.get(name) != now
    ]:
        raise SystemExit(f"{path} does not go with this run ({'; '.join(other)}): choose another --output")
    return outcomes
