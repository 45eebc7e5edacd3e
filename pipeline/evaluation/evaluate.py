"""Measure teacher, baselines and student on the held-out prompts, and make the report.

    evaluate(recipe, student, dataset)     ->  data/reports/<recipe>/report.{md,html,json}

Each model is run in a process of its own (measure.py), then all of them are held against the teacher in one more
(distance.py). A report that stands already for this dataset, these students and these settings is not made again. Its
figures stand in the students' own cards too.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.columns import completion_at, prompt_at
from pipeline.config import Recipe
from pipeline.dataset.store import Dataset, dataset_folder, open_dataset
from pipeline.errors import DatasetMissing, RecipeError, StudentMissing
from pipeline.evaluate_settings import EvaluateSettings
from pipeline.evaluation.copying import training_answers
from pipeline.evaluation.metrics.base import open_metrics
from pipeline.evaluation.models import described, measure_all, scored, with_labels
from pipeline.evaluation.notes import notes, of_the_vocabularies
from pipeline.evaluation.overlap import find_overlap
from pipeline.evaluation.report import ReportFiles, write_report
from pipeline.evaluation.results import Answers, Curve, LabelSummary, Overlap, Report
from pipeline.evaluation.scoring import asked_rows, refuse_without_references
from pipeline.evaluation.subject import Subject, Task
from pipeline.evaluation.tables import answer_quality_table, comparison_table
from pipeline.evaluation.warnings import warning_of
from pipeline.live_teacher import teacher_options
from pipeline.model_files import ModelFiles, find_model, runs_here, teacher_files
from pipeline.progress import Progress, silent
from pipeline.records import Completion, Split, content_hash
from pipeline.student.card import Figures, software_versions, write_cards
from pipeline.student.folder import StudentCard, StudentFolder, Variant, read_card, student_folder
from pipeline.student.quantize import require_torchao
from pipeline.student.start.renumbering import renumbering_of, shares_tokenizer
from pipeline.student_settings import StudentSettings

_STORED = TypeAdapter(Report)
BEFORE = "teacher before fine-tuning"
_WITHOUT_EFFECT = {"reports", "batch_size"}  # on the figures
_FIGURES = 2  # goes up when other things are measured: older reports are then made again


@dataclass(frozen=True)
class EvaluationResult:
    """The report, where it lies, and whether it was measured now or stood there already."""

    report: Report
    files: ReportFiles
    fresh: bool


def evaluate(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, progress: Progress = silent
) -> EvaluationResult:
    """See the module's docstring.

    Raises:
        RecipeError: nothing was held out, no held-out prompt has the reference that a metric needs, a metric is wrong, or
            the student's copy needs torchao, which is not installed.
        StudentMissing: a student or baseline of this recipe has not been trained.
        DatasetRefused: the dataset is damaged.
    """
    students = _students(recipe, student, dataset)
    key = content_hash(
        [
            [place.key for place in students] + (["int8"] if student.quantize else []) + _told_of_its_start(recipe),
            dataset.manifest.plan_sha256,
            key_of_settings(recipe.evaluate),
            _FIGURES,
        ]
    )
    folder = Path(recipe.evaluate.reports) / recipe.name
    stored = _stored(folder, key)
    if stored is not None:
        _tell_cards(stored, recipe, dataset, students)
        return EvaluationResult(stored, ReportFiles.in_folder(folder), fresh=False)
    report = _measured(recipe, student, dataset, students, key, progress)
    files = write_report(report, folder)
    _tell_cards(report, recipe, dataset, students)
    return EvaluationResult(report, files, fresh=True)


def key_of_settings(settings: EvaluateSettings) -> dict[str, Any]:
    """What of the settings shapes the figures; without metrics it is what it was before there were any."""
    return settings.model_dump(exclude=_WITHOUT_EFFECT | (set() if settings.metrics else {"metrics"}))


def _tell_cards(report: Report, recipe: Recipe, dataset: Dataset, students: Sequence[StudentFolder]) -> None:
    """Write the report's figures into the students' model cards."""
    figures = Figures(
        key=report.key,
        created_at=report.created_at,
        machine=report.versions["machine"],
        table=tuple(tuple(row) for row in comparison_table(report)),
        answers=tuple(tuple(row) for row in answer_quality_table(report)),
        notes=report.notes,
        warnings={row.role: warning for row in report.models if (warning := warning_of(report, row))},
    )
    for place in students:
        if (card := place.trained()) is not None:
            learnt_from = _learnt_from(recipe, place.variant, dataset)
            write_cards(place.path, card, recipe, learnt_from.manifest if learnt_from else None, figures)


def _measured(
    recipe: Recipe,
    student: StudentSettings,
    dataset: Dataset,
    students: list[StudentFolder],
    key: str,
    progress: Progress,
) -> Report:
    if student.quantize:
        require_torchao()
    dataset.check()
    rows = tuple(_held_out(dataset, recipe.evaluate.limit))
    if not rows:
        raise RecipeError(
            f"prompts.holdout is {recipe.prompts.holdout}, and dataset {dataset.manifest.label} has no validation rows: "
            "set prompts.holdout to a share such as 0.2"
        )
    metrics = open_metrics(recipe.evaluate.metrics)
    asked = asked_rows(rows, recipe.evaluate)
    refuse_without_references(recipe, metrics, asked)
    task = Task(
        rows=rows,
        settings=recipe.evaluate,
        max_tokens=recipe.label.sampling.max_tokens,
        vocabulary=dataset.manifest.teacher.vocabulary_size or 0,
        soft=dataset.manifest.soft is not None,
        asked=asked.rows,
    )
    measured = with_labels(measure_all(_subjects(recipe, student, dataset, students), task, progress), asked, recipe)
    learnt = {
        one.manifest.plan_sha256: one for place in students if (one := _learnt_from(recipe, place.variant, dataset))
    }
    models = scored(described(measured, asked, training_answers(learnt.values())), metrics, asked)
    cards = [card for place in students if (card := place.finished())]
    return Report(
        recipe=recipe.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(cards[-1]) | {"machine": _machine()},
        labels=_label_summary(dataset),
        overlap=_overlap(dataset, recipe.evaluate.near_duplicate),
        models=models.rows,
        answers=tuple(
            Answers(row.prompt.text, row.prompt.reference, tuple(written.texts[place] for written in models.answers))
            for place, row in enumerate(asked.rows[: asked.shown])
        ),
        curves=tuple(_curve(card) for card in cards if card.log),
        recipe_yaml=recipe.as_yaml(),
        notes=(
            *notes(recipe, student, dataset, len(rows), asked, models.metrics),
            *of_the_vocabularies(models.rows, at_least=_of_top_k(recipe, dataset)),
        ),
        key=key,
        metrics=models.metrics,
        differences=models.differences,
        kept=models.kept,
    )


def _subjects(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, students: Sequence[StudentFolder]
) -> list[Subject]:
    """The teacher, where it is a model that can be run here, and the students."""
    tokenizer = dataset.manifest.teacher.tokenizer_sha256
    subjects = []
    if runs_here(recipe.teacher):
        files = teacher_files(recipe)
        trusted = teacher_options(recipe).trust_remote_code
        subjects.append(Subject("teacher", files.name, files.folder, is_teacher=True, trust_remote_code=trusted))
        if _told_of_its_start(recipe):
            start = find_model(recipe.teacher.model, recipe.teacher.revision)
            subjects.append(Subject(BEFORE, start.name, start.folder, trust_remote_code=trusted))
    for place in students:
        files = ModelFiles(str(place.path), place.path)
        shares, renumbering = shares_tokenizer(files, tokenizer), renumbering_of(files, tokenizer)
        role, trusted = f"{place.variant} student", student.trust_remote_code
        one = Subject(
            role,
            files.name,
            files.folder,
            shares_tokenizer=shares,
            trust_remote_code=trusted,
            renumbering=renumbering,
        )
        subjects.append(one)
        if place.wants_int8:
            subjects.append(
                dataclasses.replace(one, role=f"{role}, int8", name=str(place.int8), folder=place.int8, is_int8=True)
            )
    return subjects


def _students(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> list[StudentFolder]:
    """The baselines that the recipe asks for, and the student last.

    Raises:
        StudentMissing: one of them has not been trained on this dataset with these settings.
    """
    baselines: list[Variant] = [name for name in recipe.evaluate.baselines if name != student.mode]
    variants = [*baselines, student.mode]
    places = [student_folder(recipe, student, one, _learnt_from(recipe, one, dataset), dataset) for one in variants]
    for place in places:
        if place.finished() is None:
            found = read_card(place.path)
            other = found is not None and place.variant != "gold" and found.dataset not in ("", dataset.manifest.label)
            older = f" (of {found.dataset} there is: dataset.version can name that)" if found and other else ""
            raise StudentMissing(
                f"there is no finished {place.variant} student of this recipe and dataset {dataset.manifest.label} in "
                f"{place.path}{older}: run `stillhouse distill` with the same recipe first"
            )
    return places


def _learnt_from(recipe: Recipe, variant: Variant, dataset: Dataset) -> Dataset | None:
    """The dataset of a student: the references of a gold one.

    Raises:
        StudentMissing: they are not there, so neither is the student.
    """
    if variant != "gold":
        return None if variant == "untrained" else dataset
    try:
        return open_dataset(dataset_folder(recipe.dataset.gold))
    except DatasetMissing as error:
        raise StudentMissing(
            f"there is no gold student of this recipe: {error}. `stillhouse distill` with the same recipe makes both"
        ) from None


def _told_of_its_start(recipe: Recipe) -> list[str]:
    """The line of the report that a fine-tuned teacher's start has, where it has weights that know something."""
    tuned = recipe.teacher.finetune
    return [BEFORE] if tuned is not None and tuned.config is None else []


