"""Plots as SVG text, without a library or scripts; colours come from the page's style sheet (classes `m0`, `m1`, ...).

Each function returns one `<svg>` that scales to the width of its container. Marks differ in shape as well as in colour.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.evaluation.report.svg import (
    FAR,
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
from stillhouse.evaluation.results import Curve, Interval, MetricColumn, ModelRow


def intervals(models: Sequence[ModelRow]) -> str:
    """Plot each model's KL per token with its 95 % interval; empty if none was measured."""
    shown = [(place, row, kl) for place, row, kl in _with_kl(models) if row.role != "teacher"]
    if not shown:
        return ""
    width, left, height = 640, 196, 52
    bottom = 8 + height * len(shown)
    axis = Axis.over(_drawn_to_scale([kl for _, _, kl in shown]), left, width - 70)
    parts = []
    for tick in axis.ticks:
        x = axis.place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="8" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(text_at(x, bottom + 18, format_value(tick), "middle"))
    parts.append(
        text_at((left + axis.end) / 2, bottom + 38, "KL to the teacher, nats per token (lower is better)", "middle")
    )
    for number, (place, row, kl) in enumerate(shown):
        y = 8 + height * (number + 0.5)
        words = row.role.split(", ")  # "white-box student, int8" is too long for one line on a phone
        top = y + 4 - 10 * (len(words) - 1)
        parts += [text_at(left - 12, top + 20 * line, word, "end") for line, word in enumerate(words)]
        if kl.mean > axis.top:
            parts.append(text_at(axis.end, y + 4, f"{format_value(kl.mean)}, off the scale →", "end", "value"))
            continue
        low, mean, high = (axis.place(value) for value in (kl.low, kl.mean, kl.high))
        parts.append(whisker(low, y, high, y, place))
        parts += [whisker(x, y - 6, x, y + 6, place) for x in (low, high)]
        parts.append(mark(mean, y, place))
        parts.append(text_at(high + 12, y + 4, f"{kl.mean:.2f}", "start", "value"))
    described = "; ".join(f"{row.role} {kl.mean:.2f}, from {kl.low:.2f} to {kl.high:.2f}" for _, row, kl in shown)
    return svg(width, bottom + 46, f"KL to the teacher: {described}", parts)


def size_and_distance(models: Sequence[ModelRow]) -> str:
    """Plot KL per token against megabytes on disk; empty if no KL was measured."""
    shown = [(place, row, kl, row.megabytes) for place, row, kl in _with_kl(models) if row.megabytes is not None]
    if not shown:
        return ""
    width, height, left, bottom = 640, 300, 60, 250
    across = Axis.over(max(megabytes for _, _, _, megabytes in shown), left, width - 40)
    up = Axis.over(_drawn_to_scale([kl for _, _, kl, _ in shown]), bottom, 34)
    parts = grid_lines(up, left, width - 20)
    parts += [text_at(across.place(tick), bottom + 20, format_value(tick), "middle") for tick in across.ticks]
    parts.append(text_at((left + width) / 2, height - 8, "megabytes on disk", "middle"))
    parts.append(text_at(left, 14, "KL, nats per token", "start"))
    labels = spread_labels([up.place(kl.mean) + 4 for _, _, kl, _ in shown], bottom)
    for (place, row, kl, megabytes), label in zip(shown, labels, strict=True):
        x, y = across.place(megabytes), up.place(kl.mean)
        parts.append(mark(x, y, place))
        beyond = f" {format_value(kl.mean)} ↑" if kl.mean > up.top else ""
        right = x < width * 0.66
        parts.append(text_at(x + (14 if right else -14), label, row.role + beyond, "start" if right else "end"))
    described = "; ".join(f"{row.role} {megabytes:.1f} MB, {kl.mean:.2f}" for _, row, kl, megabytes in shown)
    return svg(width, height, f"Megabytes on disk against KL: {described}", parts)


