"""Charts as SVG that takes its colours from the page, so one drawing serves light, dark and paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from p2o.reporting.runs import Point

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 10, 42
TICKS = 5
DOTTED = 16
"""Longer curves go without a dot a point."""


@dataclass(frozen=True)
class Line:
    """A curve with its band; ``style`` is the number of the page's series colour."""

    label: str
    points: Sequence[Point]
    style: int
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar of stacked parts: (label of the part, amount)."""

    label: str
    parts: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at most ``low`` to at least ``high``."""
    span = high - low if high > low else 1.0
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A short number: 0.25, 12, 3,127, 34k, 1.2M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1e3 else f"{value:.3g}"


def line_chart(
    title: str, x_label: str, lines: Sequence[Line], *, whole_x: bool = False, most: float = math.inf
) -> Markup:
    """Curves with their 95 % bands; the vertical axis starts at 0 and ends at ``most`` at the latest.

    Empty where no curve has a point.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    points = [point for line in lines for point in line.points]
    y_ticks = ticks(0, min(most, max(point.y.mean + (point.y.half_width or 0) for point in points)))
    x_ticks = ticks(min(point.x for point in points), max(point.x for point in points))
    if whole_x:
        x_ticks = [tick for tick in x_ticks if float(tick).is_integer()]
    xs = [point.x for point in points]
    x = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    body = _axes(x, y, [tick for tick in x_ticks if x.low <= tick <= x.high], y_ticks, x_label)
    for line in lines:
        body += _band(line, x, y)
    for line in lines:
        body += _curve(line, x, y)
    return _svg(title, WIDTH, HEIGHT, body)


def _axes(x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> Markup:
    body = Markup("")
    for tick in y_ticks:
        body += Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            LEFT, WIDTH - RIGHT, y(tick), y(tick)
        )
        body += Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(LEFT - 6, y(tick) + 4, number(tick))
    for tick in x_ticks:
        body += Markup('<text class="tick middle" x="{}" y="{}">{}</text>').format(x(tick), y.start + 16, number(tick))
    return body + Markup('<text class="tick middle" x="{}" y="{}">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label
    )


def _band(line: Line, x: Scale, y: Scale) -> Markup:
    if len(line.points) < 2 or any(point.y.half_width is None for point in line.points):
        return Markup("")

    def edge(sign: int) -> list[str]:
        values = ((point, point.y.mean + sign * (point.y.half_width or 0)) for point in line.points)
        return [f"{x(point.x)},{y(min(max(value, y.low), y.high))}" for point, value in values]

    return Markup('<polygon class="band s{}" points="{}"/>').format(line.style, " ".join(edge(1) + edge(-1)[::-1]))


def _curve(line: Line, x: Scale, y: Scale) -> Markup:
    path = " ".join(f"{x(point.x)},{y(point.y.mean)}" for point in line.points)
    dash = " dashed" if line.dashed else ""
    body = Markup('<polyline class="line s{}{}" points="{}"/>').format(line.style, dash, path)
    if len(line.points) <= DOTTED:
        for point in line.points:
            interval = "" if point.y.half_width is None else f" ± {point.y.half_width:.3g}"
            body += Markup('<circle class="dot s{}" cx="{}" cy="{}" r="3"><title>{}</title></circle>').format(
                line.style,
                x(point.x),
                y(point.y.mean),
                f"{line.label}: {point.y.mean:.4g}{interval} at {number(point.x)}",
            )
    return body


def bar_chart(title: str, bars: Sequence[Bar], styles: Callable[[str], int]) -> Markup:
    """Horizontal stacked bars, a row a bar; ``styles`` gives the colour number of a part's label."""
    largest = max((sum(amount for _, amount in bar.parts) for bar in bars), default=0.0)
    if largest <= 0:
        return Markup("")
    width, row, top = 860, 46, 4
    x = Scale(0, largest, 0, width - 70)
    body = Markup("")
    for i, bar in enumerate(bars):
        y, at = top + i * row, 0.0
        body += Markup('<text class="tick" x="0" y="{}">{}</text>').format(y + 12, bar.label)
        for label, amount in bar.parts:
            body += Markup(
                '<rect class="fill s{}" x="{}" y="{}" width="{}" height="18"><title>{}</title></rect>'
            ).format(styles(label), x(at), y + 18, x(amount), f"{bar.label}, {label}: {amount:,.0f}")
            at += amount
        body += Markup('<text class="tick" x="{}" y="{}">{}</text>').format(x(at) + 6, y + 32, number(at))
    return _svg(title, width, top + row * len(bars), body)


def score_bar(score: float, reference: float) -> Markup:
    """A score in [0, 1] as a short bar, with a mark at the score that it has to beat."""
    width, height = 84, 10
    body = Markup(
        '<rect class="miss" x="0" y="0" width="{}" height="{}"/><rect class="hit" x="0" y="0" width="{}" height="{}"/>'
        '<line class="mark" x1="{}" x2="{}" y1="0" y2="{}"/>'
    ).format(width, height, score * width, height, reference * width, reference * width, height)
    return _svg(f"dev score {score:.2f}, empty template {reference:.2f}", width, height, body, fixed=True)


def strip(solved: Sequence[bool]) -> Markup:
    """A row of cells, one a dev question, filled where it was solved. Two strokes, since a page has many strips."""
    size = max(2.0, min(9.0, round(360 / max(len(solved), 1), 1)))
    cell, width = round(size * 0.85, 2), round(size * len(solved), 1)
    hits = "".join(f"M{round(i * size, 1):g} 5h{cell:g}" for i, hit in enumerate(solved) if hit)
    body = Markup(
        '<path class="cells" d="M0 5H{}" stroke-dasharray="{:g} {:g}"/><path class="cells solved" d="{}"/>'
    ).format(width, cell, round(size - cell, 2), hits)
    return _svg(f"{sum(solved)} of {len(solved)} dev questions solved", width, 10, body, fixed=True)


def _svg(title: str, width: float, height: float, body: Markup, *, fixed: bool = False) -> Markup:
    size = Markup(' width="{}" height="{}"').format(width, height) if fixed else ""
    return Markup('<svg viewBox="0 0 {} {}"{} role="img" aria-label="{}">{}</svg>').format(
        width, height, size, title, body
    )
