"""Detect students with bad answers, and word the warnings of the report.

    warnings(report)    # sentences that open the report; [] if there is no warning
    fault_of(row)       # "broken", "runs on" or "copies"; "" if there is no warning

A student is compared with its teacher on the same prompts. It is broken if its answers repeat themselves, reach the token
limit or are empty clearly more often: the paired 95 % interval of the difference is above 0, and the difference is at least
`CLEARLY_MORE` (5 points). It runs on if its answers are clearly more than `MUCH_LONGER` (1.5) times as long: the interval
of the ratio is above 1.5. Length is in characters, because tokenizers differ. It copies if the share of copied answers is
clearly higher, by the same rule as the other shares.
"""

from __future__ import annotations

from stillhouse.evaluation.report.tables import ComparedModels
from stillhouse.evaluation.results import AnswerQuality, DifferenceFromTeacher, Interval, ModelRow, Report
from stillhouse.text import enumerated

CLEARLY_MORE = 0.05  # of the answers, 0..1
MUCH_LONGER = 1.5  # times the teacher's characters


def warnings(report: Report) -> list[str]:
    """Return the warnings about the student or, if it has none, about its int8 copy."""
    if own := warning_of(report, report.student, "This student"):
        return [own]
    copies = [warning_of(report, row, "The student's int8 copy") for row in report.models if row.is_int8]
    return [one for one in copies if one]


def warning_of(report: ComparedModels, row: ModelRow, who: str = "This student") -> str:
    """Return the warning about one model, a sentence or two; empty if there is none, or answers were not measured.

    `who` is the subject of the sentences.
    """
    quality = row.answer_quality
    if quality is None or quality.from_teacher is None:
        return ""
    other = "its teacher" if any(one.role == "teacher" for one in report.models) else "its labels"
    sentences = [_broken(quality, quality.from_teacher, who, other), _copies(quality, quality.from_teacher, who, other)]
    return " ".join(one for one in sentences if one)


def fault_of(row: ModelRow) -> str:
    """Return the most serious fault of a model: `broken`, `runs on` or `copies`; empty exactly if `warning_of` is."""
    differences = row.answer_quality.from_teacher if row.answer_quality else None
    if differences is None:
        return ""
    if any(_clearly_more(one) for one in (differences.repeats, differences.cut, differences.empty)):
        return "broken"
    if _much_longer(differences):
        return "runs on"
    return "copies" if _clearly_more(differences.copied) else ""


def percent(share: float) -> str:
    """Format a share: 0.384 -> `38 %`; below 1 %, with one decimal place."""
    return f"{share:.1%}".replace("%", " %") if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def _broken(quality: AnswerQuality, differences: DifferenceFromTeacher, who: str, other: str) -> str:
    shares = [
        (own, difference, what)
        for own, difference, what in (
            (quality.repeats, differences.repeats, "repeat themselves"),
            (quality.cut, differences.cut, "reach the token limit"),
            (quality.empty, differences.empty, "are empty"),
        )
        if _clearly_more(difference)
    ]
    parts = [
        f"{percent(own.mean)}{'' if place else ' of its answers'} {what} {_in_parentheses(own, difference, other)}"
        for place, (own, difference, what) in enumerate(shares)
    ]
    if differences.length_ratio is not None and _much_longer(differences):
        whose = "its teacher's" if other == "its teacher" else other
        parts.append(f"its answers are {differences.length_ratio.mean:.1f} times as long as {whose}")
    if not parts:
        return ""
    return f"{who} {'is broken' if shares else 'runs on'}: {enumerated(parts)}."


def _copies(quality: AnswerQuality, differences: DifferenceFromTeacher, who: str, other: str) -> str:
    if not _clearly_more(differences.copied):
        return ""
    return (
        f"{who} copies: {percent(quality.copied.mean)} of its answers are, word for word, training answers to other "
        f"prompts {_in_parentheses(quality.copied, differences.copied, other)}."
    )


def _clearly_more(difference: Interval) -> bool:
    return difference.low > 0 and difference.mean >= CLEARLY_MORE


def _much_longer(differences: DifferenceFromTeacher) -> bool:
    return differences.length_ratio is not None and differences.length_ratio.low > MUCH_LONGER


def _in_parentheses(own: Interval, difference: Interval, other: str) -> str:
    """Return the other's share in parentheses, computed as the model's share minus the difference."""
    return f"({other}: {percent(max(0.0, round(own.mean - difference.mean, 9)))})"
