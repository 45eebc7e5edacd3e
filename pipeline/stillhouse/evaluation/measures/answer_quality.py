"""Quality of a model's answers: how many repeat themselves, reach the token limit, are empty or are copied.

    answer_qualities(written, copied, teacher=0)    # one AnswerQuality per model, with its difference from the teacher

A student can be close to its teacher token by token on the teacher's text, and still repeat itself when it generates from
its own output. These figures need only the answers: no reference and no metric.

`stillhouse.text.repeats_itself` decides whether an answer repeats itself; the filter `repetition` rejects completions by
the same measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.evaluation.measures.bootstrap import Floats, interval_of_figures, resampled_totals
from stillhouse.evaluation.results import AnswerQuality, DifferenceFromTeacher
from stillhouse.records import Completion
from stillhouse.text import repeats_itself

_REPEATS, _CUT, _EMPTY, _COPIED, _TOKENS, _CHARACTERS = range(6)  # columns of one model's statistics


@dataclass(frozen=True)
class ModelAnswers:
    """One model's answers, in the order of the prompts."""

    texts: tuple[str, ...]
    tokens: tuple[int | None, ...]  # length of each answer, end token included; None: not counted
    cut: tuple[bool, ...]  # whether each answer reached the token limit


def answers_from_labels(rows: Sequence[Completion]) -> ModelAnswers:
    """Return the stored labels as the answers of a teacher that does not run on this machine."""
    return ModelAnswers(
        texts=tuple(row.text for row in rows),
        tokens=tuple(row.completion_tokens for row in rows),
        cut=tuple(row.finish_reason == "length" for row in rows),
    )


def answer_qualities(
    written: Sequence[ModelAnswers], copied: Sequence[Sequence[bool]], teacher: int
) -> list[AnswerQuality]:
    """Return the answer quality of each model, compared with the model at index `teacher` on the same prompts.

    Args:
        written: each model's answers.
        copied: for each model, whether each answer is a copy (copying.py).
        teacher: the teacher's index in `written`.
    """
    columns = np.stack([_statistics(one, own) for one, own in zip(written, copied, strict=True)], axis=1)
    prompts, models, kinds = columns.shape
    flat = columns.reshape(prompts, models * kinds)
    totals = np.concatenate([flat.sum(axis=0, keepdims=True), resampled_totals(flat)])  # all prompts, then resamples
    means = totals.reshape(-1, models, kinds).transpose(1, 2, 0) / prompts  # (models, kinds, 1 + resamples)
    return [
        AnswerQuality(
            repeats=interval_of_figures(own[_REPEATS]),
            cut=interval_of_figures(own[_CUT]),
            empty=interval_of_figures(own[_EMPTY]),
            copied=interval_of_figures(own[_COPIED]),
            tokens=None if None in one.tokens else interval_of_figures(own[_TOKENS]),
            from_teacher=None if place == teacher else _from_teacher(own, means[teacher]),
        )
        for place, (one, own) in enumerate(zip(written, means, strict=True))
    ]


def _statistics(one: ModelAnswers, copied: Sequence[bool]) -> Floats:
    """Return one row of statistics per answer: (prompts, kinds)."""
    rows = [
        (repeats_itself(text), cut, not text.strip(), copy, tokens or 0, len(text.strip()))
        for text, tokens, cut, copy in zip(one.texts, one.tokens, one.cut, copied, strict=True)
    ]
    return np.asarray(rows, dtype=np.float64)


def _from_teacher(own: Floats, teacher: Floats) -> DifferenceFromTeacher:
    """Return the paired differences; `own` and `teacher` are (kinds, 1 + resamples)."""
    differences = own - teacher
    long_enough = teacher[_CHARACTERS].min() > 0
    return DifferenceFromTeacher(
        repeats=interval_of_figures(differences[_REPEATS]),
        cut=interval_of_figures(differences[_CUT]),
        empty=interval_of_figures(differences[_EMPTY]),
        copied=interval_of_figures(differences[_COPIED]),
        length_ratio=interval_of_figures(own[_CHARACTERS] / teacher[_CHARACTERS]) if long_enough else None,
    )
