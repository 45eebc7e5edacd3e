"""What a reader must know to believe a report's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.config import Recipe
from pipeline.dataset.store import Dataset
from pipeline.evaluation.results import MetricColumn, ModelRow
from pipeline.evaluation.scoring import Asked
from pipeline.model_files import runs_here
from pipeline.student_settings import StudentSettings


def notes(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, rows: int, asked: Asked, metrics: Sequence[MetricColumn]
) -> Iterator[str]:
    """The report's notes; `rows` is the number of held-out completions."""
    settings = recipe.evaluate
    yield (
        f"Quality is measured on {rows} held-out completions of the teacher, in {settings.dtype}. Intervals are 95 % "
        "percentile bootstraps over prompts (2,000 resamples)."
    )
    if runs_here(recipe.teacher):
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
    if metrics:
        yield from _of_the_task(recipe, asked, metrics)
    else:
        yield (
            "Students answer greedily; the teacher's answers are its labels. The reference score is the token F1 of the "
            f"first {settings.answers} answers."
        )
    if student.quantize:
        yield (
            f"The int8 copy keeps its linear layers in 8 bits and computes in {settings.dtype}: weights are turned back as "
            "they are used. That saves space on disk, and seldom time; what it does to memory is in the table."
        )
    yield "Losses of white-box and black-box students are different quantities: compare their course, not their height."


def of_the_vocabularies(models: Sequence[ModelRow], *, at_least: bool) -> Iterator[str]:
    """How to read the distance of a student with a part of the teacher's tokens; nothing where all have all of them.

    `at_least` says that the mass was measured on top-k labels, whose tail may hold more of it.
    """
    for model in models:
        if (lost := model.lost_mass) is not None:
            share = f"{'at least ' if at_least else ''}{lost.mean:.2%}"
            yield (
                f"The {model.role} has a part of the teacher's tokens: {share} of the teacher's probability mass is on "
                f"tokens that it lacks (95 % interval {lost.low:.2%} to {lost.high:.2%}). Its KL is over the tokens that "
                "both have; where it lacks the teacher's most likely token, the two do not agree."
            )


def _of_the_task(recipe: Recipe, asked: Asked, metrics: Sequence[MetricColumn]) -> Iterator[str]:
    names = [f"{one.name} ({'lower' if one.lower_is_better else 'higher'} is better)" for one in metrics]
    if runs_here(recipe.teacher):
        who = "Every model answers them greedily, the teacher too."
    elif recipe.label.mode == "generate":
        who = "Every student answers them greedily; the teacher does not run here, and its labels stand for it."
    else:
        who = "Every student answers them greedily; the teacher does not run here, and its labels are the references."
    yield f"Of {len(asked.scored)} held-out prompts with a reference: {', '.join(names)}. {who}"
    if asked.without:
        yield f"{asked.without} held-out prompts have no reference, and are left out of these."
    yield (
        "A difference is between two models on the same prompts, resampled together: it says more than whether two "
        "intervals of the table overlap. Chance in training is not in it; only other seeds show that."
    )
