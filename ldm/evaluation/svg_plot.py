"""Small line plots as SVG text, for pages and papers: points with their intervals, one line for each series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from ldm.evaluation.curves import COLORS
from ldm.evaluation.intervals import Estimate

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 12, 14, 46
NUM_TICKS = 6
APART = 4.0
"""Pixels between the points of two series at the same x."""


@dataclass(frozen=True)
class Axis:
    """A linear axis: numbers from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, number: float) -> float:
        return self.start + (number - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round numbers on the axis."""
        rough = (self.high - self.low) / NUM_TICKS
        power = 10 ** floor(log10(rough))
        step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
        first = -floor(-self.low / step)
        return [step * number for number in range(first, floor(self.high / step + 1e-9) + 1)]


def axis(numbers: Sequence[float], start: float, end: float) -> Axis:
    """An axis that holds all numbers, with a margin."""
    low, high = min(numbers), max(numbers)
    margin = 0.06 * (high - low) or abs(low) / 2 or 1.0
    return Axis(low - margin, high + margin, start, end)


def line_plot(series: Mapping[str, Mapping[float, Estimate]], x_name: str, y_name: str) -> str:
    """A plot as an SVG element, which is also a file of its own.

    Args:
        series: by name, for each x the estimate.
    """
    points = [(x, each) for line in series.values() for x, each in line.items()]
    across = axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = axis([y for _, each in points for y in (each.low, each.value, each.high)], HEIGHT - BOTTOM, TOP)
    legend = 18 * len(series) if len(series) > 1 else 0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + legend}" width="{WIDTH}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">'
    ]
    parts += [_x_tick(across(x), f"{x:g}") for x in across.ticks]
    parts += [_y_tick(up(y), f"{y:.6g}") for y in up.ticks]
    parts += [
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>",
    ]
    for number, (name, line) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        aside = APART * (number - (len(series) - 1) / 2)  # or the bars at one x would hide each other
        shifted = Axis(across.low, across.high, across.start + aside, across.end + aside)
        parts.append(_line(line, shifted, up, color))
        if legend:
            y = HEIGHT + 18 * number + 6
            parts.append(f'<circle cx="{LEFT + 4}" cy="{y - 4}" r="4" fill="{color}"/>')
            parts.append(f'<text x="{LEFT + 16}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _line(line: Mapping[float, Estimate], across: Axis, up: Axis, color: str) -> str:
    at = sorted(line.items())
    path = " ".join(f"{across(x):.1f},{up(each.value):.1f}" for x, each in at)
    marks = [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>']
    for x, each in at:
        left, low, high = across(x), up(each.low), up(each.high)
        marks.append(f'<path d="M{left:.1f} {low:.1f}V{high:.1f}" stroke="{color}" opacity="0.6"/>')
        marks.append(f'<circle cx="{left:.1f}" cy="{up(each.value):.1f}" r="3" fill="{color}"/>')
    return "".join(marks)


def _x_tick(at: float, text: str) -> str:
    line = f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="currentColor" opacity="0.15"/>'
    return f'{line}<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>'


def _y_tick(at: float, text: str) -> str:
    line = f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="currentColor" opacity="0.15"/>'
    return f'{line}<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'
