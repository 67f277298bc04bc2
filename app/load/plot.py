"""Pictures of a table of numbers without a plotting library: SVG for files, letters for terminals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_COLOURS = ("#2563eb", "#d97706", "#dc2626", "#059669", "#7c3aed", "#475569", "#0891b2", "#be185d")
_MARKS = "ox+*#@%&"


@dataclass(frozen=True)
class Line:
    """One curve, `points` as (x, y) in order of x."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class _Axis:
    """Maps values to 0..1, linearly or by their logarithm."""

    low: float
    high: float
    logarithmic: bool

    def at(self, value: float) -> float:
        if self.logarithmic:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            wanted = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
            slack = 1e-9
            return [tick for tick in wanted if self.low * (1 - slack) <= tick <= self.high * (1 + slack)]
        step = _round_step((self.high - self.low) / 6)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]


def _round_step(raw: float) -> float:
    """The next of 1, 2, 5, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= raw * (1 - 1e-9))


def _axis(values: Sequence[float], *, logarithmic: bool) -> _Axis:
    low, high = min(values), max(values)
    if not logarithmic:
        high = high if high > 0 else 1.0
        step = _round_step(high / 6)
        return _Axis(min(0.0, low), step * math.ceil(high / step), False)
    steps = [step * 10.0**decade for decade in range(-6, 9) for step in (1, 2, 5)]
    below = max((step for step in steps if step <= low), default=low)
    above = min((step for step in steps if step >= high and step > below), default=high * 2)
    return _Axis(below, above, True)


def _drawable(lines: Sequence[Line], *, log_y: bool) -> list[Line]:
    kept = [Line(line.label, tuple(p for p in line.points if not log_y or p[1] > 0)) for line in lines]
    return [line for line in kept if line.points]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def svg(lines: Sequence[Line], *, title: str, x_label: str, y_label: str, log_y: bool = True) -> str:
    """A line chart with a legend. An empty chart says so."""
    width, height, left, right, top, bottom = 760, 440, 70, 150, 46, 56
    lines = _drawable(lines, log_y=log_y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    if not lines:
        return "\n".join([*parts, f'<text x="{left}" y="80">no data</text>', "</svg>"]) + "\n"
    x = _axis([p[0] for line in lines for p in line.points], logarithmic=False)
    y = _axis([p[1] for line in lines for p in line.points], logarithmic=log_y)

    def px(value: float) -> float:
        return left + x.at(value) * (width - left - right)

    def py(value: float) -> float:
        return height - bottom - y.at(value) * (height - top - bottom)

    for tick in y.ticks():
        parts.append(f'<path d="M{left} {py(tick):.1f}H{width - right}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{left - 8}" y="{py(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x.ticks():
        parts.append(f'<path d="M{px(tick):.1f} {top}V{height - bottom}" stroke="#f1f5f9"/>')
        parts.append(f'<text x="{px(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(f'<path d="M{left} {top}V{height - bottom}H{width - right}" stroke="#334155" fill="none"/>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - 14}" text-anchor="middle">{escape(x_label)}</text>')
    centre = (top + height - bottom) / 2
    parts.append(
        f'<text transform="translate(18 {centre:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for index, line in enumerate(lines):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.extend(f'<circle cx="{px(a):.1f}" cy="{py(b):.1f}" r="3" fill="{colour}"/>' for a, b in line.points)
        legend_y = top + 8 + 20 * index
        parts.append(f'<rect x="{width - right + 14}" y="{legend_y}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{width - right + 34}" y="{legend_y + 6}">{escape(line.label)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def terminal(lines: Sequence[Line], *, x_label: str, y_label: str, width: int = 64, height: int = 14) -> str:
    """The same in letters, with a logarithmic y axis; where curves meet, the later one shows."""
    lines = _drawable(lines, log_y=True)
    if not lines:
        return "(no data to draw)"
    x = _axis([p[0] for line in lines for p in line.points], logarithmic=False)
    y = _axis([p[1] for line in lines for p in line.points], logarithmic=True)
    cells = [[" "] * width for _ in range(height)]
    for index, line in enumerate(lines):
        for a, b in line.points:
            row = height - 1 - round(y.at(b) * (height - 1))
            cells[row][round(x.at(a) * (width - 1))] = _MARKS[index % len(_MARKS)]
    labels = {height - 1 - round(y.at(tick) * (height - 1)): _number(tick) for tick in y.ticks()}
    margin = max(len(label) for label in labels.values())
    legend = "   ".join(f"{_MARKS[i % len(_MARKS)]} {line.label}" for i, line in enumerate(lines))
    body = [f"{labels.get(row, ''):>{margin}} │{''.join(cells[row])}" for row in range(height)]
    foot = f"{_number(x.low)}{_number(x.high):>{width - len(_number(x.low))}}"
    return "\n".join(
        [
            f"{y_label}   {legend}",
            *body,
            " " * margin + " └" + "─" * width,
            " " * (margin + 2) + foot,
            f"{x_label:^{width}}",
        ]
    )
