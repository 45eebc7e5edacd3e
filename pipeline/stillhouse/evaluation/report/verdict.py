"""The verdict of a report in words; cautious where a difference may be due to chance."""

from __future__ import annotations

from collections.abc import Iterator

from stillhouse.evaluation.report.tables import UNCLEAR, classify_difference, format_interval
from stillhouse.evaluation.results import Interval, MetricColumn, ModelRow, Report


def findings(report: Report) -> str:
    """Compare the student with the teacher and the baselines, by the first task metric or, without metrics, by the KL."""
    student = report.student
    others = [row for row in report.models if row is not student and not row.is_int8]
    teacher = next((row for row in others if row.role == "teacher"), None)
    sentences = [_cost(student, teacher)] if teacher else []
    if report.metrics:
        sentences += _by_metric(report, report.metrics[0], teacher)
    if student.kl_per_token is None:
        sentences.append("The teacher returned no log-probabilities, so the KL cannot be measured.")
    else:
        sentences.append(f"Its KL to the teacher is {student.kl_per_token.mean:.2f} nats per token.")
        if not report.metrics:
            sentences += [
                _nearer(student.kl_per_token, row.kl_per_token, row.role)
                for row in others
                if row is not teacher and row.kl_per_token
            ]
    copies = [_copy(row, student) for row in report.models if row.is_int8]
    return " ".join(one for one in [*sentences, *copies] if one)


def _cost(student: ModelRow, teacher: ModelRow) -> str:
    """Return a sentence on size and speed; empty if the teacher's are unknown."""
    faster = _times(student.tokens_per_second, teacher.tokens_per_second)
    if not (student.parameters and teacher.parameters and faster):
        return ""
    return (
        f"The {student.role} has {student.parameters / teacher.parameters:.0%} of the teacher's parameters and writes "
        f"{faster} times as many tokens per second."
    )


def _by_metric(report: Report, metric: MetricColumn, teacher: ModelRow | None) -> Iterator[str]:
    """Yield sentences that compare the student's score with the teacher's, then with every baseline's."""
    student, role = report.student, report.student.role

    def figure(row: ModelRow) -> str:
        return format_interval(row.scores[metric.name], metric.digits, percent=metric.percent).partition(" [")[0]

    against = {
        row.role: classify_difference(row.scores[metric.name], lower_is_better=metric.lower_is_better)
        for row in report.differences
    }
    if teacher is None:
        yield f"The {metric.name} of the {role} is {figure(student)}."
    else:
        relation = {"better": "better than", "worse": "worse than", UNCLEAR: f"{UNCLEAR} from"}[against["teacher"]]
        kept = report.kept.get(metric.name)
        keeps = f": it keeps {kept.mean:.1%} of it, between {kept.low:.1%} and {kept.high:.1%}" if kept else ""
        yield f"The {metric.name} of the {role} is {figure(student)}, {relation} the teacher's {figure(teacher)}{keeps}."
    for row in report.models:
        if row is student or row is teacher or row.is_int8:
            continue
        if against[row.role] == UNCLEAR:
            yield f"It is {UNCLEAR} from the {row.role}, at {figure(row)}."
        else:
            other = "worse" if against[row.role] == "better" else "better"
            yield f"The {row.role}, at {figure(row)}, is clearly {other}."


def _copy(copy: ModelRow, student: ModelRow) -> str:
    faster = _times(copy.tokens_per_second, student.tokens_per_second)
    if not (copy.megabytes and student.megabytes and faster):
        return ""
    kl = f"; its KL to the teacher is {copy.kl_per_token.mean:.2f} nats per token" if copy.kl_per_token else ""
    return (
        f"The student's int8 copy takes {copy.megabytes / student.megabytes:.0%} of its disk space and writes "
        f"{faster} times as many tokens per second{kl}."
    )


def _times(one: Interval | None, other: Interval | None) -> str:
    return f"{one.mean / other.mean:.1f}" if one and other else ""


def _nearer(student: Interval, baseline: Interval, role: str) -> str:
    if student.high < baseline.low:
        return f"The {role}, at {baseline.mean:.2f}, is clearly farther away."
    if student.low > baseline.high:
        return f"The {role}, at {baseline.mean:.2f}, is clearly nearer."
    return f"It is {UNCLEAR} from the {role}, at {baseline.mean:.2f}: their intervals overlap."
