"""When a student is broken, and how the report says so.

    warnings(report)    # [] where all is well; else sentences that come before everything else
    fault_of(row)       # "" where all is well; else a word

A student is compared with its teacher on the same prompts. It is broken when its answers repeat themselves, run into the
token limit or are empty clearly more often: the paired 95 % interval of the difference lies above 0, and the difference is
at least `CLEARLY_MORE` (5 points). It runs on when its answers are clearly more than `MUCH_LONGER` (1.5) times as long: the
interval of the ratio lies above 1.5; characters are counted, since two tokenizers count differently. It copies when the
share of copied answers is clearly higher, by the same rule as the other shares.
"""

from __future__ import annotations

from stillhouse.evaluation.report.tables import Compared
from stillhouse.evaluation.results import AnswerQuality, FromTeacher, Interval, ModelRow, Report

CLEARLY_MORE = 0.05  # of the answers, 0..1
MUCH_LONGER = 1.5  # times the teacher's characters


def warnings(report: Report) -> list[str]:
    """What is wrong with the student; with its int8 copy where the student itself is sound."""
    if own := warning_of(report, report.student, "This student"):
        return [own]
    copies = [warning_of(report, row, "The student's int8 copy") for row in report.models if row.is_int8]
    return [one for one in copies if one]


def warning_of(report: Compared, row: ModelRow, who: str = "This student") -> str:
    """What is wrong with one model, in a sentence or two; empty where all is well or nothing was measured.

    `who` begins them.
    """
    quality = row.answer_quality
    if quality is None or quality.from_teacher is None:
        return ""
    other = "its teacher" if any(one.role == "teacher" for one in report.models) else "its labels"
    sentences = [_broken(quality, quality.from_teacher, who, other), _copies(quality, quality.from_teacher, who, other)]
    return " ".join(one for one in sentences if one)


def fault_of(row: ModelRow) -> str:
    """The gravest that is wrong with a model: `broken`, `runs on` or `copies`; empty exactly where `warning_of` is."""
    less = row.answer_quality.from_teacher if row.answer_quality else None
    if less is None:
        return ""
    if any(_clearly_more(one) for one in (less.repeats, less.cut, less.empty)):
        return "broken"
    if _much_longer(less):
        return "runs on"
    return "copies" if _clearly_more(less.copied) else ""


def percent(share: float) -> str:
    """0.384 -> 38 %; a share below 1 % keeps a digit."""
    return f"{share:.1%}".replace("%", " %") if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def _broken(quality: AnswerQuality, less: FromTeacher, who: str, other: str) -> str:
    shares = [
        (own, difference, what)
        for own, difference, what in (
            (quality.repeats, less.repeats, "repeat themselves"),
            (quality.cut, less.cut, "run into the token limit"),
            (quality.empty, less.empty, "are empty"),
        )
        if _clearly_more(difference)
    ]
    parts = [
        f"{percent(own.mean)}{'' if place else ' of its answers'} {what} {_beside(own, difference, other)}"
        for place, (own, difference, what) in enumerate(shares)
    ]
    if less.length_ratio is not None and _much_longer(less):
        whose = "its teacher's" if other == "its teacher" else other
        parts.append(f"its answers are {less.length_ratio.mean:.1f} times as long as {whose}")
    if not parts:
        return ""
    return f"{who} {'is broken' if shares else 'runs on'}: {_listed(parts)}."


def _copies(quality: AnswerQuality, less: FromTeacher, who: str, other: str) -> str:
    if not _clearly_more(less.copied):
        return ""
    return (
        f"{who} copies: {percent(quality.copied.mean)} of its answers are, word for word, training answers to other "
        f"prompts {_beside(quality.copied, less.copied, other)}."
    )


def _clearly_more(difference: Interval) -> bool:
    return difference.low > 0 and difference.mean >= CLEARLY_MORE


def _much_longer(less: FromTeacher) -> bool:
    return less.length_ratio is not None and less.length_ratio.low > MUCH_LONGER


def _beside(own: Interval, difference: Interval, other: str) -> str:
    """The other's share is the model's own less the difference."""
    return f"({other}: {percent(max(0.0, round(own.mean - difference.mean, 9)))})"


def _listed(parts: list[str]) -> str:
    """`a`, `a, and b`, `a, b, and c`"""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
