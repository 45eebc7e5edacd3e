"""The plot of a sweep: quality against parameters, with the Pareto front marked and a label for every model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stillhouse.evaluation.report.svg import (
    Axis,
    axis_range,
    format_value,
    grid_lines,
    mark,
    role_class,
    spread_labels,
    svg,
    text_at,
    whisker,
)
from stillhouse.evaluation.report.warnings import fault_of
from stillhouse.evaluation.results import MetricColumn, ModelRow

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 360, 60, 310
_LETTER = 10  # width of a label's letter on a phone, pixels
_NARROWEST = 240  # minimum width of the plot without labels, pixels


def size_and_quality(models: Sequence[ModelRow], metric: MetricColumn, front: Collection[int]) -> str:
    """Plot a metric with 95 % intervals against parameters; empty if no model has both.

    Labels are in a column on the right, each with a line to its mark, so that no label covers a mark. Models whose indices
    are in `front` have a ring around their mark and are joined by a dashed line. The label of a model with a warning ends
    with the fault, such as "broken".
    """
    scale = 100 if metric.percent else 1
    shown = [
        (place, row, row.parameters / 1e6, [scale * value for value in (score.low, score.mean, score.high)])
        for place, row in enumerate(models)
        if row.parameters is not None and not row.is_int8 and (score := row.scores.get(metric.name))
    ]
    if not shown:
        return ""
    labels = [
        ", ".join(filter(None, [f"{row.role} {mean:.{metric.digits}f}", fault_of(row)]))
        for _, row, _, (_, mean, _) in shown
    ]
    column = max(_LEFT + _NARROWEST, _WIDTH - _LETTER * max(map(len, labels)))
    lowest, highest = axis_range([score for *_, score in shown])
    across = Axis.over(max(millions for _, _, millions, _ in shown), _LEFT, column - 40)
    up = Axis.over(highest, _BOTTOM, 40, lowest)
    parts = _frame(across, up, column, metric)
    points = [(across.place(millions), up.place(mean)) for _, _, millions, (_, mean, _) in shown]
    heights = spread_labels([y + 4 for _, y in points], _BOTTOM)
    for (place, *_), (x, y), height in zip(shown, points, heights, strict=True):
        line = f"{x:.1f},{y:.1f} {column - 22:.1f},{height - 4:.1f} {column - 6:.1f},{height - 4:.1f}"
        parts.append(f'<polyline class="leader {role_class(place)}" points="{line}"/>')
    parts += _joined([point for (place, *_), point in zip(shown, points, strict=True) if place in front])
    for (place, _, _, (low, _, high)), (x, y) in zip(shown, points, strict=True):
        parts += [whisker(x, up.place(low), x, up.place(high), place), mark(x, y, place)]
    for (place, *_), label, height in zip(shown, labels, heights, strict=True):
        parts.append(text_at(column, height, label, "start", f"who {role_class(place)}"))
    described = "; ".join(
        f"{label} with {millions:.2f} million" + (", on the front" if place in front else "")
        for (place, _, millions, _), label in zip(shown, labels, strict=True)
    )
    return svg(_WIDTH, _HEIGHT, f"Parameters against {metric.name}: {described}", parts)


def _frame(across: Axis, up: Axis, column: float, metric: MetricColumn) -> list[str]:
    """Return the axes and their names."""
    better = "lower" if metric.lower_is_better else "higher"
    ticks = across.ticks if column > _WIDTH / 2 else across.ticks[::2]
    return [
        *grid_lines(up, _LEFT, column - 30),
        *(text_at(across.place(tick), _BOTTOM + 20, format_value(tick), "middle") for tick in ticks),
        text_at((_LEFT + column) / 2, _HEIGHT - 8, "million parameters", "middle"),
        text_at(4, 16, f"{metric.name}{', %' if metric.percent else ''} ({better} is better)", "start"),
    ]


def _joined(points: Sequence[tuple[float, float]]) -> list[str]:
    """Return a ring around each point, and a line that joins the points in order of size."""
    rings = [f'<circle class="front" cx="{x:.1f}" cy="{y:.1f}" r="12"/>' for x, y in points]
    if len(points) < 2:
        return rings
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(points))
    return [f'<polyline class="front" points="{line}"/>', *rings]
