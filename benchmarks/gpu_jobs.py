"""The jobs of `benchmarks.gpu`: what one is, and how it is run in a process of its own, and stopped in time.

A process of its own begins with an empty card and leaves one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.contenders import ROOT

Outcome = Mapping[str, Any]
"""{"job", "took_s"}, a job's "result" or an "error" of one line, and the end of its "stderr" where it said anything."""

_STOPPED = "stopped after"
_GRACE_S = 20.0  # a server has ten to end in
_LINE = 200
_TAIL = 2000


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        what: "matrix", "build", "rates", "agreement" or "http".
        contender: an engine, or "torch" or "reference", alone or with "-compiled"; and a precision. Of "build":
            "package", or an engine that needs more than the package.
        variant: its name in `hiera-export list`; "" for what is of none.
        device: "cuda:0", or "cpu" for a dry run.
        repository: where packages with random weights are kept, and plans in them.
        batches: sizes to time; the last is the largest. Of "matrix" the sides of the matrices.
        seconds: of each size.
        apart: what else tells it from others of its kind, in words.
        rows: of "agreement": how many, or a folder of photos.
        weights: trained weights to build the package from, "" for random ones.
        photo, connections, http_workers, instances: of "http".
    """

    what: str
    contender: str
    variant: str
    device: str
    repository: str
    batches: tuple[int, ...]
    seconds: float
    apart: str = ""
    rows: str = ""
    weights: str = ""
    photo: str = ""
    connections: int = 0
    http_workers: int = 0
    instances: int = 0

    @property
    def precision(self) -> str:
        return self.contender.split()[1]

    @property
    def key(self) -> str:
        """Its name among the results."""
        return " ".join(part for part in (self.what, self.variant, self.contender, self.apart) if part)

    def document(self) -> dict[str, Any]:
        """All of it, as JSON gives it back."""
        return asdict(self) | {"batches": list(self.batches)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Job:
        """The job of such a document."""
        return cls(**{**document, "batches": tuple(document["batches"])})


def run_job(job: Job, seconds: float) -> dict[str, Any]:
    """What became of a job that was given so many seconds; an `Outcome`. One that fails leaves the others to run."""
    command = [sys.executable, "-m", "benchmarks.gpu_contenders", json.dumps(job.document())]
    began = time.perf_counter()
    status, output, said = run_process(command, seconds)
    outcome: dict[str, Any] = {"job": job.document(), "took_s": round(time.perf_counter() - began, 1)}
    if said.strip():
        # Of what went well, too: that a batch size could not be recorded is only a warning, and costs a good deal.
        outcome["stderr"] = said[-_TAIL:]
    error = f"ended with {status}"
    if status == 0:
        try:
            return outcome | {"result": json.loads(output.splitlines()[-1])}
        except (IndexError, ValueError):
            error = "gave no result"
    elif lines := [line for line in said.splitlines() if line.strip()]:
        error = lines[-1].strip()
    if status is None:
        error = f"{_STOPPED} {seconds:g} s"
    return outcome | {"error": in_one_line(error)}


def was_stopped(outcome: Outcome) -> bool:
    """Whether a job took longer than it was given."""
    return str(outcome.get("error", "")).startswith(_STOPPED)


def in_one_line(text: str) -> str:
    """A line that a table can hold."""
    return " ".join(text.split())[:_LINE]


def run_process(command: Sequence[str], seconds: float) -> tuple[int | None, str, str]:
    """The exit status of a command, None where it took longer and was stopped; its stdout and its stderr."""
    # Files and no pipes: whatever it leaves behind could hold a pipe open for good.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=said, cwd=ROOT, process_group=0
        )
        status: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(seconds)
        finally:
            _end(process)
        output.seek(0)
        said.seek(0)
        return status, output.read().decode(errors="replace"), said.read().decode(errors="replace")


def end_with_parent() -> None:
    """Have Linux send a SIGTERM when the process that started this one dies: a run that is killed frees the card."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group. It is asked first: the server that it may have started is of another group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):  # mostly nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
