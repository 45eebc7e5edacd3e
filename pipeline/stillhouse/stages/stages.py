"""The stages of a run as functions of a recipe, which the command line and the flows call.

    finetune_stage (if the recipe fine-tunes its teacher) -> label -> distill_stage -> evaluate_stage

Each stage does only the work that has not been done yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset
from stillhouse.errors import RecipeError, TeacherUnavailable, TrainingError, UsageError
from stillhouse.evaluation.evaluate import EvaluationResult, evaluate
from stillhouse.evaluation.measures.held_out import require_held_out
from stillhouse.evaluation.sweep.evaluate import SweepEvaluation, evaluate_sweep
from stillhouse.labelling.engine import label
from stillhouse.labelling.estimate import Estimate, estimate_labelling
from stillhouse.labelling.result import LabelResult
from stillhouse.labelling.retrying import Retry
from stillhouse.labelling.runners.base import open_runner
from stillhouse.processes.children import LogLine, log_to_standard_error
from stillhouse.processes.event_loop import run_coroutine
from stillhouse.processes.ranks import is_launched
from stillhouse.progress import Progress, silent
from stillhouse.prompts.checks import PromptChecks
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.sweep_points import points
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.stages.checks import check_plan, student_of
from stillhouse.stages.finetune import check_finetuned, finetuning_of, gold_dataset, make_gold
from stillhouse.stages.launch import launch
from stillhouse.stages.rounds.estimate import estimate_rounds
from stillhouse.stages.rounds.run import RoundSteps
from stillhouse.stages.rounds.stage import rounds_stage, score_rollouts, start_of_rounds
from stillhouse.stages.sweep import PointTraining, refuse_same_students, train_points
from stillhouse.student.finished.folder import StudentCard, StudentFolder, StudentResult, student_folder, teacher_along
from stillhouse.teachers.base import Checks, Finding, Serves, open_teacher
from stillhouse.teachers.live import open_live_teacher


@dataclass(frozen=True)
class RunResult:
    """Results of all stages."""

    finetuned: StudentResult | None  # the teacher; None: it is not fine-tuned
    labelled: LabelResult
    students: list[StudentResult]
    evaluation: EvaluationResult | SweepEvaluation


async def check_teacher(recipe: Recipe, progress: Progress = silent) -> Sequence[Finding]:
    """Run all checks of a recipe's teacher.

    Raises:
        RecipeError: this kind of teacher has no server to check.
    """
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    if not isinstance(teacher, Checks):
        raise _no_server(recipe.teacher.kind, "check")
    try:
        return await teacher.check(progress)
    finally:
        await teacher.close()


def _no_server(kind: str, action: str) -> RecipeError:
    return RecipeError(f"this kind has no server to {action}", setting="teacher.kind", value=kind, fix="use `vllm`")


async def serve_teacher(recipe: Recipe, report: Callable[[str], None], progress: Progress = silent) -> None:
    """Start a recipe's server, report its base URL, and run the server until this is cancelled.

    Raises:
        RecipeError: this kind of teacher has no server, or the recipe does not configure how to start it.
        TeacherUnavailable: the server did not start.
    """
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    if not isinstance(teacher, Serves):
        raise _no_server(recipe.teacher.kind, "start")
    try:
        report(f"ready: {await teacher.serve(progress)} (Ctrl-C stops it)")
        await asyncio.Event().wait()
    finally:
        await teacher.close()


def recipe_dataset(recipe: Recipe) -> Dataset:
    """Return the dataset that a recipe's student learns from.

    Raises:
        DatasetMissing: the prompts have not been labelled yet.
    """
    return open_dataset(dataset_folder(recipe.dataset), recipe.dataset.version)


def with_version(recipe: Recipe, labelled: Dataset) -> Recipe:
    """Return the recipe with the version that was just labelled, even if another run adds a newer one meanwhile.

    A recipe that names a version is returned unchanged.
    """
    if recipe.dataset.version is not None:
        return recipe
    dataset = recipe.dataset.model_copy(update={"version": labelled.manifest.version})
    return recipe.model_copy(update={"dataset": dataset})


def students_to_train(recipe: Recipe, only: str | None = None) -> list[StudentSettings]:
    """Return the baselines that the report needs, gold first, and the student; with `only`, just the one of that mode.

    The student is left out if its rounds begin with the untrained one (`on_policy.start`).

    Raises:
        UsageError: no student has the mode `only`.
    """
    student = student_of(recipe)
    baselines = [mode for mode in ("gold", "black-box") if mode in recipe.evaluate.baselines and mode != student.mode]
    students = [student.model_copy(update={"mode": mode, "quantize": None}) for mode in baselines]
    if recipe.has_off_policy_student:
        students.append(student)
    chosen = [one for one in students if only in (None, one.mode)]
    if only is not None and not chosen:
        modes = ", ".join(one.mode for one in students)
        fix = f"choose from: {modes}" if modes else "remove it"
        raise UsageError("the recipe has no such student", setting="--only", value=only, fix=fix)
    return chosen


def dataset_of(recipe: Recipe, student: StudentSettings, progress: Progress = silent) -> Dataset:
    """Return what a student learns from: the teacher's labels, or the references, which are written if missing.

    Raises:
        DatasetMissing: the prompts have not been labelled yet.
    """
    if not recipe.learns_references(student.mode):
        return recipe_dataset(recipe)
    return gold_dataset(recipe, progress)


def finetune_stage(recipe: Recipe, progress: Progress = silent, log: LogLine | None = None) -> StudentResult | None:
    """Fine-tune the teacher unless it is finished; None if the recipe does not fine-tune it. Imports torch only if needed.

    With `teacher.finetune.along` the student is trained in the same steps, and is `along` in the result.

    `log` is called with the log of launched processes, as in `distill_stage`.

    Raises:
        PromptError: a prompt has no reference.
        RecipeError: a setting of `teacher.finetune` is wrong.
        TeacherUnavailable: the model that the teacher starts from does not exist.
        TrainingError: the teacher cannot be built or trained as requested.
    """
    tuning = finetuning_of(recipe)
    if tuning is None:
        return None
    gold = make_gold(recipe, progress)
    place = tuning.folder(gold)
    if recipe.learns_along:
        student = distill_stage(recipe, student_of(recipe), gold, progress, log)
        made = place.finished_card() or _missing(place, tuning.student)
        return StudentResult(made, str(place.path), trained=student.trained, along=student)
    card = place.finished_card()
    if card is not None:
        return StudentResult(place.with_current_key(card), str(place.path), trained=False)
    if _must_be_launched(tuning.student):
        card = _train_launched(recipe, tuning.student, place, ["finetune"], progress, log)
        return StudentResult(card, str(place.path), trained=True)
    from stillhouse.student.training.train import distill

    card = distill(tuning.recipe, tuning.student, gold, progress, is_teacher=True)
    return StudentResult(card, str(place.path), trained=True)


def plan_stage(recipe: Recipe) -> tuple[Estimate, bool]:
    """Return the estimate of labelling, and whether the teacher is ready: False if it has not been fine-tuned yet.

    Raises:
        RecipeError: a setting is wrong, so that `label` would fail.
        PromptError: a prompt lacks something that the recipe needs.
        TeacherUnavailable: the teacher's model does not exist.
    """
    check_plan(recipe)
    try:
        check_finetuned(recipe, read_prompts=True)
    except TeacherUnavailable:
        unknown = TeacherSettings(kind="scripted", model=recipe.teacher.labelling_model)
        return estimate_labelling(recipe.model_copy(update={"teacher": unknown}), PromptChecks(recipe)), False
    return replace(estimate_labelling(recipe), rounds=estimate_rounds(recipe)), True


async def label_stage(
    recipe: Recipe, progress: Progress = silent, retry: Retry | None = None, *, detach: bool = False
) -> LabelResult:
    """Label the prompts that have no answer yet, in this process or in the workers of `label.runner`.

    With `label.delivery: batch` and `detach`, batch jobs are submitted and collected, but not awaited.

    Raises:
        JobsPending: batch jobs are running, and `detach` is set.
        RecipeError: the runner's settings are wrong, or a library that it needs is not installed.
        WorkerLost: the workers cannot be reached, or were lost repeatedly; answers are kept.
        TeacherUnavailable: the teacher cannot be reached; answers are kept.
        BudgetSpent: the next request could exceed the budget; answers are kept.
        StorageFailed: the disk is full or cannot be written; answers are kept.
    """
    return await label(recipe, progress, retry, open_runner(recipe.label.runner), detach=detach)


def distill_stage(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, progress: Progress = silent, log: LogLine | None = None
) -> StudentResult:
    """Train one student unless it is finished. Imports torch only if needed.

    If `student.launch` is set, launched processes train it; `log` is called with the lines of their log, which go to
    standard error without it.

    Raises:
        RecipeError: a setting of the student is wrong.
        DatasetRefused: the dataset is damaged or does not fit the student.
        TrainingError: the student cannot be built or trained as requested.
    """
    place = student_folder(recipe, student, student.mode, dataset)
    teacher_place = teacher_along(recipe, student, dataset)
    card = place.finished_card()
    if card is not None and (teacher_place is None or teacher_place.finished_card() is not None):
        return StudentResult(place.with_current_key(card), str(place.path), trained=False)
    is_trained = place.trained_card() is not None  # only its quantised copy is missing
    if _must_be_launched(student) and not is_trained:
        resolved = recipe if recipe.learns_references(student.mode) else with_version(recipe, dataset)
        command = ["finetune"] if teacher_place else ["distill", "--only", student.mode]
        card = _train_launched(resolved, student, place, command, progress, log)
        return StudentResult(card, str(place.path), trained=True)
    from stillhouse.student.training.train import distill

    teacher = partial(open_live_teacher, recipe) if student.needs_live_teacher else None
    card = distill(recipe, student, dataset, progress, open_teacher=teacher)
    return StudentResult(card, str(place.path), trained=not is_trained)


def _must_be_launched(student: StudentSettings) -> bool:
    return student.launch is not None and not is_launched()


def _train_launched(
    recipe: Recipe,
    student: StudentSettings,
    place: StudentFolder,
    command: Sequence[str],
    progress: Progress,
    log: LogLine | None,
) -> StudentCard:
    """Train a student in launched processes, and return its card."""
    with place.lock():
        launch(recipe, student, place.work, [*command, "--no-flow"], log or log_to_standard_error, progress)
    return place.finished_card() or _missing(place, student)


def _missing(place: StudentFolder, student: StudentSettings) -> NoReturn:
    raise TrainingError(
        f"the processes ended without an error, but {place.path} does not exist",
        setting=student.setting("launch"),
        fix="check that all processes see the same files",
    )


def points_to_train(recipe: Recipe, only: str | None = None, progress: Progress = silent) -> list[PointTraining]:
    """Return the students of a sweep, each with its dataset; all learn from the same version.

    Raises:
        DatasetMissing: the prompts have not been labelled yet.
        RecipeError: two students of the sweep are the same.
        UsageError: no student has the mode `only`.
    """
    trainings = []
    for point in points(recipe):
        if only in (None, point.student.mode):
            dataset = dataset_of(point.recipe, point.student, progress)
            resolved = point.recipe if point.student.mode == "gold" else with_version(point.recipe, dataset)
            trainings.append(PointTraining(replace(point, recipe=resolved), dataset))
    if not trainings:
        modes = ", ".join(dict.fromkeys(point.student.mode for point in points(recipe)))
        raise UsageError("the sweep has no such student", setting="--only", value=only, fix=f"choose from: {modes}")
    refuse_same_students(trainings)
    return trainings


def distill_students(recipe: Recipe, progress: Progress = silent, only: str | None = None) -> list[StudentResult]:
    """Train a recipe's student and its baselines, or every student of its sweep, except finished ones.

    Raises:
        DatasetMissing: the prompts have not been labelled yet.
        UsageError: no student has the mode `only`.
        RecipeError: a setting of a student is wrong, or two students of the sweep are the same.
        DatasetRefused: the dataset is damaged or does not fit a student.
        TrainingError: a student cannot be built or trained as requested.
    """
    if recipe.sweep is not None:
        trainings = points_to_train(recipe, only, progress)
        return train_points(trainings, recipe.sweep.at_a_time, distill_stage, progress)
    wanted = [(one, dataset_of(recipe, one, progress)) for one in students_to_train(recipe, only)]
    students = [distill_stage(recipe, student, dataset, progress) for student, dataset in wanted]
    if recipe.on_policy is not None and only is None:
        dataset = recipe_dataset(recipe)
        start = start_of_rounds(recipe, students, dataset, progress)
        steps = RoundSteps(score_rollouts, distill_stage)
        students.append(rounds_stage(recipe, student_of(recipe), dataset, start, steps, progress))
    return students


def evaluate_stage(recipe: Recipe, dataset: Dataset, progress: Progress = silent) -> EvaluationResult | SweepEvaluation:
    """Measure every model of the recipe, or return the stored report."""
    check_finetuned(recipe)
    if recipe.sweep is not None:
        return evaluate_sweep(recipe, dataset, progress)
    return evaluate(recipe, student_of(recipe), dataset, progress)


def run_stages(recipe: Recipe, progress: Progress = silent) -> RunResult:
    """Run all stages, without Prefect."""
    runner = open_runner(recipe.label.runner)  # fails early if the workers are missing, before anything is trained
    finetuned = finetune_stage(recipe, progress)
    if recipe.needs_gold and finetuned is None:
        make_gold(recipe, progress)
    labelled = run_coroutine(label(recipe, progress, runner=runner))
    recipe = with_version(recipe, labelled.dataset)
    dataset = recipe_dataset(recipe)
    require_held_out(recipe, dataset)
    students = distill_students(recipe, progress)
    return RunResult(finetuned, labelled, students, evaluate_stage(recipe, dataset, progress))
