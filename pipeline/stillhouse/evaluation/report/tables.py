"""A report's tables as text, shared by the terminal, Markdown, the HTML page, model cards and Prefect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stillhouse.evaluation.results import AnswerQuality, Difference, Interval, MetricColumn, ModelRow, Report
from stillhouse.formatting import count_in_words, megabytes_in_words
from stillhouse.student.finished.rounds import RoundFigures

DASH = "–"
UNCLEAR = "not distinguishable"  # the interval of a difference contains 0


class ComparedModels(Protocol):
    """A report with a row for each model."""

    @property
    def models(self) -> tuple[ModelRow, ...]:
        """The rows."""

    @property
    def metrics(self) -> tuple[MetricColumn, ...]:
        """The task metrics, the most important first."""


def comparison_table(report: ComparedModels) -> list[list[str]]:
    """Return headers, then one row per model: size and task metrics, then cost, then distance from the teacher."""
    headers = ["model", "parameters", "MB", *(one.name for one in report.metrics)]
    headers += ["peak MB", "tokens/s", "p50 ms", "p95 ms", "KL/token", "agreement", "perplexity"]
    scored = any(row.reference_score for row in report.models)
    rows = [
        _cells(row, report.metrics) + ([format_interval(row.reference_score, 2)] if scored else [])
        for row in report.models
    ]
    return [headers + (["reference F1"] if scored else []), *rows]


def differences_table(report: Report) -> list[list[str]]:
    """Return headers, then the student's scores minus each other model's, and whether the difference is clear."""
    headers = ["student minus", *(one.name for one in report.metrics)]
    return [headers, *([row.role, *(_difference(row, one) for one in report.metrics)] for row in report.differences)]


def answer_quality_table(report: ComparedModels) -> list[list[str]]:
    """Return headers, then each model's answer quality; empty if it was not measured."""
    if not any(row.answer_quality for row in report.models):
        return []
    headers = ["model", "repeat themselves", "reach the token limit", "empty", "copied", "mean tokens"]
    return [headers, *([row.role, *_answer_quality_cells(row.answer_quality)] for row in report.models)]


def rounds_table(rounds: Sequence[RoundFigures]) -> list[list[str]]:
    """Return headers, then one row per round of an on-policy student; empty if there is none."""
    if not rounds:
        return []
    headers = ["round", "held-out KL after it", "KL, teacher's text", "reverse KL, teacher's text"]
    headers += ["KL, own text", "reverse KL, own text", "overlap", "its mass", "entropy"]
    headers += ["tokens", "repeat themselves", "reach the token limit", "seconds"]
    return [headers, *(_round_cells(one) for one in rounds)]


def _round_cells(one: RoundFigures) -> list[str]:
    teacher, own, written = one.health.teacher_text, one.health.own_text, one.health.written
    of_teacher, of_own = [DASH] * 2, [DASH] * 5
    if teacher is not None:
        of_teacher = [f"{teacher.forward_kl:.2f}", f"{teacher.reverse_kl:.2f}"]
    if own is not None:
        of_own = [
            f"{own.forward_kl:.2f}",
            f"{own.reverse_kl:.2f}",
            f"{100 * own.overlap:.0f} %",
            f"{100 * own.teacher_mass:.0f} %",
            f"{own.entropy:.2f}",
        ]
    return [
        f"{one.number}, kept" if one.kept else str(one.number),
        DASH if one.held_out_kl is None else f"{one.held_out_kl:.2f}",
        *of_teacher,
        *of_own,
        f"{written.tokens:.1f}",
        f"{100 * written.repeats:.1f} %",
        f"{100 * written.cut:.1f} %",
        DASH if one.seconds is None else f"{one.seconds.total:.0f}",
    ]


def classify_difference(difference: Interval, *, lower_is_better: bool) -> str:
    """Return whether a difference (student minus other) makes the student `better`, `worse` or `not distinguishable`."""
    if difference.low <= 0 <= difference.high:
        return UNCLEAR
    return "better" if (difference.low > 0) != lower_is_better else "worse"


def _cells(row: ModelRow, metrics: tuple[MetricColumn, ...]) -> list[str]:
    return [
        row.role,
        DASH if row.parameters is None else count_in_words(row.parameters).replace(" million", " M"),
        DASH if row.megabytes is None else megabytes_in_words(row.megabytes),
        *(format_interval(row.scores.get(one.name), one.digits, percent=one.percent) for one in metrics),
        _whole(row.peak_memory_megabytes),
        format_interval(row.tokens_per_second, 1),
        _whole(row.latency_p50_ms),
        _whole(row.latency_p95_ms),
        format_interval(row.kl_per_token, 2),
        format_interval(row.agreement, 1, percent=True),
        format_interval(row.perplexity, 1),
    ]


def _answer_quality_cells(quality: AnswerQuality | None) -> list[str]:
    if quality is None:
        return [DASH] * 5
    shares = (quality.repeats, quality.cut, quality.empty, quality.copied)
    return [*(format_interval(share, 1, percent=True) for share in shares), format_interval(quality.tokens, 1)]


def _whole(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def format_interval(interval: Interval | None, digits: int, *, percent: bool = False) -> str:
    """Format a figure as `2.57 [2.35, 2.77]`; a dash if it was not measured, no brackets if the interval is a point."""
    if interval is None:
        return DASH
    scale, unit = (100, " %") if percent else (1, "")
    mean, low, high = (_number(value * scale, digits) for value in (interval.mean, interval.low, interval.high))
    return f"{mean}{unit}" if interval.low == interval.high else f"{mean}{unit} [{low}, {high}]"


def _difference(row: Difference, metric: MetricColumn) -> str:
    """Format a difference as `+1.2 [+0.4, +2.0] better`; percentages in points."""
    interval = row.scores[metric.name]
    scale = 100 if metric.percent else 1
    mean, low, high = (
        f"{value * scale:+,.{metric.digits}f}".replace("-", "−")
        for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low}, {high}] {classify_difference(interval, lower_is_better=metric.lower_is_better)}"


def _number(value: float, digits: int) -> str:
    if abs(value) >= 1e5:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.{digits if abs(value) < 1000 else 0}f}"