def size_and_score(models: Sequence[ModelRow], metric: MetricColumn) -> str:
    """Plot a task metric with its 95 % intervals against parameters; models of unknown size are left out."""
    scale = 100 if metric.percent else 1
    shown = [
        (place, row, row.parameters / 1e6, [scale * value for value in (score.low, score.mean, score.high)])
        for place, row in enumerate(models)
        if row.parameters is not None and (score := row.scores.get(metric.name))
    ]
    if not shown:
        return ""
    width, height, left, bottom = 640, 340, 60, 290
    lowest, highest = axis_range([score for *_, score in shown])
    across = Axis.over(max(millions for _, _, millions, _ in shown), left, width - 40)
    up = Axis.over(highest, bottom, 34, lowest)
    parts = grid_lines(up, left, width - 20)
    parts += [text_at(across.place(tick), bottom + 20, format_value(tick), "middle") for tick in across.ticks]
    parts.append(text_at((left + width) / 2, height - 8, "million parameters", "middle"))
    better = "lower" if metric.lower_is_better else "higher"
    parts.append(text_at(left, 14, f"{metric.name}{', %' if metric.percent else ''} ({better} is better)", "start"))
    labels = spread_labels([up.place(mean) + 4 for *_, (_, mean, _) in shown], bottom)
    sizes = [millions for _, _, millions, _ in shown]
    for number, ((place, row, millions, (low, mean, high)), label) in enumerate(zip(shown, labels, strict=True)):
        aside = 9 * (sizes.count(millions) - 1) / 2  # models of the same size are drawn side by side
        x = across.place(millions) - aside + 9 * sizes[:number].count(millions)
        parts.append(whisker(x, up.place(low), x, up.place(high), place))
        parts.append(mark(x, up.place(mean), place))
        beyond = " ↑" if mean > up.top else " ↓" if mean < up.base else ""
        said = f"{row.role} {mean:.{metric.digits}f}{beyond}"
        right = across.place(millions) < width * 0.66
        edge = across.place(millions) + (aside + 14 if right else -aside - 14)
        parts.append(text_at(edge, label, said, "start" if right else "end", f"who {role_class(place)}"))
    described = "; ".join(
        f"{row.role} {millions:.2f} million, {mean:.{metric.digits}f}" for _, row, millions, (_, mean, _) in shown
    )
    return svg(width, height, f"Parameters against {metric.name}: {described}", parts)


def loss_plot(one: Curve, place: int) -> str:
    """Plot a student's loss by step: a line for training, marks for held-out rows; `place` is its row in the table."""
    values = [*one.loss, *one.evaluation_loss]
    steps = [*one.steps, *one.evaluation_steps]
    if not values:
        return ""
    width, height, left, bottom = 640, 260, 60, 210
    up = Axis.over(max(values), bottom, 20)
    across = Axis(max(steps), left, width - 30, max(steps) / 2)
    parts = grid_lines(up, left, width - 20)
    parts += [
        text_at(across.place(tick), bottom + 20, str(tick), "middle")
        for tick in sorted({0, max(steps) // 2, max(steps)})
    ]
    parts.append(text_at((left + width) / 2, height - 6, "step", "middle"))
    points = [f"{across.place(step):.1f},{up.place(loss):.1f}" for step, loss in zip(one.steps, one.loss, strict=True)]
    parts.append(f'<polyline class="curve {role_class(place)}" points="{" ".join(points)}"/>')
    for step, loss in zip(one.evaluation_steps, one.evaluation_loss, strict=True):
        parts.append(mark(across.place(step), up.place(loss), place))
    reached = one.loss[-1] if one.loss else values[-1]
    described = f"Loss of the {one.role}, from {values[0]:.2f} to {reached:.2f} in {max(steps)} steps"
    return svg(width, height, described, parts)


# ---------------------------------------------------------------------------------------------------------------- pieces


def _with_kl(models: Sequence[ModelRow]) -> list[tuple[int, ModelRow, Interval]]:
    return [(place, row, row.kl_per_token) for place, row in enumerate(models) if row.kl_per_token]


def _drawn_to_scale(distances: Sequence[Interval]) -> float:
    """Return the highest value that the axis must reach; a far outlier, such as an untrained model, is ignored."""
    highest = sorted(interval.high for interval in distances)
    if len(highest) > 2 and highest[-1] > FAR * highest[-2] > 0:
        return highest[-2]
    return highest[-1]
