"""Plots as SVG text: no library, no script, colours from the page's style sheet (classes `m0`, `m1`, ...).

Each returns one `<svg>` that scales to the width of its place; marks differ in shape as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pipeline.evaluation.results import Curve, ModelRow

_SHAPES = ("square", "circle", "triangle", "diamond")
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-5, -5), (5, -5), (5, 5), (-5, 5)],
    "triangle": [(0, -7), (6.5, 5), (-6.5, 5)],
    "diamond": [(0, -7.5), (7.5, 0), (0, 7.5), (-7.5, 0)],
}


def role_class(place: int) -> str:
    """The style class of the model in this place of the table."""
    return f"m{place % len(_SHAPES)}"


def intervals(models: Sequence[ModelRow]) -> str:
    """KL a token of each model as a dot with its 95 % interval; empty where none was measured."""
    shown = [
        (place, row, row.kl_per_token) for place, row in enumerate(models) if row.kl_per_token and row.role != "teacher"
    ]
    if not shown:
        return ""
    width, left, line = 640, 150, 44
    height = line * len(shown) + 48
    top = _ceiling(max(interval.high for _, _, interval in shown))
    parts = []
    for tick in _ticks(top):
        x = _scale(tick, top, left, width - 60)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="8" x2="{x:.1f}" y2="{height - 40}"/>')
        parts.append(_text(x, height - 22, _short(tick), "middle"))
    parts.append(
        _text((left + width - 60) / 2, height - 5, "KL to the teacher, nats a token (nearer is better)", "middle")
    )
    for number, (place, row, interval) in enumerate(shown):
        y = 8 + line * (number + 0.5)
        low, mean, high = (
            _scale(value, top, left, width - 60) for value in (interval.low, interval.mean, interval.high)
        )
        parts.append(_text(left - 12, y + 4, row.role, "end"))
        parts.append(f'<line class="whisker {role_class(place)}" x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}"/>')
        parts += [
            f'<line class="whisker {role_class(place)}" x1="{x:.1f}" y1="{y - 6}" x2="{x:.1f}" y2="{y + 6}"/>'
            for x in (low, high)
        ]
        parts.append(_mark(mean, y, place))
        parts.append(_text(high + 10, y + 4, f"{interval.mean:.2f}", "start", "value"))
    described = "; ".join(
        f"{row.role} {interval.mean:.2f}, from {interval.low:.2f} to {interval.high:.2f}" for _, row, interval in shown
    )
    return _svg(width, height, f"KL to the teacher: {described}", parts)


def size_and_distance(models: Sequence[ModelRow]) -> str:
    """Parameters against KL a token; empty where no KL was measured."""
    shown = [(place, row, row.kl_per_token) for place, row in enumerate(models) if row.kl_per_token]
    if not shown:
        return ""
    width, height, left, bottom = 640, 300, 60, 250
    widest = _ceiling(max(row.parameters for _, row, _ in shown) / 1e6)
    highest = _ceiling(max(interval.high for _, _, interval in shown))
    parts = []
    for tick in _ticks(highest):
        y = _scale(tick, highest, bottom, 20)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - 20}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, _short(tick), "end"))
    for tick in _ticks(widest):
        parts.append(_text(_scale(tick, widest, left, width - 40), bottom + 20, _short(tick), "middle"))
    parts.append(_text((left + width) / 2, height - 8, "million parameters", "middle"))
    parts.append(_text(left, 12, "KL, nats a token", "start"))
    for place, row, interval in shown:
        x = _scale(row.parameters / 1e6, widest, left, width - 40)
        y = _scale(interval.mean, highest, bottom, 20)
        parts.append(_mark(x, y, place))
        right = x < width * 0.66
        parts.append(_text(x + (12 if right else -12), y + 4, row.role, "start" if right else "end"))
    described = "; ".join(
        f"{row.role} {row.parameters / 1e6:.1f} million, {interval.mean:.2f}" for _, row, interval in shown
    )
    return _svg(width, height, f"Parameters against KL: {described}", parts)


def curve(one: Curve) -> str:
    """A student's loss by step: a line for training, marks for the held-out rows."""
    values = [*one.loss, *one.evaluation_loss]
    steps = [*one.steps, *one.evaluation_steps]
    if not values:
        return ""
    width, height, left, bottom = 640, 260, 60, 210
    highest, last = _ceiling(max(values)), max(steps)
    parts = []
    for tick in _ticks(highest):
        y = _scale(tick, highest, bottom, 20)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - 20}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, _short(tick), "end"))
    for tick in (0, last // 2, last):
        parts.append(_text(_scale(tick, last, left, width - 30), bottom + 20, str(tick), "middle"))
    parts.append(_text((left + width) / 2, height - 6, "step", "middle"))
    points = [
        f"{_scale(step, last, left, width - 30):.1f},{_scale(loss, highest, bottom, 20):.1f}"
        for step, loss in zip(one.steps, one.loss, strict=True)
    ]
    parts.append(f'<polyline class="curve m3" points="{" ".join(points)}"/>')
    for step, loss in zip(one.evaluation_steps, one.evaluation_loss, strict=True):
        parts.append(_mark(_scale(step, last, left, width - 30), _scale(loss, highest, bottom, 20), 1))
    reached = one.loss[-1] if one.loss else values[-1]
    described = f"Loss of the {one.role}, from {values[0]:.2f} to {reached:.2f} in {last} steps"
    return _svg(width, height, described, parts)


# ---------------------------------------------------------------------------------------------------------------- pieces


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _mark(x: float, y: float, place: int) -> str:
    style, shape = f"mark {role_class(place)}", _SHAPES[place % len(_SHAPES)]
    if shape == "circle":
        return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _CORNERS[shape])
    return f'<polygon class="{style}" points="{points}"/>'


def _scale(value: float, top: float, start: float, end: float) -> float:
    return start + (end - start) * (value / top if top else 0)


def _ceiling(value: float) -> float:
    """The next round number from 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(float(step * power) for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value)


def _ticks(top: float) -> list[float]:
    return [top * part / 4 for part in range(5)]


def _short(value: float) -> str:
    return f"{value:g}" if value == round(value, 2) else f"{value:.3g}"
