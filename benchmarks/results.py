"""Where figures go: one JSON file for each benchmark, with the machine that they are of."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Output:
    """Where results go, and the machine as it was before the benchmark was a load on it."""

    path: Path
    machine: dict[str, object]

    def __str__(self) -> str:
        return str(self.path)


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """`--output`, an `Output`: a trial run should not overwrite the figures that the documentation quotes."""
    parser.add_argument(
        "--output",
        type=lambda text: Output(Path(text), describe_machine()),
        help=f"JSON file for the results (none is written without it; kept ones lie in {FOLDER.name}/)",
    )


def write_results(output: Output | None, name: str, method: Mapping[str, object], measured: object) -> None:
    """Write `{"benchmark", "machine", "method", "measured"}`; nothing for None. Paths in `method` become strings."""
    if output is None:
        return
    plain = {key: str(value) if isinstance(value, Path | Output) else value for key, value in method.items()}
    document = {"benchmark": name, "machine": output.machine, "method": plain, "measured": measured}
    write_document(output.path, document)
    print(f"written: {output}")


def write_document(path: Path, document: object) -> None:
    """Write a JSON file in one piece; what is no file of its own, such as /dev/stdout, is written to as it is."""
    text = json.dumps(document, indent=2) + "\n"
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def median_seconds(run: Callable[[], object], seconds: float, *, least: int = 3, warming: int = 1) -> float:
    """Of as many runs as take about `seconds`, `least` of them at least, after `warming` ones that do not count."""
    for _ in range(warming):
        run()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return median(taken)


def median(values: Sequence[float]) -> float:
    """The median; nan of nothing, so that a table shows a gap and the run goes on."""
    return statistics.median(values) if values else float("nan")


def spread(values: Sequence[float]) -> str:
    """`median (lowest to highest)`, as ratios are reported."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"
