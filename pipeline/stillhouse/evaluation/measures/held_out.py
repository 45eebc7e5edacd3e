"""The held-out rows that reports are measured on, and their facts about the dataset; shared by student and sweep reports.

held_out = read_held_out(recipe, dataset, subjects)
models = measured_models(subjects, held_out, recipe, learnt_from, progress)
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from stillhouse.dataset.columns import completion_at, prompt_at
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused, RecipeError
from stillhouse.evaluation.measures.chat_templates import select_rendered
from stillhouse.evaluation.measures.copying import training_answers
from stillhouse.evaluation.measures.measurement_task import MeasurementTask, ModelToMeasure
from stillhouse.evaluation.measures.models import (
    MeasuredModels,
    measure_all,
    with_answer_quality,
    with_labels,
    with_scores,
)
from stillhouse.evaluation.measures.overlap import find_overlap
from stillhouse.evaluation.measures.scoring import EvaluationPrompts, require_references, select_prompts
from stillhouse.evaluation.metrics.base import NamedMetric, open_metrics
from stillhouse.evaluation.results import Answers, LabelSummary, Overlap
from stillhouse.progress import Progress
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Completion, Split
from stillhouse.student.finished.card import software_versions
from stillhouse.student.finished.folder import StudentCard


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows, the metrics, and the prompts that every model answers."""

    teacher: str  # that labelled the rows
    task: MeasurementTask
    metrics: tuple[NamedMetric, ...]
    prompts: EvaluationPrompts


def read_held_out(recipe: Recipe, dataset: Dataset, subjects: Sequence[ModelToMeasure]) -> HeldOut:
    """Return the held-out rows to measure on: those whose prompt every model's chat template renders.

    Raises:
        RecipeError: no held-out prompt has the reference that a metric needs, a metric's settings are wrong, or a model's
            chat template refuses every prompt.
        DatasetRefused: the dataset is damaged, or has no held-out rows.
    """
    dataset.check()
    require_held_out(recipe, dataset)
    rows = select_rendered(tuple(_rows(dataset, recipe.evaluate.limit)), subjects)
    metrics = open_metrics(recipe.evaluate.metrics)
    prompts = select_prompts(rows, recipe.evaluate)
    require_references(recipe, metrics, prompts)
    task = MeasurementTask(
        rows=rows,
        settings=recipe.evaluate,
        max_tokens=recipe.label.sampling.max_tokens,
        vocabulary=dataset.manifest.teacher.vocabulary_size or 0,
        soft=dataset.manifest.soft is not None,
        prompts=prompts.rows,
    )
    return HeldOut(dataset.manifest.teacher.model, task, tuple(metrics), prompts)


def require_held_out(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse a dataset that no report can be made of; a run calls it before it trains the students.

    Raises:
        RecipeError: the recipe holds no prompt out, or none of the few that it has.
        DatasetRefused: every answer to a held-out prompt was rejected.
    """
    if dataset.manifest.rows.get("validation"):
        return
    rejected = sum(one.rows for one in dataset.manifest.files if one.kind == "rejected" and "/validation-" in one.path)
    error = DatasetRefused if rejected else RecipeError
    raise error(
        f"dataset {dataset.manifest.label} has no validation rows to measure on"
        + (f": all {rejected} answers to held-out prompts were rejected" if rejected else ""),
        setting="prompts.holdout",
        value=recipe.prompts.holdout,
        fix=("loosen `quality`, or " if rejected else "")
        + "set it to a larger share such as 0.2, and run again: stored answers are reused",
    )


def measured_models(
    subjects: Sequence[ModelToMeasure],
    held_out: HeldOut,
    recipe: Recipe,
    learnt_from: Iterable[Dataset],
    progress: Progress,
) -> MeasuredModels:
    """Measure every model: its cost, its distance from the teacher, the quality of its answers, and its scores.

    `learnt_from` are the datasets that the students learnt from; copied answers are looked up in their training splits.

    Raises:
        RecipeError: a metric returns statistics or scores of a wrong shape, or that are not finite.
    """
    prompts = held_out.prompts
    once = {one.manifest.plan_sha256: one for one in learnt_from}
    measured = with_labels(measure_all(subjects, held_out.task, progress), prompts, recipe, held_out.teacher)
    return with_scores(
        with_answer_quality(measured, prompts, training_answers(once.values())), held_out.metrics, prompts
    )


def shown_answers(prompts: EvaluationPrompts, models: MeasuredModels) -> tuple[Answers, ...]:
    """Return the first `answers_shown` prompts with every model's answer."""
    return tuple(
        Answers(row.prompt.text, row.prompt.reference, tuple(written.texts[place] for written in models.answers))
        for place, row in enumerate(prompts.rows[: prompts.answers_shown])
    )


def overlap_of(dataset: Dataset, threshold: float) -> Overlap:
    """Return the overlap of the held-out prompts with the training prompts."""
    return find_overlap(_prompt_texts(dataset, "validation"), _prompt_texts(dataset, "train"), threshold)


def label_summary(dataset: Dataset) -> LabelSummary:
    """Return the summary of a labelled dataset."""
    manifest = dataset.manifest
    return LabelSummary(
        dataset=manifest.label,
        train_rows=manifest.rows.get("train", 0),
        validation_rows=manifest.rows.get("validation", 0),
        rejected=manifest.rejected,
        prompt_tokens=manifest.totals.prompt_tokens,
        completion_tokens=manifest.totals.completion_tokens,
        cost_usd=manifest.totals.cost_usd,
        soft=str(manifest.soft) if manifest.soft else None,
    )


def versions_of(card: StudentCard) -> dict[str, str]:
    """Return the versions of the software, and the machine, that the figures depend on."""
    installed = software_versions() | ({"torchao": card.int8.torchao} if card.int8 else {})
    return installed | {"machine": f"{platform.machine()}, {os.cpu_count()} processors"}


def _rows(dataset: Dataset, limit: int) -> Iterator[Completion]:
    rows = ((batch, index) for batch in dataset.batches("validation") for index in range(batch.num_rows))
    for _, (batch, index) in zip(range(limit), rows, strict=False):
        yield completion_at(batch, index)


def _prompt_texts(dataset: Dataset, split: Split) -> list[str]:
    """Return the distinct prompt texts of a split; a prompt with several samples counts once."""
    texts = (prompt_at(batch, index).text for batch in dataset.batches(split) for index in range(batch.num_rows))
    return list(dict.fromkeys(texts))
