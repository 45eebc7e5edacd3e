"""The notes of a report: how its figures were measured and how to read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.measures.copying import COPYABLE_WORDS
from stillhouse.evaluation.measures.scoring import EvaluationPrompts
from stillhouse.evaluation.report.answer_warnings import CLEARLY_MORE, MUCH_LONGER, percent
from stillhouse.evaluation.results import MetricColumn, ModelRow
from stillhouse.models.find import can_load_in_process
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.text import GRAM, REPEATED_SHARE


def notes(
    recipe: Recipe,
    student: StudentSettings,
    dataset: Dataset,
    rows: int,
    prompts: EvaluationPrompts,
    metrics: Sequence[MetricColumn],
) -> Iterator[str]:
    """Yield the report's notes; `rows` is the number of held-out completions."""
    yield from measurement_notes(recipe, student, dataset, rows, prompts, metrics)
    yield "White-box and black-box losses are different quantities: compare how they fall, not their values."


def measurement_notes(
    recipe: Recipe,
    student: StudentSettings,
    dataset: Dataset,
    rows: int,
    prompts: EvaluationPrompts,
    metrics: Sequence[MetricColumn],
) -> Iterator[str]:
    """Yield the notes on how the figures were measured."""
    settings = recipe.evaluate
    yield (
        f"Quality is measured on {rows} held-out completions of the teacher, in {settings.dtype}. Intervals are 95 % "
        "percentile bootstraps over prompts (2,000 resamples)."
    )
    if can_load_in_process(recipe.teacher):
        yield "KL and agreement compare full distributions: teacher and student both read the teacher's text."
    elif dataset.manifest.soft and dataset.manifest.soft.draws:
        yield f"KL is estimated from {dataset.manifest.soft.draws} stored random draws of the teacher per token."
    elif dataset.manifest.soft:
        yield f"KL is over the {dataset.manifest.soft.k} stored tokens and one outcome for all other tokens: a lower bound."
    else:
        yield "The teacher returned only text, so KL and agreement cannot be measured."
    yield (
        f"Tokens per second and latency are measured on {settings.latency_prompts} whole answers, one at a time. "
        "Peak memory is that of a process that runs only this model, libraries included."
    )
    yield from _answer_notes(recipe, prompts)
    if metrics:
        yield from _metric_notes(prompts, metrics)
    else:
        yield f"The reference score is the token F1 of the first {prompts.answers_shown} answers."
    if student.quantize:
        yield (
            f"The int8 copy stores its linear layers in 8 bits and computes in {settings.dtype}: weights are "
            "converted when they are used. This saves disk space, but rarely time; the table has its memory."
        )


def vocabulary_notes(
    models: Sequence[ModelRow], recipe: Recipe, dataset: Dataset, *, article: str = "The "
) -> Iterator[str]:
    """Yield a note on the distance of each student with a reduced vocabulary.

    `article` precedes a model's name. Mass measured on top-k labels is a lower bound: their tail may hold more.
    """
    soft = dataset.manifest.soft
    at_least = not can_load_in_process(recipe.teacher) and soft is not None and soft.draws is None
    for model in models:
        if (lost := model.lost_mass) is not None:
            share = f"{'at least ' if at_least else ''}{lost.mean:.2%}"
            yield (
                f"{article}{model.role} has only some of the teacher's tokens: {share} of the teacher's probability "
                f"mass is on tokens that it lacks (95 % interval {lost.low:.2%} to {lost.high:.2%}). Its KL is over "
                "the tokens that both have; if it lacks the teacher's most likely token, the two do not agree."
            )


def _answer_notes(recipe: Recipe, prompts: EvaluationPrompts) -> Iterator[str]:
    """Yield the notes on who answers which prompts, and on how the answers are judged."""
    task = (
        f"each of the {len(prompts.rows)} held-out prompts once, in at most {recipe.label.sampling.max_tokens} tokens"
    )
    if can_load_in_process(recipe.teacher):
        yield f"Every model, including the teacher, answers {task}, by greedy decoding."
    else:
        labels = "labels" if recipe.label.mode == "generate" else "labels, which are the references,"
        yield (
            f"Every student answers {task}, by greedy decoding. The teacher does not run on this machine, so its "
            f"{labels} are used as its answers; rejected labels, truncated ones among them, are not counted."
        )
    yield (
        f"An answer repeats itself if at least {percent(REPEATED_SHARE)} of its {GRAM}-word n-grams occurred "
        "earlier in it, ignoring case and punctuation (a Chinese or Japanese character is a word). It reaches the "
        f"token limit if it has no end token. It is copied if it has at least {COPYABLE_WORDS} words and is, word "
        "for word, a training answer to another prompt."
    )
    yield (
        "A student is broken if its answers repeat themselves, reach the limit or are empty clearly more often than its "
        f"teacher's: by at least {CLEARLY_MORE * 100:.0f} points, with the paired 95 % interval above 0. It runs on "
        f"if they are clearly more than {MUCH_LONGER} times as long in characters. It copies if clearly more of "
        "them are copied."
    )


def _metric_notes(prompts: EvaluationPrompts, metrics: Sequence[MetricColumn]) -> Iterator[str]:
    names = [f"{one.name} ({'lower' if one.lower_is_better else 'higher'} is better)" for one in metrics]
    yield f"On {len(prompts.with_reference)} held-out prompts with a reference: {', '.join(names)}."
    if prompts.without_reference:
        yield f"These metrics leave out {prompts.without_reference} held-out prompts without a reference."
    yield (
        "A difference compares two models on the same prompts, resampled together, so it is more precise than comparing "
        "two intervals of the table. It does not include chance in training; only other seeds show that."
    )
