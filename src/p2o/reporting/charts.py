"""What the page's charts show and where; ``page/drawings.html`` draws it in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2o.reporting.runs import Point

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 10, 42
TICKS = 5


@dataclass(frozen=True)
class Line:
    """A curve with its band; ``style`` is the number of the page's series colour."""

    label: str
    points: Sequence[Point]
    style: int
    dashed: bool = False

    @property
    def banded(self) -> bool:
        return len(self.points) > 1 and all(point.y.half_width is not None for point in self.points)


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels; what lies beyond an end is drawn at it."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class Chart:
    """Curves under a heading, with their axes."""

    title: str
    x_label: str
    lines: Sequence[Line]
    x: Scale
    y: Scale


def line_chart(
    title: str, x_label: str, lines: Sequence[Line], *, whole_x: bool = False, most: float = math.inf
) -> Chart | None:
    """Curves with their 95 % bands; the vertical axis starts at 0 and ends at ``most`` at the latest.

    None if no curve has a point.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs = [point.x for line in lines for point in line.points]
    tops = [point.y.mean + (point.y.half_width or 0) for line in lines for point in line.points]
    first, last = min(xs), max(xs)
    x_ticks = [tick for tick in ticks(first, last) if first <= tick <= max(last, first + 1)]
    if whole_x:
        x_ticks = [tick for tick in x_ticks if float(tick).is_integer()]
    y_ticks = ticks(0, min(most, max(tops)))
    x = Scale(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT, x_ticks)
    return Chart(title, x_label, lines, x, Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, y_ticks))


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
