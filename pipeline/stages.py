"""The stages of a run, each a function of a recipe: what the command line and the flows both call.

    label_stage -> distill_stage -> evaluate_stage

Each looks first at what is there, and does only what is missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.config import Recipe, encoding_of
from pipeline.dataset.store import Dataset, dataset_folder, open_dataset
from pipeline.errors import RecipeError, TeacherUnavailable
from pipeline.evaluation.evaluate import EvaluationResult, evaluate
from pipeline.labelling.engine import LabelResult, label
from pipeline.live_teacher import check_live_teacher, open_live_teacher
from pipeline.progress import Progress, silent
from pipeline.student.folder import StudentCard, student_folder
from pipeline.student_settings import StudentSettings
from pipeline.teachers.base import Checks, Finding, Serves, find_kind, open_teacher

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentResult:
    """One student, and whether it was trained now or stood there already."""

    card: StudentCard
    folder: str
    trained: bool


@dataclass(frozen=True)
class RunResult:
    """What the three stages gave."""

    labelled: LabelResult
    students: list[StudentResult]
    evaluation: EvaluationResult


def check_student(recipe: Recipe) -> None:
    """Refuse a student that could not be trained before anything is sent for it.

    Raises:
        RecipeError: the recipe has no student, or its start, its loss or its training arguments are wrong.
        TeacherUnavailable: the model that it starts from is not there.
    """
    from pipeline.student.arguments import training_arguments
    from pipeline.student.lora import check_adapters
    from pipeline.student.objective import open_objective
    from pipeline.student.quantize import check_quantizable
    from pipeline.student.start_config import check_start
    from pipeline.student.vocabulary import check_tokenizers

    student = student_of(recipe)
    find_kind(recipe.teacher.kind)
    open_objective(student, encoding_of(recipe.label.soft) if student.needs_soft_labels else None)
    training_arguments(recipe, student, Path(recipe.students))
    if student.needs_live_teacher:
        check_live_teacher(recipe)
    check_tokenizers(recipe, student)
    check_start(recipe, student)
    check_adapters(recipe, student)
    check_quantizable(recipe, student)


def check_labels(recipe: Recipe) -> None:
    """Refuse to label for a student that could not learn from the labels, or not be made at all.

    Whether this machine could train it does not matter, and a start that is not at hand here is looked at later.

    Raises:
        RecipeError: the loss cannot be taken from such labels, or the student's start or tokenizer is wrong.
    """
    if recipe.student is None:
        return
    from pipeline.student.objective import open_objective
    from pipeline.student.start_config import check_start
    from pipeline.student.vocabulary import check_tokenizers

    student = recipe.student
    open_objective(student, encoding_of(recipe.label.soft) if student.needs_soft_labels else None)
    try:
        check_tokenizers(recipe, student)
        check_start(recipe, student)
    except TeacherUnavailable as error:
        _LOG.warning("the student is not looked at before labelling: %s", error)


async def check_teacher(recipe: Recipe, progress: Progress = silent) -> Sequence[Finding]:
    """Look at everything that can be looked at in a recipe's teacher.

    Raises:
        RecipeError: its kind has nothing to look at.
    """
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    if not isinstance(teacher, Checks):
        raise RecipeError(f"teacher.kind is {recipe.teacher.kind!r}, which has no server to check; `vllm` has")
    try:
        return await teacher.check(progress)
    finally:
        await teacher.close()


async def serve_teacher(recipe: Recipe, tell: Callable[[str], None], progress: Progress = silent) -> None:
    """Start a recipe's server, tell its base URL, and keep it until this is cancelled.

    Raises:
        RecipeError: its kind has no server, or the recipe does not say how it is started.
        TeacherUnavailable: it did not start.
    """
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    if not isinstance(teacher, Serves):
        raise RecipeError(f"teacher.kind is {recipe.teacher.kind!r}, which has no server to start; `vllm` has")
    try:
        tell(f"ready: {await teacher.serve(progress)} (Ctrl-C ends it)")
        await asyncio.Event().wait()
    finally:
        await teacher.close()


def recipe_dataset(recipe: Recipe) -> Dataset:
    """The dataset that a recipe's student learns from.

    Raises:
        DatasetMissing: it has not been labelled yet.
    """
    return open_dataset(dataset_folder(recipe.dataset), recipe.dataset.version)


def student_of(recipe: Recipe) -> StudentSettings:
    """The recipe's student.

    Raises:
        RecipeError: it has none.
    """
    if recipe.student is None:
        raise RecipeError("the recipe has no `student`: add one, for instance {init: {from: teacher, layers: 10}}")
    return recipe.student


def students_to_train(recipe: Recipe) -> list[StudentSettings]:
    """The black-box baseline, where the report asks for it, and the student."""
    student = student_of(recipe)
    wants_baseline = "black-box" in recipe.evaluate.baselines and student.mode != "black-box"
    baseline = [student.model_copy(update={"mode": "black-box", "quantize": None})] if wants_baseline else []
    return [*baseline, student]


def distill_stage(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, progress: Progress = silent
) -> StudentResult:
    """Train one student, where it is not there yet (torch is imported only if it is not)."""
    place = student_folder(recipe, student, student.mode, dataset)
    card = place.finished()
    if card is not None:
        return StudentResult(card, str(place.path), trained=False)
    there = place.trained() is not None  # all of it but its quantised copy
    from pipeline.student.train import distill

    teacher = partial(open_live_teacher, recipe) if student.needs_live_teacher else None
    card = distill(recipe, student, dataset, progress, open_teacher=teacher)
    return StudentResult(card, str(place.path), trained=not there)


def evaluate_stage(recipe: Recipe, dataset: Dataset, progress: Progress = silent) -> EvaluationResult:
    """Measure every model of the recipe, where the report is not there yet."""
    return evaluate(recipe, student_of(recipe), dataset, progress)


def run_stages(recipe: Recipe, progress: Progress = silent) -> RunResult:
    """The whole way, without Prefect."""
    labelled = asyncio.run(label(recipe, progress))
    dataset = recipe_dataset(recipe)
    students = [distill_stage(recipe, student, dataset, progress) for student in students_to_train(recipe)]
    return RunResult(labelled, students, evaluate_stage(recipe, dataset, progress))
