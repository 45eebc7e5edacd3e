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

from pydantic import TypeAdapter, ValidationError

from pipeline.columns import completion_at, prompt_at
from pipeline.config import Recipe
from pipeline.dataset.store import Dataset
from pipeline.errors import RecipeError, StudentMissing
from pipeline.evaluation.bootstrap import mean_per_prompt
from pipeline.evaluation.overlap import find_overlap
from pipeline.evaluation.processes import fresh_processes
from pipeline.evaluation.report import ReportFiles, comparison_table, write_report
from pipeline.evaluation.results import Answers, Curve, Interval, LabelSummary, ModelRow, Overlap, Report
from pipeline.evaluation.subject import Subject, Task
from pipeline.live_teacher import teacher_options
from pipeline.model_files import ModelFiles, runs_here, teacher_files
from pipeline.progress import Progress, silent
from pipeline.records import Completion, Split, content_hash
from pipeline.student.card import Figures, software_versions, write_cards
from pipeline.student.folder import StudentCard, StudentFolder, Variant, student_folder
from pipeline.student.quantize import require_torchao
from pipeline.student_settings import StudentSettings
from pipeline.text import token_f1

_STORED = TypeAdapter(Report)


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
        RecipeError: nothing was held out, or the student's copy needs torchao, which is not installed.
        StudentMissing: a student or baseline of this recipe has not been trained.
        DatasetRefused: the dataset is damaged.
    """
    students = _students(recipe, student, dataset)
    key = content_hash(
        [
            [place.key for place in students] + (["int8"] if student.quantize else []),
            dataset.manifest.plan_sha256,
            recipe.evaluate.model_dump(exclude={"reports"}),
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


def _tell_cards(report: Report, recipe: Recipe, dataset: Dataset, students: Sequence[StudentFolder]) -> None:
    """Write the report's figures into the students' model cards."""
    figures = Figures(
        key=report.key,
        created_at=report.created_at,
        machine=report.versions["machine"],
        table=tuple(tuple(row) for row in comparison_table(report)),
        notes=report.notes,
    )
    for place in students:
        if (card := place.trained()) is not None:
            manifest = None if place.variant == "untrained" else dataset.manifest
            write_cards(place.path, card, recipe, manifest, figures)


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
    task = Task(
        rows=rows,
        settings=recipe.evaluate,
        max_tokens=recipe.label.sampling.max_tokens,
        vocabulary=dataset.manifest.teacher.vocabulary_size or 0,
        soft=dataset.manifest.soft is not None,
    )
    subjects = _subjects(recipe, student, dataset, students)
    models, answers = _measure_all(subjects, task, progress)
    cards = [card for place in students if (card := place.finished())]
    return Report(
        recipe=recipe.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(cards[-1]) | {"machine": _machine()},
        labels=_label_summary(dataset),
        overlap=_overlap(dataset, recipe.evaluate.near_duplicate),
        models=models,
        answers=tuple(
            Answers(row.prompt.text, row.prompt.reference, tuple(written[place] for written in answers))
            for place, row in enumerate(rows[: recipe.evaluate.answers])
        ),
        curves=tuple(_curve(card) for card in cards if card.log),
        recipe_yaml=recipe.as_yaml(),
        notes=tuple(_notes(recipe, student, dataset, len(rows))),
        key=key,
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
    for place in students:
        files = ModelFiles(str(place.path), place.path)
        shares = tokenizer is None or files.tokenizer_sha256 == tokenizer
        role, trusted = f"{place.variant} student", student.trust_remote_code
        one = Subject(role, files.name, files.folder, shares_tokenizer=shares, trust_remote_code=trusted)
        subjects.append(one)
        if place.wants_int8:
            subjects.append(
                dataclasses.replace(one, role=f"{role}, int8", name=str(place.int8), folder=place.int8, is_int8=True)
            )
    return subjects


def _measure_all(
    subjects: Sequence[Subject], task: Task, progress: Progress
) -> tuple[tuple[ModelRow, ...], list[tuple[str, ...]]]:
    """Every model's line of the report, and its answers."""
    from pipeline.evaluation.distance import distances
    from pipeline.evaluation.measure import measure

    with fresh_processes() as pool:
        measured = []
        for done, subject in enumerate(subjects):
            progress(f"Measuring the {subject.role}", done, len(subjects) + 1)
            measured.append(pool.submit(measure, subject, task).result())
        progress("Comparing with the teacher", len(subjects), len(subjects) + 1)
        compared = pool.submit(distances, subjects, task).result()
        progress("Comparing with the teacher", len(subjects) + 1, len(subjects) + 1)
    models = tuple(
        ModelRow(
            role=subject.role,
            model=subject.name,
            parameters=one.parameters,
            megabytes=one.megabytes,
            peak_memory_megabytes=one.peak_memory_megabytes,
            tokens_per_second=one.tokens_per_second,
            latency_p50_ms=one.latency_p50_ms,
            latency_p95_ms=one.latency_p95_ms,
            kl_per_token=distance.kl,
            agreement=distance.agreement,
            perplexity=distance.perplexity,
            reference_score=_reference_score(task.rows, one.answers),
            is_int8=subject.is_int8,
        )
        for subject, one, distance in zip(subjects, measured, compared, strict=True)
    )
    return models, [one.answers for one in measured]


def _reference_score(rows: Sequence[Completion], answers: Sequence[str]) -> Interval | None:
    """Token F1 of the answers to prompts that have a reference."""
    scored = [
        token_f1(answer, row.prompt.reference)
        for row, answer in zip(rows, answers, strict=False)  # the first prompts alone are answered
        if row.prompt.reference
    ]
    return mean_per_prompt(scored) if scored else None


def _students(recipe: Recipe, student: StudentSettings, dataset: Dataset) -> list[StudentFolder]:
    """The baselines that the recipe asks for, and the student last.

    Raises:
        StudentMissing: one of them has not been trained on this dataset with these settings.
    """
    baselines: list[Variant] = [name for name in recipe.evaluate.baselines if name != student.mode]
    places = [student_folder(recipe, student, variant, dataset) for variant in [*baselines, student.mode]]
    for place in places:
        if place.finished() is None:
            raise StudentMissing(
                f"there is no finished {place.variant} student of this recipe and dataset in {place.path}: "
                "run `stillhouse distill` with the same recipe first"
            )
    return places


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


def _notes(recipe: Recipe, student: StudentSettings, dataset: Dataset, rows: int) -> Iterator[str]:
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
    yield (
        f"Students answer greedily; the teacher's answers are its labels. The reference score is the token F1 of the first "
        f"{settings.answers} answers."
    )
    if student.quantize:
        yield (
            f"The int8 copy keeps its linear layers in 8 bits and computes in {settings.dtype}: weights are turned back as "
            "they are used. That saves space on disk, and seldom time; what it does to memory is in the table."
        )
    yield "Losses of white-box and black-box students are different quantities: compare their course, not their height."


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} processors"
