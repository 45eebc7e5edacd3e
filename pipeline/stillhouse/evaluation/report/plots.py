"""The plots of a report, each one `<svg>` that scales to the width of its container.

Marks differ in shape as well as in colour; both are those of the model's row in the table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from stillhouse.evaluation.report.answer_warnings import fault_of
from stillhouse.evaluation.report.drawing import (
    CARD,
    INK,
    axis_range,
    draw,
    mark,
    model_colour,
    round_ticks,
    write_beside,
)
from stillhouse.evaluation.results import Curve, Interval, MetricColumn, ModelRow
from stillhouse.formatting import format_value
from stillhouse.student.finished.rounds import RoundFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

FRONT = "the Pareto front"  # shown when the mouse is over it
_LETTERS, _LONGEST = 19, 44  # at most, in a line of a label, and of a text above a plot
_LINE, _APART = 16, 5  # SVG units: height of a label's line, and the space between two labels

_ASIDE = 0.045  # between two models of the same size, of the largest size


@dataclass(frozen=True)
class _Point:
    """One model in a plot of a figure against size."""

    place: int  # row in the table
    size: float
    figure: Interval
    label: str


def intervals(models: Sequence[ModelRow]) -> str:
    """Plot each model's KL per token with its 95 % interval; empty if none was measured."""
    measured = [(place, row, row.kl_per_token) for place, row in enumerate(models) if row.kl_per_token]
    shown = [(place, row, kl) for place, row, kl in measured if row.role != "teacher"]
    if not shown:
        return ""
    ticks = round_ticks(0, axis_range([kl for *_, kl in measured])[1])

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set(xticks=ticks, xlim=(0, ticks[-1]), yticks=[], ylim=(len(shown) - 0.5, -0.8))
        axes.set_xlabel("KL to the teacher, nats per token (lower is better)")
        for height, (place, row, kl) in enumerate(shown):
            name = row.role if len(row.role) <= _LONGEST else f"{row.role[: _LONGEST - 1]}…"
            behind = {"facecolor": CARD, "edgecolor": "none", "pad": 2}
            colour = model_colour(place)
            write_beside(axes, name, (0, height), (0, 13), color=colour, bbox=behind, in_layout=False)
            if far := kl.mean > ticks[-1]:
                value, x, aside = f"{format_value(kl.mean)}, off the scale →", ticks[-1], 0
            else:
                value, x, aside = f"{kl.mean:.2f}", kl.high, 10
                axes.plot([kl.low, kl.high], [height] * 2, "|-", color=colour, linewidth=2, markersize=12)
                mark(axes, kl.mean, height, place)
            side = "right" if far else "left"
            write_beside(axes, value, (x, height), (aside, 0), ha=side, va="center", color=INK, weight="bold")

    described = "; ".join(f"{row.role} {kl.mean:.2f}, from {kl.low:.2f} to {kl.high:.2f}" for _, row, kl in shown)
    return draw(f"KL to the teacher: {described}", plot, 60 + 50 * len(shown))


def size_and_distance(models: Sequence[ModelRow]) -> str:
    """Plot KL per token with its 95 % interval against megabytes on disk; empty if no KL was measured."""
    points = [
        _Point(place, row.megabytes, kl, f"{row.role} {kl.mean:.2f}")
        for place, row in enumerate(models)
        if row.megabytes is not None and (kl := row.kl_per_token)
    ]
    return _against_size(points, "Megabytes on disk against KL", "megabytes on disk", "KL, nats per token")


def size_and_score(models: Sequence[ModelRow], metric: MetricColumn, front: Collection[int] | None = None) -> str:
    """Plot a task metric with its 95 % intervals against parameters; models of unknown size are left out.

    Args:
        models: the rows of the table.
        metric: the metric.
        front: for a sweep, the indices of the models on the Pareto front. They have a ring around their mark and are joined
            by a dashed line; the label of a model with a warning ends with its fault, such as "broken".

    Returns:
        The plot; empty if no model has both figures.
    """
    scale = 100 if metric.percent else 1
    points = [
        _Point(
            place,
            row.parameters / 1e6,
            Interval(scale * score.mean, scale * score.low, scale * score.high),
            f"{row.role} {scale * score.mean:.{metric.digits}f}"
            + (f", {fault}" if front is not None and (fault := fault_of(row)) else ""),
        )
        for place, row in enumerate(models)
        if row.parameters is not None and (score := row.scores.get(metric.name))
    ]
    better = "lower" if metric.lower_is_better else "higher"
    heading = f"{metric.name}{', %' if metric.percent else ''} ({better} is better)"
    return _against_size(points, f"Parameters against {metric.name}", "million parameters", heading, front or ())


def loss_plot(one: Curve, place: int) -> str:
    """Plot a student's loss by step: a line for training, marks for held-out rows; `place` is its row in the table."""
    values = [*one.loss, *one.evaluation_loss]
    if not values:
        return ""

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(one.steps, one.loss, color=model_colour(place), linewidth=2)
        for step, loss in zip(one.evaluation_steps, one.evaluation_loss, strict=True):
            mark(axes, step, loss, place)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=min(0, *values))
        axes.locator_params(nbins=5)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("step")

    last = max([*one.steps, *one.evaluation_steps])
    reached = one.loss[-1] if one.loss else values[-1]
    return draw(f"Loss of the {one.role}, from {values[0]:.2f} to {reached:.2f} in {last} steps", plot, 240)


