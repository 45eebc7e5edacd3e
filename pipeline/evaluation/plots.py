"""Plots as SVG text: no library, no script, colours from the page's style sheet (classes `m0`, `m1`, ...).

Each returns one `<svg>` that scales to the width of its place; marks differ in shape as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.evaluation.results import Curve, Interval, MetricColumn, ModelRow

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
_LINE = 20  # pixels between two labels
_FAR = 2.5  # a model this many times as far as the next one is named at the edge, not drawn to scale


@dataclass(frozen=True)
class _Axis:
    """From `base` at pixel `start` to `top` at pixel `end`; what is more stands at the end."""

    top: float
    start: float
    end: float
    step: float
    base: float = 0

    @classmethod
    def over(cls, highest: float, start: float, end: float, lowest: float = 0) -> _Axis:
        """An axis whose ticks are round numbers, five or six steps of them; from 0 if `lowest` is not far from it."""
        lowest = lowest if lowest > highest / 2 or lowest < 0 else 0
        reach = highest - lowest
        power = 10.0 ** math.floor(math.log10(reach / 5)) if reach > 0 else 0.2
        step = next((part * power for part in (1, 2, 2.5, 5) if part * power * 5 >= reach), 10 * power)
        base = step * math.floor(lowest / step + 1e-9)
        return cls(base + step * max(1, math.ceil((highest - base) / step - 1e-9)), start, end, step, base)

    @property
    def ticks(self) -> list[float]:
        return [self.base + self.step * number for number in range(round((self.top - self.base) / self.step) + 1)]

    def place(self, value: float) -> float:
        return self.start + (self.end - self.start) * min(max((value - self.base) / (self.top - self.base), 0.0), 1.0)


def role_class(place: int) -> str:
    """The style class of the model in this place of the table."""
    return f"m{place % len(SHAPES)}"


def intervals(models: Sequence[ModelRow]) -> str:
    """KL a token of each model as a dot with its 95 % interval; empty where none was measured."""
    shown = [(place, row, kl) for place, row, kl in _with_kl(models) if row.role != "teacher"]
    if not shown:
        return ""
    width, left, height = 640, 196, 52
    bottom = 8 + height * len(shown)
    axis = _Axis.over(_drawn_to_scale([kl for _, _, kl in shown]), left, width - 70)
    parts = []
    for tick in axis.ticks:
        x = axis.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="8" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 18, _short(tick), "middle"))
    parts.append(
        _text((left + axis.end) / 2, bottom + 38, "KL to the teacher, nats a token (nearer is better)", "middle")
    )
    for number, (place, row, kl) in enumerate(shown):
        y = 8 + height * (number + 0.5)
        words = row.role.split(", ")  # "white-box student, int8" is too long for one line on a phone
        top = y + 4 - 10 * (len(words) - 1)
        parts += [_text(left - 12, top + 20 * line, word, "end") for line, word in enumerate(words)]
        if kl.mean > axis.top:
            parts.append(_text(axis.end, y + 4, f"{_short(kl.mean)}, off the scale →", "end", "value"))
            continue
        low, mean, high = (axis.place(value) for value in (kl.low, kl.mean, kl.high))
        parts.append(_whisker(low, y, high, y, place))
        parts += [_whisker(x, y - 6, x, y + 6, place) for x in (low, high)]
        parts.append(_mark(mean, y, place))
        parts.append(_text(high + 12, y + 4, f"{kl.mean:.2f}", "start", "value"))
    described = "; ".join(f"{row.role} {kl.mean:.2f}, from {kl.low:.2f} to {kl.high:.2f}" for _, row, kl in shown)
    return _svg(width, bottom + 46, f"KL to the teacher: {described}", parts)


def size_and_distance(models: Sequence[ModelRow]) -> str:
    """Megabytes on disk against KL a token; empty where no KL was measured."""
    shown = [(place, row, kl, row.megabytes) for place, row, kl in _with_kl(models) if row.megabytes is not None]
    if not shown:
        return ""
    width, height, left, bottom = 640, 300, 60, 250
    across = _Axis.over(max(megabytes for _, _, _, megabytes in shown), left, width - 40)
    up = _Axis.over(_drawn_to_scale([kl for _, _, kl, _ in shown]), bottom, 34)
    parts = _rules(up, left, width - 20)
    parts += [_text(across.place(tick), bottom + 20, _short(tick), "middle") for tick in across.ticks]
    parts.append(_text((left + width) / 2, height - 8, "megabytes on disk", "middle"))
    parts.append(_text(left, 14, "KL, nats a token", "start"))
    labels = _apart([up.place(kl.mean) + 4 for _, _, kl, _ in shown], bottom)
    for (place, row, kl, megabytes), label in zip(shown, labels, strict=True):
        x, y = across.place(megabytes), up.place(kl.mean)
        parts.append(_mark(x, y, place))
        beyond = f" {_short(kl.mean)} ↑" if kl.mean > up.top else ""
        right = x < width * 0.66
        parts.append(_text(x + (14 if right else -14), label, row.role + beyond, "start" if right else "end"))
    described = "; ".join(f"{row.role} {megabytes:.1f} MB, {kl.mean:.2f}" for _, row, kl, megabytes in shown)
    return _svg(width, height, f"Megabytes on disk against KL: {described}", parts)


def size_and_score(models: Sequence[ModelRow], metric: MetricColumn, front: Collection[int] = ()) -> str:
    """Parameters against a metric of the task, with 95 % intervals; a model whose size is not known is left out.

    Models whose places are in `front` have a ring around their mark, and a dashed line joins them.
    """
    scale = 100 if metric.percent else 1
    shown = [
        (place, row, row.parameters / 1e6, [scale * value for value in (score.low, score.mean, score.high)])
        for place, row in enumerate(models)
        if row.parameters is not None and (score := row.scores.get(metric.name))
    ]
    if not shown:
        return ""
    width, height, left, bottom = 640, 340, 60, 290
    lowest, highest = _most_of([score for *_, score in shown])
    across = _Axis.over(max(millions for _, _, millions, _ in shown), left, width - 40)
    up = _Axis.over(highest, bottom, 34, lowest)
    parts = _rules(up, left, width - 20)
    parts += [_text(across.place(tick), bottom + 20, _short(tick), "middle") for tick in across.ticks]
    parts.append(_text((left + width) / 2, height - 8, "million parameters", "middle"))
    better = "lower" if metric.lower_is_better else "higher"
    parts.append(_text(left, 14, f"{metric.name}{', %' if metric.percent else ''} ({better} is better)", "start"))
    labels = _apart([up.place(mean) + 4 for *_, (_, mean, _) in shown], bottom)
    sizes = [millions for _, _, millions, _ in shown]
    joined: list[tuple[float, float]] = []
    for number, ((place, row, millions, (low, mean, high)), label) in enumerate(zip(shown, labels, strict=True)):
        aside = 9 * (sizes.count(millions) - 1) / 2  # models of one size stand side by side
        x = across.place(millions) - aside + 9 * sizes[:number].count(millions)
        parts.append(_whisker(x, up.place(low), x, up.place(high), place))
        parts.append(_mark(x, up.place(mean), place))
        if place in front:
            joined.append((x, up.place(mean)))
        beyond = " ↑" if mean > up.top else " ↓" if mean < up.base else ""
        said = f"{row.role} {mean:.{metric.digits}f}{beyond}"
        right = across.place(millions) < width * 0.66
        edge = across.place(millions) + (aside + 14 if right else -aside - 14)
        parts.append(_text(edge, label, said, "start" if right else "end", f"who {role_class(place)}"))
    parts += _front(joined)
    described = "; ".join(
        f"{row.role} {millions:.2f} million, {mean:.{metric.digits}f}" for _, row, millions, (_, mean, _) in shown
    )
    return _svg(width, height, f"Parameters against {metric.name}: {described}", parts)


def curve(one: Curve, place: int) -> str:
    """A student's loss by step: a line for training, marks for the held-out rows; `place` is its row in the table."""
    values = [*one.loss, *one.evaluation_loss]
    steps = [*one.steps, *one.evaluation_steps]
    if not values:
        return ""
    width, height, left, bottom = 640, 260, 60, 210
    up = _Axis.over(max(values), bottom, 20)
    across = _Axis(max(steps), left, width - 30, max(steps) / 2)
    parts = _rules(up, left, width - 20)
    parts += [
        _text(across.place(tick), bottom + 20, str(tick), "middle") for tick in sorted({0, max(steps) // 2, max(steps)})
    ]
    parts.append(_text((left + width) / 2, height - 6, "step", "middle"))
    points = [f"{across.place(step):.1f},{up.place(loss):.1f}" for step, loss in zip(one.steps, one.loss, strict=True)]
    parts.append(f'<polyline class="curve {role_class(place)}" points="{" ".join(points)}"/>')
    for step, loss in zip(one.evaluation_steps, one.evaluation_loss, strict=True):
        parts.append(_mark(across.place(step), up.place(loss), place))
    reached = one.loss[-1] if one.loss else values[-1]
    described = f"Loss of the {one.role}, from {values[0]:.2f} to {reached:.2f} in {max(steps)} steps"
    return _svg(width, height, described, parts)


# ---------------------------------------------------------------------------------------------------------------- pieces


def _front(points: Sequence[tuple[float, float]]) -> list[str]:
    """A ring around each point, and a line that joins them in the order of their size."""
    rings = [f'<circle class="front" cx="{x:.1f}" cy="{y:.1f}" r="12"/>' for x, y in points]
    if len(points) < 2:
        return rings
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(points))
    return [f'<polyline class="front" points="{line}"/>', *rings]


def _with_kl(models: Sequence[ModelRow]) -> list[tuple[int, ModelRow, Interval]]:
    return [(place, row, row.kl_per_token) for place, row in enumerate(models) if row.kl_per_token]


def _drawn_to_scale(distances: Sequence[Interval]) -> float:
    """The highest value that the axis must reach: an untrained model far out would press all others together."""
    highest = sorted(interval.high for interval in distances)
    if len(highest) > 2 and highest[-1] > _FAR * highest[-2] > 0:
        return highest[-2]
    return highest[-1]


def _rules(up: _Axis, left: float, right: float) -> list[str]:
    """Lines across the plot, with their values on the left."""
    lines = [
        f'<line class="grid" x1="{left}" y1="{up.place(tick):.1f}" x2="{right}" y2="{up.place(tick):.1f}"/>'
        for tick in up.ticks
    ]
    return lines + [_text(left - 8, up.place(tick) + 4, _short(tick), "end") for tick in up.ticks]


def _most_of(scores: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The lowest and the highest value that the axis must reach, of (low, mean, high) each.

    One model that stands alone, as an untrained one does, would press all others together: it is drawn at the edge.
    """
    ordered = sorted(scores, key=lambda score: score[1])
    for alone, rest, gap in (
        (ordered[0], ordered[1:], ordered[1][0] - ordered[0][2] if len(ordered) > 2 else 0),
        (ordered[-1], ordered[:-1], ordered[-1][0] - ordered[-2][2] if len(ordered) > 2 else 0),
    ):
        reach = max(score[2] for score in rest or [alone]) - min(score[0] for score in rest or [alone])
        if gap > _FAR * reach:
            return min(score[0] for score in rest), max(score[2] for score in rest)
    return min(score[0] for score in ordered), max(score[2] for score in ordered)


def _apart(heights: Sequence[float], lowest: float) -> list[float]:
    """Heights for labels, in the order of their marks, moved as little as keeps them a line apart and in the plot.

    With a line's height taken off for each label above, they must only not fall: a regression that pools neighbours.
    """
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    pools: list[tuple[float, int]] = []  # mean, labels
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


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _whisker(x1: float, y1: float, x2: float, y2: float, place: int) -> str:
    return f'<line class="whisker {role_class(place)}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _mark(x: float, y: float, place: int) -> str:
    style, shape = f"mark {role_class(place)}", SHAPES[place % len(SHAPES)]
    if shape == "circle":
        return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _CORNERS[shape])
    return f'<polygon class="{style}" points="{points}"/>'


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"
