"""Draws the pictures of docs/performance.md from benchmarks/results.

python -m benchmarks.plots                   (needs matplotlib)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.contenders import OURS, ROOT
from benchmarks.results import FOLDER, median

IMAGES = ROOT / "docs" / "images"
BLUE, GREY = "#2563eb", "#94a3b8"
COLOURS = {OURS: BLUE, "naive": "#d97706", "litserve": "#059669", "bentoml": "#7c3aed", "ray": "#dc2626"}
COLOURS |= {"triton": "#475569"}


def _measured(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["measured"]


def _bars(axes: Axes, figures: dict[str, float], title: str, reference: float | None = None) -> None:
    names = sorted(figures, key=figures.__getitem__)
    bars = axes.barh(names, [figures[name] for name in names], color=[BLUE if n == OURS else GREY for n in names])
    axes.bar_label(bars, fmt="%.0f" if max(figures.values()) > 100 else "%.1f", padding=3)
    if reference is not None:
        axes.axvline(reference, color="black", linestyle=":", linewidth=1)
        place = axes.get_xaxis_transform()
        axes.text(reference, 0.03, " bare engine", transform=place, rotation=90, ha="left", va="bottom", fontsize=8)
    axes.margins(x=0.14)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("requests/s")


def _throughput(measured: Any, connections: str = "16") -> dict[str, float]:
    servers = measured["servers"]
    return {
        name: median([run["throughput_per_s"] for run in server["runs"][connections] if run])
        for name, server in servers.items()
    }


def draw_servers() -> None:
    """Throughput of all servers, without and with a model."""
    _, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    _bars(left, _throughput(_measured("servers-noop")), "no model is run, dog.jpg, 16 connections")
    tiny = _measured("servers-tiny")
    bare = median(tiny["bare_rows_per_s"])
    _bars(right, _throughput(tiny), "hiera_tiny_224, bf16 on OpenVINO, 16 connections", bare)
    _save("servers")


def draw_rates() -> None:
    """Latency over offered load."""
    _, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
    for axes, which in ((left, "p50"), (right, "p99")):
        for name, runs in _measured("rates").items():
            points = [(run["offered_per_s"], run["latency_ms"][which]) for run in runs if run["latency_ms"]]
            axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], markersize=3, label=name)
        axes.set_yscale("log")
        axes.set_title(f"{which} in an open loop (Poisson), no model", fontsize=10, loc="left")
        axes.set_xlabel("requests offered per second")
        axes.grid(visible=True, alpha=0.3)
    left.set_ylabel("ms")
    left.legend(fontsize=8)
    _save("rates")


def draw_engines() -> None:
    """Rows per second of each engine by batch size, one picture a variant."""
    measured = _measured("engines")
    _, row = pyplot.subplots(1, len(measured), figsize=(5.5 * len(measured), 3.6), layout="constrained", squeeze=False)
    for axes, (variant, engines) in zip(row[0], measured.items(), strict=True):
        for engine, rates in engines.items():
            axes.plot([int(rows) for rows in rates], [median(each) for each in rates.values()], "o-", label=engine)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_title(variant, fontsize=10, loc="left")
        axes.set_xlabel("rows in a batch")
        axes.set_ylabel("rows/s")
        axes.grid(visible=True, alpha=0.3)
        axes.xaxis.set_major_formatter("{x:g}")
    row[0][0].legend(fontsize=8, loc=(0.03, 0.56))
    _save("engines")


def _save(name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    file: Path = IMAGES / f"{name}.svg"
    pyplot.rcParams["svg.hashsalt"] = "hiera"
    pyplot.savefig(file, metadata={"Date": None})
    pyplot.close()
    print(f"drawn: {file.relative_to(ROOT)}")


def main() -> None:
    """Draw whatever there are results for."""
    pictures: dict[str, Callable[[], None]] = {
        "servers-tiny": draw_servers,
        "rates": draw_rates,
        "engines": draw_engines,
    }
    for result, draw in pictures.items():
        if (FOLDER / f"{result}.json").exists():
            draw()


if __name__ == "__main__":
    main()
