"""The verdict of a sweep in words: which student to choose, and how certain the choice is."""

from __future__ import annotations

from stillhouse.evaluation.report.tables import format_interval
from stillhouse.evaluation.report.warnings import fault_of, warning_of
from stillhouse.evaluation.results import Interval, MetricColumn
from stillhouse.evaluation.sweep.choice import quality
from stillhouse.evaluation.sweep.results import SweepReport, SweptStudent
from stillhouse.student.finished.card import count_in_words


def sweep_verdict(report: SweepReport) -> str:
    """Return the warnings about the students, if any, followed by the findings."""
    return " ".join([*sweep_warnings(report), sweep_findings(report)])


def sweep_warnings(report: SweepReport) -> list[str]:
    """Return the warnings about each student or, if it has none, about its int8 copy."""
    sentences, is_sound, name = [], True, ""
    for row in (one.row for one in report.students):
        if not row.is_int8:
            name, is_sound = row.role, not fault_of(row)
        elif not is_sound:
            continue
        sentences.append(warning_of(report, row, f"The int8 copy of {name}" if row.is_int8 else name))
    return [one for one in sentences if one]


def sweep_findings(report: SweepReport) -> str:
    """Name the smallest student that keeps `evaluate.keep` of the teacher's first metric, or the reason; list the front."""
    sentences = [_named(report)]
    if len(report.choice.front) > 1:
        sentences.append(f"On the front of size and quality: {', '.join(report.choice.front)}.")
    return " ".join(sentences)


def _named(report: SweepReport) -> str:
    lead, asked = report.lead, f"{report.choice.keep:.0%}"
    if all(fault_of(one.row) for one in report.students if not one.row.is_int8):
        return "No student is named: something is wrong with each of them."
    if lead is None:
        return (
            "The recipe has no metric of the task, so no student is named: set evaluate.metrics, for instance "
            f"[exact-match], and the smallest student that keeps {asked} of the teacher's score is named "
            f"here.{_best(report)}"
        )
    if lead.lower_is_better:
        return (
            f"Of {lead.name} lower is better, and a share of it that is kept has no meaning: put a metric of which "
            f"higher is better first in evaluate.metrics, and the smallest student that keeps {asked} of it is named "
            f"here.{_best(report)}"
        )
    if report.choice.nearest is None:
        why = (
            "the teacher does not run here, and the labels are the references"
            if report.teacher is None
            else f"the teacher's own is {_figure(report.teacher.scores.get(lead.name), lead)}, too near 0"
        )
        return f"What the students keep of the teacher's {lead.name} cannot be told: {why}.{_best(report)}"
    if report.choice.smallest is None:
        nearest = report.named(report.choice.nearest)
        sound = "sound " if any(fault_of(one.row) for one in report.students) else ""
        return (
            f"No {sound}student keeps {asked} of the teacher's {lead.name}. The nearest is {nearest.row.role}"
            f"{_size(report, nearest)}: it keeps {_share(nearest.kept[lead.name])}."
        )
    smallest = report.named(report.choice.smallest)
    kept = smallest.kept[lead.name]
    unsure = (
        f" Its interval reaches below {asked}: on other prompts it may keep less."
        if kept.low < report.choice.keep
        else ""
    )
    return (
        f"The smallest student that keeps {asked} of the teacher's {lead.name} is {smallest.row.role}"
        f"{_size(report, smallest)}: it keeps {_share(kept)}.{unsure}"
    )


def _best(report: SweepReport) -> str:
    """Return a sentence on the best student by the first metric or the KL; empty if none was measured."""
    sound = [one for one in report.students if not fault_of(one.row)]
    rated = [(worth, one) for one in sound if (worth := quality(one.row, report.metrics)) is not None]
    if not rated:
        return ""
    best = max(rated, key=lambda pair: pair[0])[1].row
    if report.lead is not None:
        return f" The best is {best.role}, at {_figure(best.scores[report.lead.name], report.lead)}."
    at = f"{best.kl_per_token.mean:.2f}" if best.kl_per_token else ""
    return f" The nearest to the teacher is {best.role}, at {at} nats a token."


def _size(report: SweepReport, student: SweptStudent) -> str:
    """Return `, with 63.7 million parameters (47% of the teacher's)`; empty if the size is unknown."""
    parameters, teacher = student.row.parameters, report.teacher.parameters if report.teacher else None
    if not parameters:
        return ""
    share = f" ({parameters / teacher:.0%} of the teacher's)" if teacher else ""
    return f", with {count_in_words(parameters)} parameters{share}"


def _share(kept: Interval) -> str:
    return f"{kept.mean:.1%}, between {kept.low:.1%} and {kept.high:.1%}"


def _figure(score: Interval | None, metric: MetricColumn) -> str:
    return format_interval(score, metric.digits, percent=metric.percent).partition(" [")[0]
