"""Choose a student of a sweep: the smallest that keeps enough of the teacher's score, and the Pareto front.

A student with a warning (answer_warnings.py) is never chosen: its scores may be good although its answers repeat.

choice = choose(students, metrics, keep=0.97)
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.evaluation.report.answer_warnings import fault_of
from stillhouse.evaluation.results import MetricColumn, ModelRow
from stillhouse.evaluation.sweep.results import Choice, SweptStudent

DISTANCE = MetricColumn("KL to the teacher, nats per token", lower_is_better=True, percent=False, digits=2)


def choose(students: Sequence[SweptStudent], metrics: Sequence[MetricColumn], keep: float) -> Choice:
    """Choose by the first metric; without metrics the front is of size and KL, and no student is chosen.

    Args:
        students: all students of the sweep; quantised copies and students with a warning are ignored.
        metrics: the task metrics, the most important first.
        keep: the share of the teacher's score that a student must keep.

    Returns:
        The choice. A student qualifies if its share of the teacher's score (the mean of the interval) is at least `keep`.
    """
    whole = [one for one in students if not one.row.is_int8 and not fault_of(one.row)]
    lead = metrics[0].name if metrics else None
    shares = [(one, one.kept[lead].mean) for one in whole if lead in one.kept] if lead else []
    keeping = [one for one, share in shares if share >= keep]
    smallest = min(keeping, key=lambda one: one.row.parameters or 0) if keeping else None
    nearest = max(shares, key=lambda pair: pair[1])[0] if shares else None
    places = [(one.row, worth) for one in whole if (worth := quality(one.row, metrics)) is not None]
    on_front = pareto_front([(row.parameters or 0, worth) for row, worth in places])
    return Choice(
        keep=keep,
        smallest=smallest.row.role if smallest else None,
        nearest=nearest.row.role if nearest else None,
        front=tuple(places[place][0].role for place in sorted(on_front)),
    )


def quality(row: ModelRow, metrics: Sequence[MetricColumn]) -> float | None:
    """Return a model's quality, higher is better: by the first metric, or else its negative KL. None: not measured."""
    if not metrics:
        return None if row.kl_per_token is None else -row.kl_per_token.mean
    score = row.scores.get(metrics[0].name)
    if score is None:
        return None
    return -score.mean if metrics[0].lower_is_better else score.mean


def pareto_front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Return the indices of the Pareto front of (size, quality) points.

    A point is on the front if no other point is at most as large and strictly better, or strictly smaller and at least
    as good.
    """
    found: set[int] = set()
    best = float("-inf")
    for size in sorted({size for size, _ in points}):
        top = max(worth for one, worth in points if one == size)
        if top > best:
            found |= {place for place, point in enumerate(points) if point == (size, top)}
            best = top
    return found
