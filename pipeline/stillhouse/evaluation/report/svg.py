"""Building blocks of plots: axes, marks, whiskers and texts as SVG elements, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SHAPES = ("square", "circle", "triangle", "diamond", "arrow", "bar", "cross", "hourglass", "post")
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-5, -5), (5, -5), (5, 5), (-5, 5)],
    "triangle": [(0, -7), (6.5, 5), (-6.5, 5)],
    "diamond": [(0, -7.5), (7.5, 0), (0, 7.5), (-7.5, 0)],
    "arrow": [(-6.5, -5), (6.5, -5), (0, 7)],
    "bar": [(-8, -3), (8, -3), (8, 3), (-8, 3)],
    "cross": [
        (-2, -7),
        (2, -7),
        (2, -2),
        (7, -2),
        (7, 2),
        (2, 2),
        (2, 7),
        (-2, 7),
        (-2, 2),
        (-7, 2),
        (-7, -2),
        (-2, -2),
    ],
    "hourglass": [(-6, -6), (6, -6), (-6, 6), (6, 6)],
    "post": [(-3, -8), (3, -8), (3, 8), (-3, 8)],
}
_LINE = 20  # minimum pixels between two labels
FAR = 2.5  # an outlier this many times as far as the next model is drawn at the edge, not to scale


@dataclass(frozen=True)
class Axis:
    """A linear axis from `base` at pixel `start` to `top` at pixel `end`; values outside are clamped to the ends."""

    top: float
    start: float
    end: float
    step: float
    base: float = 0

    @classmethod
    def over(cls, highest: float, start: float, end: float, lowest: float = 0) -> Axis:
        """Return an axis with round ticks, at most six steps; it starts at 0 if 0 <= `lowest` <= `highest` / 2."""
        lowest = lowest if lowest > highest / 2 or lowest < 0 else 0
        reach = highest - lowest
        power = 10.0 ** math.floor(math.log10(reach / 5)) if reach > 0 else 0.2
        step = next((part * power for part in (1, 2, 2.5, 5) if part * power * 5 >= reach), 10 * power)
        base = step * math.floor(lowest / step + 1e-9)
        return cls(base + step * max(1, math.ceil((highest - base) / step - 1e-9)), start, end, step, base)

    @property
    def ticks(self) -> list[float]:
        """The tick values from `base` to `top`."""
        return [self.base + self.step * number for number in range(round((self.top - self.base) / self.step) + 1)]

    def place(self, value: float) -> float:
        """Return the pixel of a value, clamped to the ends."""
        return self.start + (self.end - self.start) * min(max((value - self.base) / (self.top - self.base), 0.0), 1.0)


def role_class(place: int) -> str:
    """Return the style class of the model in row `place` of the table."""
    return f"m{place % len(SHAPES)}"


def grid_lines(up: Axis, left: float, right: float) -> list[str]:
    """Return horizontal grid lines, with their values on the left."""
    lines = [
        f'<line class="grid" x1="{left}" y1="{up.place(tick):.1f}" x2="{right}" y2="{up.place(tick):.1f}"/>'
        for tick in up.ticks
    ]
    return lines + [text_at(left - 8, up.place(tick) + 4, format_value(tick), "end") for tick in up.ticks]


def axis_range(scores: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the lowest and the highest value that the axis must reach, for scores of (low, mean, high).

    A single far outlier, such as an untrained model, is ignored and drawn at the edge; it would squeeze the other models.
    """
    ordered = sorted(scores, key=lambda score: score[1])
    for alone, rest, gap in (
        (ordered[0], ordered[1:], ordered[1][0] - ordered[0][2] if len(ordered) > 2 else 0),
        (ordered[-1], ordered[:-1], ordered[-1][0] - ordered[-2][2] if len(ordered) > 2 else 0),
    ):
        reach = max(score[2] for score in rest or [alone]) - min(score[0] for score in rest or [alone])
        if gap > FAR * reach:
            return min(score[0] for score in rest), max(score[2] for score in rest)
    return min(score[0] for score in ordered), max(score[2] for score in ordered)


def spread_labels(heights: Sequence[float], lowest: float) -> list[float]:
    """Return heights for labels: as near to their marks as possible, in the same order, one line apart, inside the plot.

    After subtracting one line height per label above, this is isotonic regression, solved by pooling adjacent violators.
    """
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    pools: list[tuple[float, int]] = []  # (mean height, number of labels)
    for number, place in enumerate(order):
        mean, count = heights[place] - _LINE * number, 1
        while pools and pools[-1][0] > mean:
            above, more = pools.pop()
            mean, count = (mean * count + above * more) / (count + more), count + more
        pools.append((mean, count))
    highest = 30.0
    last = max(highest, lowest - 4 - _LINE * (len(heights) - 1))
    moved = [min(max(mean, highest), last) for mean, count in pools for _ in range(count)]
    found = [0.0] * len(heights)
    for number, place in enumerate(order):
        found[place] = moved[number] + _LINE * number
    return found


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return one drawing that scales to the width of its container; `title` describes it for screen readers."""
    return f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'


def text_at(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    """Return a text at a point; `anchor` is start, middle or end."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def whisker(x1: float, y1: float, x2: float, y2: float, place: int) -> str:
    """Return an interval's line in the colour of the model in row `place` of the table."""
    return f'<line class="whisker {role_class(place)}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def mark(x: float, y: float, place: int) -> str:
    """Return the mark, with shape and colour, of the model in row `place` of the table."""
    style, shape = f"mark {role_class(place)}", SHAPES[place % len(SHAPES)]
    if shape == "circle":
        return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _CORNERS[shape])
    return f'<polygon class="{style}" points="{points}"/>'


def format_value(value: float) -> str:
    """Format a value with three significant digits, or two for large ones (1.2e+05)."""
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"
