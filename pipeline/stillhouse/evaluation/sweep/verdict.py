"""The verdict of a sweep in words: which student to choose, and how certain the choice is."""

from __future__ import annotations

from stillhouse.evaluation.report.answer_warnings import fault_of, warning_of
from stillhouse.evaluation.report.tables import format_interval
from stillhouse.evaluation.results import Interval, MetricColumn
from stillhouse.evaluation.sweep.choice import quality
from stillhouse.evaluation.sweep.results import SweepReport, SweptStudent
from stillhouse.formatting import count_in_words


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
    sentences = [_recommendation(report)]
    if len(report.choice.front) > 1:
        sentences.append(f"On the Pareto front of size and quality: {', '.join(report.choice.front)}.")
    return " ".join(sentences)


def _recommendation(report: SweepReport) -> str:
    lead, required = report.lead, f"{report.choice.keep:.0%}"
    if all(fault_of(one.row) for one in report.students if not one.row.is_int8):
        return "No student can be recommended: each of them has a warning."
    if lead is None:
        return (
            "No student is recommended, because the recipe has no task metric. With evaluate.metrics, for instance "
            f"[exact-match], the report names the smallest student that keeps {required} of the teacher's "
            f"score.{_best(report)}"
        )
    if lead.lower_is_better:
        return (
            f"No student is recommended, because a lower {lead.name} is better, so there is no share of it to keep. If a "
            "metric of which higher is better is first in evaluate.metrics, the report names the smallest student "
            f"that keeps {required} of it.{_best(report)}"
        )
    if report.choice.nearest is None:
        why = (
            "the teacher does not run on this machine, and the labels are the references"
            if report.teacher is None
            else f"the teacher's score, {_figure(report.teacher.scores.get(lead.name), lead)}, is too close to 0"
        )
        return f"The share of the teacher's {lead.name} that students keep cannot be computed: {why}.{_best(report)}"
    if report.choice.smallest is None:
        nearest = report.named(report.choice.nearest)
        qualifier = " without a warning" if any(fault_of(one.row) for one in report.students) else ""
        return (
            f"No student{qualifier} keeps {required} of the teacher's {lead.name}. The closest is {nearest.row.role}"
            f"{_size(report, nearest)}: it keeps {_share(nearest.kept[lead.name])}."
        )
    smallest = report.named(report.choice.smallest)
    kept = smallest.kept[lead.name]
    unsure = (
        f" Its interval extends below {required}: on other prompts it may keep less."
        if kept.low < report.choice.keep
        else ""
    )
    return (
        f"The smallest student that keeps {required} of the teacher's {lead.name} is {smallest.row.role}"
        f"{_size(report, smallest)}: it keeps {_share(kept)}.{unsure}"
    )


def _best(report: SweepReport) -> str:
    """Return a sentence on the best student by the first metric or the KL; empty if none was measured."""
    valid = [one for one in report.students if not fault_of(one.row)]
    rated = [(worth, one) for one in valid if (worth := quality(one.row, report.metrics)) is not None]
    if not rated:
        return ""
    best = max(rated, key=lambda pair: pair[0])[1].row
    if report.lead is not None:
        return f" The best is {best.role}, at {_figure(best.scores[report.lead.name], report.lead)}."
    at = f"{best.kl_per_token.mean:.2f}" if best.kl_per_token else ""
    return f" The closest to the teacher is {best.role}, at {at} nats per token."


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