def rounds_plot(rounds: Sequence[RoundFigures]) -> str:
    """Plot KL by round: of the student on the teacher's held-out text, and in both directions on its own; empty if none."""
    texts = {
        "teacher's text": [(one.number, one.health.teacher_text) for one in rounds],
        "own text": [(one.number, one.health.own_text) for one in rounds],
    }
    measured: dict[str, list[tuple[int, float]]] = {}
    for name, points in texts.items():
        measured[f"KL, {name}"] = [(number, text.forward_kl) for number, text in points if text is not None]
        measured[f"reverse KL, {name}"] = [(number, text.reverse_kl) for number, text in points if text is not None]
    measured = {name: points for name, points in measured.items() if points}
    if not measured:
        return ""

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (name, points) in enumerate(measured.items(), start=1):
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=model_colour(place), linewidth=2, label=name)
            for x, y in points:
                mark(axes, x, y, place)
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("round")
        axes.set_title("nats per token")
        axes.legend()

    described = "; ".join(f"{name} from {points[0][1]:.2f} to {points[-1][1]:.2f}" for name, points in measured.items())
    return draw(f"Distance by round: {described}", plot, 300)


# ---------------------------------------------------------------------------------------------------------------- pieces


def _against_size(
    points: Sequence[_Point], title: str, size_name: str, heading: str, front: Collection[int] = ()
) -> str:
    """Plot figures with their intervals against sizes; empty if there are no points.

    Labels are in a column on the right, each with a line to its mark, so that no label covers a mark.
    """
    if not points:
        return ""
    up = round_ticks(*axis_range([point.figure for point in points]))
    spots = _spots(points, up)
    across = round_ticks(0, max(x for x, _ in spots))
    labels = [textwrap.fill(point.label + _beyond(point, up), _LETTERS) for point in points]
    heights = [_LINE * (label.count("\n") + 1) + _APART for label in labels]
    heading = textwrap.fill(heading, _LONGEST)

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set(xticks=across, xlim=(0, across[-1]), yticks=up, ylim=(up[0], up[-1]), xlabel=size_name)
        axes.set_title(heading)
        texts = [_draw_point(axes, *one) for one in zip(points, labels, spots, strict=True)]
        figure.draw_without_rendering()  # makes room for the labels
        wanted = [(y - up[0]) / (up[-1] - up[0]) for _, y in spots]
        for text, place in zip(texts, spread_labels(wanted, [one / axes.bbox.height for one in heights]), strict=True):
            text.set_y(place)
        if ringed := sorted(spot for spot, point in zip(spots, points, strict=True) if point.place in front):
            xs, ys = zip(*ringed, strict=True)
            axes.plot(xs, ys, "o--", color=INK, fillstyle="none", markersize=20, clip_on=False, gid=FRONT)

    described = "; ".join(
        f"{point.label}, {point.size:.2f} {size_name}" + (", on the front" if point.place in front else "")
        for point in points
    )
    return draw(f"{title}: {described}", plot, max(300, 90 + _LINE * (heading.count("\n") + 1) + sum(heights)))


def _draw_point(axes: Axes, point: _Point, label: str, spot: tuple[float, float]) -> Annotation:
    """Draw a mark, its interval, and a line to its label in the column, and return the label."""
    colour = model_colour(point.place)
    axes.plot([spot[0]] * 2, [point.figure.low, point.figure.high], color=colour, linewidth=2)
    mark(axes, *spot, point.place)
    leader = {"arrowstyle": "-", "color": colour, "alpha": 0.5, "relpos": (0, 0.5)}
    text = axes.annotate(label, spot, (1.08, 0.5), textcoords="axes fraction", va="center", arrowprops=leader)
    text.set(color=colour, annotation_clip=False)
    return text


def _spots(points: Sequence[_Point], up: Sequence[float]) -> list[tuple[float, float]]:
    """Return where the marks are drawn: those of the same size side by side, and those beyond the axis at its end."""
    sizes = [point.size for point in points]
    aside = [sizes[:number].count(size) - (sizes.count(size) - 1) / 2 for number, size in enumerate(sizes)]
    return [
        (point.size + _ASIDE * max(sizes) * moved, min(max(point.figure.mean, up[0]), up[-1]))
        for point, moved in zip(points, aside, strict=True)
    ]


def _beyond(point: _Point, up: Sequence[float]) -> str:
    """Return an arrow if the figure is beyond the axis, and so is drawn at its end."""
    return " ↑" if point.figure.mean > up[-1] else " ↓" if point.figure.mean < up[0] else ""


def spread_labels(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return the middles of labels: as near to `wanted` as possible, in the same order, not overlapping, within 0..1.

    After subtracting the heights of the labels below, this is isotonic regression, here by its min-max formula.
    """
    order = sorted(range(len(wanted)), key=lambda place: (wanted[place], -place))
    below = [
        sum(heights[place] for place in order[:number]) + heights[order[number]] / 2 for number in range(len(order))
    ]
    free = [wanted[place] - under for place, under in zip(order, below, strict=True)]
    found = [0.0] * len(wanted)
    for number, (place, under) in enumerate(zip(order, below, strict=True)):
        level = max(
            min(fmean(free[first:last]) for last in range(number + 1, len(free) + 1)) for first in range(number + 1)
        )
        found[place] = under + max(0, min(level, 1 - sum(heights)))
    return found
