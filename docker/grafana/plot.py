"""Draws the dashboard's panels from a Prometheus where there is no Grafana to look at: the same queries, one picture.

python docker/grafana/plot.py http://127.0.0.1:9090 dashboard.png --minutes 5       (needs matplotlib)
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from panels import ROWS, Panel, Query

Series = list[dict[str, Any]]
Ask = Callable[[str], Series]

VARIABLES = {"$instance": ".*", "$model": ".*", "$__rate_interval": "20s"}
SHOWN = [
    panel for row in ROWS for panel in row.panels if panel.kind in ("timeseries", "bargauge") and not row.collapsed
]
COLUMNS = 3
# What Grafana's units are called here, and what a value is divided by.
_UNITS = {"s": ("seconds", 1), "reqps": ("requests/s", 1), "rps": ("rows/s", 1), "bytes": ("MB", 1e6), "none": ("", 1)}


def prometheus(url: str, minutes: float) -> Ask:
    """Asks for the last `minutes` of an expression."""
    end = time.time()

    def ask(expression: str) -> Series:
        span = {"start": end - 60 * minutes, "end": end, "step": max(1.0, minutes * 60 / 250)}
        query = urllib.parse.urlencode({"query": expression, **span})
        address = f"{url.rstrip('/')}/api/v1/query_range?{query}"
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - whoever runs it names the address
            series: Series = json.load(answer)["data"]["result"]
        return series

    return ask


def filled_in(query: Query) -> str:
    """The expression with what Grafana would fill in."""
    expression = query.expression
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def legend_of(query: Query, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), query.legend)


def draw(axes: Axes, panel: Panel, ask: Ask) -> None:
    drawn = [
        (legend_of(query, each["metric"]), each["values"]) for query in panel.queries for each in ask(filled_in(query))
    ]
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    unit, divisor = _UNITS[panel.unit]
    if panel.kind == "bargauge":
        names, latest = [name for name, _ in drawn], [float(values[-1][1]) for _, values in drawn]
        axes.barh(names, latest)
        axes.set_xlabel(unit, fontsize=7)
        return
    begin = min((values[0][0] for _, values in drawn), default=0.0)
    for name, values in drawn:
        numbers = [float(value) / divisor for _, value in values]
        if any(number > 0 for number in numbers):  # what never happened would fill the legend
            axes.plot([at - begin for at, _ in values], numbers, label=name, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit, fontsize=7)
    if axes.lines:
        axes.legend(fontsize=6, frameon=False)
    else:
        axes.set_ylim(top=1)
        axes.text(0.5, 0.5, "0 all the time" if drawn else "no data", transform=axes.transAxes, ha="center", fontsize=8)


def plot(ask: Ask, target: str) -> None:
    lines = -(-len(SHOWN) // COLUMNS)
    figure, grid = pyplot.subplots(lines, COLUMNS, figsize=(5 * COLUMNS, 2.6 * lines), layout="constrained")
    for axes, panel in zip(grid.flat, SHOWN, strict=False):
        draw(axes, panel, ask)
    for axes in grid.flat[len(SHOWN) :]:
        axes.remove()
    figure.supxlabel("seconds", fontsize=8)
    figure.savefig(target, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prometheus")
    parser.add_argument("picture")
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    plot(prometheus(arguments.prometheus, arguments.minutes), arguments.picture)
