"""Draws the dashboard from a Prometheus where there is no Grafana to look at: the same panels, queries and places.

python docker/grafana/plot.py http://127.0.0.1:9090 dashboard.png --minutes 5       (needs matplotlib)
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from dashboard import COLUMNS, dashboard
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Series = list[dict[str, Any]]

VARIABLES = {"$instance": ".*", "$model": ".*", "$__rate_interval": "20s"}
UNIT_IN = 0.31  # inches of one of Grafana's units of height
WIDTH_IN = 16.0
GREY = "#555555"
# What Grafana's units are called here, and what a value is multiplied by.
_UNITS = {
    "s": ("ms", 1e3),
    "reqps": ("requests/s", 1.0),
    "rps": ("rows/s", 1.0),
    "bytes": ("MB", 1e-6),
    "percentunit": ("%", 100.0),
    "watt": ("W", 1.0),
    "celsius": ("°C", 1.0),
    "none": ("", 1.0),
}


@dataclass(frozen=True)
class Prometheus:
    """The last `minutes` of what a Prometheus has seen, up to `end` (Unix seconds)."""

    url: str
    minutes: float
    end: float

    def ask(self, target: dict[str, Any]) -> Series:
        """The series of one of a panel's queries, over the time or at its end as the panel wants."""
        expression = target["expr"]
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        if target["instant"]:
            return self._get("query", {"query": expression, "time": self.end})
        times = self.times()
        span = {"start": times[0], "end": times[-1], "step": times[1] - times[0]}
        return self._get("query_range", {"query": expression, **span})

    def times(self) -> list[int]:
        """The Unix seconds that are drawn, evenly spread."""
        step = max(1, round(self.minutes * 60 / 250))
        return list(range(int(self.end - 60 * self.minutes), int(self.end), step))

    def _get(self, what: str, query: dict[str, Any]) -> Series:
        address = f"{self.url.rstrip('/')}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - whoever runs it names the address
            series: Series = json.load(answer)["data"]["result"]
        return series


def legend_of(target: dict[str, Any], labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), target["legendFormat"])


def draw(axes: Axes, panel: dict[str, Any], source: Prometheus) -> None:
    named = [(legend_of(target, each["metric"]), each) for target in panel["targets"] for each in source.ask(target)]
    axes.set_title(panel["title"], fontsize=11, loc="left", fontweight="bold")
    if panel["type"] == "stat":
        _say(axes, panel, named)
    elif panel["type"] == "bargauge":
        _bars(axes, panel, named)
    else:
        _lines(axes, panel, named, source)


def _say(axes: Axes, panel: dict[str, Any], named: list[tuple[str, dict[str, Any]]]) -> None:
    """A stat panel: values, or names, in large letters."""
    axes.set_axis_off()
    unit, factor = _UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    mappings = panel["fieldConfig"]["defaults"].get("mappings", [{"options": {}}])[0]["options"]
    mode = panel["options"]["textMode"]
    words, colour = [], "#2a7d2e"
    for name, each in named:
        value = each["value"][1]
        mapped = mappings.get(value)
        text = mapped["text"] if mapped else f"{float(value) * factor:.3g} {unit}".strip()
        colour = mapped["color"] if mapped else colour
        words.append({"name": name, "value": text, "value_and_name": f"{name}: {text}"}[mode])
    large = 22 if mode == "value" else 8.5
    axes.text(0.5, 0.45, "\n".join(words) or "no data", transform=axes.transAxes, ha="center", va="center",
              fontsize=large, color=GREY if mode == "name" else colour, linespacing=1.8, wrap=True)  # fmt: skip


def _bars(axes: Axes, panel: dict[str, Any], named: list[tuple[str, dict[str, Any]]]) -> None:
    unit, factor = _UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    values = [float(each["value"][1]) * factor for _, each in named]
    bars = axes.barh([name for name, _ in named], values, color="#3274d9")
    axes.bar_label(bars, fmt=f"%.3g {unit}", fontsize=9, padding=3)
    axes.set_xlim(right=max(values, default=1) * 1.1)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.tick_params(labelsize=9, length=0)
    axes.spines[:].set_visible(False)


def _lines(axes: Axes, panel: dict[str, Any], named: list[tuple[str, dict[str, Any]]], source: Prometheus) -> None:
    unit, factor = _UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    begin = source.end - 60 * source.minutes
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    below: dict[float, float] = {}
    for name, each in named:
        points = {at: float(value) * factor for at, value in each["values"] if value != "NaN"}
        if not any(value > 0 for value in points.values()):  # what never happened would fill the legend
            continue
        times = source.times()
        minutes = [(at - begin) / 60 for at in times]
        floor = [below.get(at, 0.0) if stacked else 0.0 for at in times]
        top = [under + points[at] if at in points else math.nan for under, at in zip(floor, times, strict=True)]
        (line,) = axes.plot(minutes, top, label=name, linewidth=1.3)
        axes.fill_between(minutes, floor, top, color=line.get_color(), alpha=0.3 if stacked else 0.05, linewidth=0)
        below.update((at, high) for at, high in zip(times, top, strict=True) if at in points)
    axes.set_xlim(0, source.minutes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit, fontsize=9)
    axes.xaxis.set_major_formatter(lambda at, _: f"{int(at)}:{round(at % 1 * 60):02d}")
    axes.tick_params(labelsize=8.5)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16), borderpad=0,
                    columnspacing=1.0, handlelength=1.2)  # fmt: skip
    else:
        axes.set_ylim(top=1)
        axes.text(
            0.5, 0.5, "0 all the time" if named else "no data", transform=axes.transAxes, ha="center", fontsize=10
        )


def plot(source: Prometheus, target: str) -> None:
    panels = dashboard()["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = pyplot.figure(figsize=(WIDTH_IN, height * UNIT_IN), facecolor="white")
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / COLUMNS, 1 - place["y"] / height
        if panel["type"] == "row":
            folded = " (folded)" if panel["collapsed"] else ""
            figure.text(0.006, top - 0.7 / height, f"{panel['title']}{folded}", fontsize=13, color=GREY)
        else:
            draw(_axes(figure, panel, left, top, height), panel, source)
    figure.savefig(target, dpi=90)


def _axes(figure: Figure, panel: dict[str, Any], left: float, top: float, height: int) -> Axes:
    """The panel's place, less the room for its title, its numbers and its legend."""
    place = panel["gridPos"]
    width = place["w"] / COLUMNS
    names = 0.17 if panel["type"] == "bargauge" else 0.04
    room = 2.4 if panel["type"] == "timeseries" else 0.4
    bottom = top - (place["h"] - room) / height
    return figure.add_axes((left + names, bottom, width - names - 0.008, (place["h"] - room - 1.1) / height))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prometheus")
    parser.add_argument("picture")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--end", type=float, help="Unix seconds (now)")
    arguments = parser.parse_args()
    plot(Prometheus(arguments.prometheus, arguments.minutes, arguments.end or time.time()), arguments.picture)