def _stored(folder: Path, key: str) -> Report | None:
    """The report that lies there, if it stands for `key` and is whole."""
    files = ReportFiles.in_folder(folder)
    if not all(file.is_file() for file in (files.markdown, files.html, files.json)):
        return None
    try:
        report = _STORED.validate_json(files.json.read_bytes())
    except ValidationError:
        return None
    return report if report.key == key else None


def _of_top_k(recipe: Recipe, dataset: Dataset) -> bool:
    """Whether students are compared with stored top-k labels, as the teacher does not run here."""
    return not runs_here(recipe.teacher) and dataset.manifest.soft is not None and dataset.manifest.soft.draws is None


def _held_out(dataset: Dataset, limit: int) -> Iterator[Completion]:
    rows = ((batch, index) for batch in dataset.batches("validation") for index in range(batch.num_rows))
    for _, (batch, index) in zip(range(limit), rows, strict=False):
        yield completion_at(batch, index)


def _overlap(dataset: Dataset, threshold: float) -> Overlap:
    return find_overlap(_prompt_texts(dataset, "validation"), _prompt_texts(dataset, "train"), threshold)


def _prompt_texts(dataset: Dataset, split: Split) -> list[str]:
    """What the user asks in each prompt of a split, once a prompt however many samples it has."""
    texts = (prompt_at(batch, index).text for batch in dataset.batches(split) for index in range(batch.num_rows))
    return list(dict.fromkeys(texts))


def _label_summary(dataset: Dataset) -> LabelSummary:
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


def _curve(card: StudentCard) -> Curve:
    losses = [(step.step, step.loss) for step in card.log if step.loss is not None]
    evaluations = [(step.step, step.eval_loss) for step in card.log if step.eval_loss is not None]
    return Curve(
        role=f"{card.variant} student",
        steps=tuple(step for step, _ in losses),
        loss=tuple(loss for _, loss in losses),
        evaluation_steps=tuple(step for step, _ in evaluations),
        evaluation_loss=tuple(loss for _, loss in evaluations),
    )


def _versions(card: StudentCard) -> dict[str, str]:
    return software_versions() | ({"torchao": card.int8.torchao} if card.int8 else {})


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} processors"
