"""The notes of a report: how its figures were measured and how to read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.measures.copying import COPYABLE_WORDS
from stillhouse.evaluation.measures.scoring import Asked
from stillhouse.evaluation.report.warnings import CLEARLY_MORE, MUCH_LONGER, percent
from stillhouse.evaluation.results import MetricColumn, ModelRow
from stillhouse.models.files import can_load_in_process
from stillhouse.recipe.load import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.text import GRAM, REPEATED_SHARE


def notes(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, rows: int, asked: Asked, metrics: Sequence[MetricColumn]
) -> Iterator[str]:
    """Yield the report's notes; `rows` is the number of held-out completions."""
    yield from measurement_notes(recipe, student, dataset, rows, asked, metrics)
    yield "Losses of white-box and black-box students are different quantities: compare their course, not their height."


def measurement_notes(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, rows: int, asked: Asked, metrics: Sequence[MetricColumn]
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
        yield f"KL is against {dataset.manifest.soft.draws} stored random draws from the teacher a token: an estimate."
    elif dataset.manifest.soft:
        yield f"KL is over the {dataset.manifest.soft.k} stored tokens and one outcome for all others: a lower bound."
    else:
        yield "The teacher gave text alone: there is no KL and no agreement."
    yield (
        f"Tokens a second and latency are of {settings.latency_prompts} whole answers, one at a time; peak memory is that "
        "of a process which does nothing else, libraries included."
    )
    yield from _of_the_answers(recipe, asked)
    if metrics:
        yield from _of_the_task(asked, metrics)
    else:
        yield f"The reference score is the token F1 of the first {asked.shown} answers."
    if student.quantize:
        yield (
            f"The int8 copy keeps its linear layers in 8 bits and computes in {settings.dtype}: weights are turned back as "
            "they are used. That saves space on disk, and seldom time; what it does to memory is in the table."
        )


def of_the_vocabularies(
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
                f"{article}{model.role} has a part of the teacher's tokens: {share} of the teacher's probability mass is "
                f"on tokens that it lacks (95 % interval {lost.low:.2%} to {lost.high:.2%}). Its KL is over the tokens "
                "that both have; where it lacks the teacher's most likely token, the two do not agree."
            )


def _of_the_answers(recipe: Recipe, asked: Asked) -> Iterator[str]:
    """Yield the notes on who answers which prompts, and on how the answers are judged."""
    prompts = (
        f"each of the {len(asked.rows)} held-out prompts once, in at most {recipe.label.sampling.max_tokens} tokens"
    )
    if can_load_in_process(recipe.teacher):
        yield f"Every model answers {prompts}, greedily, the teacher too."
    else:
        labels = "labels" if recipe.label.mode == "generate" else "labels, which are the references,"
        yield (
            f"Every student answers {prompts}, greedily. The teacher does not run here, and its {labels} stand for it: "
            "answers that were rejected when labelled, cut ones among them, are not counted."
        )
    yield (
        f"An answer repeats itself when at least {percent(REPEATED_SHARE)} of its {GRAM}-word n-grams occurred earlier in "
        "it, without case and punctuation (a Chinese or Japanese character is a word). It reaches the token limit when it "
        f"has no end token. It is copied when it has at least {COPYABLE_WORDS} words and is, word for word, a training "
        "answer to another prompt."
    )
    yield (
        "A student is called broken when its answers repeat themselves, reach the limit or are empty clearly more often "
        f"than its teacher's: by at least {CLEARLY_MORE * 100:.0f} points, with the paired 95 % interval above 0. It runs "
        f"on when they are clearly more than {MUCH_LONGER} times as long in characters; it copies when clearly more of "
        "them are copied."
    )


def _of_the_task(asked: Asked, metrics: Sequence[MetricColumn]) -> Iterator[str]:
    names = [f"{one.name} ({'lower' if one.lower_is_better else 'higher'} is better)" for one in metrics]
    yield f"Of {len(asked.scored)} held-out prompts with a reference: {', '.join(names)}."
    if asked.without:
        yield f"{asked.without} held-out prompts have no reference, and are left out of these."
    yield (
        "A difference is between two models on the same prompts, resampled together: it says more than whether two "
        "intervals of the table overlap. Chance in training is not in it; only other seeds show that."
    )
