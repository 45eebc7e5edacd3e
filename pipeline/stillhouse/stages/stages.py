"""The stages of a run, each a function of a recipe: what the command line and the flows both call.

    finetune_stage (where the recipe asks for it) -> label -> distill_stage -> evaluate_stage

Each looks first at what is there, and does only what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset
from stillhouse.errors import RecipeError, TeacherUnavailable, TrainingError, UsageError
from stillhouse.evaluation.evaluate import EvaluationResult, evaluate
from stillhouse.evaluation.sweep.evaluate import SweepEvaluation, evaluate_sweep
from stillhouse.labelling.engine import LabelResult, label
from stillhouse.labelling.estimate import Estimate, estimate_labelling
from stillhouse.labelling.retrying import Retry
from stillhouse.labelling.runners.base import open_runner
from stillhouse.processes.children import Tell, to_standard_error
from stillhouse.processes.event_loop import run_to_end
from stillhouse.processes.ranks import is_launched
from stillhouse.progress import Progress, silent
from stillhouse.recipe.load import Recipe, TeacherSettings
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.sweep_points import points
from stillhouse.stages.checks import check_plan, student_of
from stillhouse.stages.finetune import check_finetuned, finetuning_of, gold_dataset, make_gold
from stillhouse.stages.launch import launch
from stillhouse.stages.sweep import PointTraining, refuse_same_students, train_points
from stillhouse.student.finished.folder import StudentCard, StudentFolder, StudentResult, student_folder
from stillhouse.teachers.base import Checks, Finding, Serves, open_teacher
from stillhouse.teachers.live import open_live_teacher


@dataclass(frozen=True)
class RunResult:
    """What the stages gave."""

    finetuned: StudentResult | None  # the teacher, where the recipe fine-tunes it
    labelled: LabelResult
    students: list[StudentResult]
    evaluation: EvaluationResult | SweepEvaluation


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


def of_version(recipe: Recipe, labelled: Dataset) -> Recipe:
    """The recipe for students and report of the version just labelled, whatever others add meanwhile.

    A recipe that names a version keeps to it.
    """
    if recipe.dataset.version is not None:
        return recipe
    own = recipe.dataset.model_copy(update={"version": labelled.manifest.version})
    return recipe.model_copy(update={"dataset": own})


def students_to_train(recipe: Recipe, only: str | None = None) -> list[StudentSettings]:
    """The baselines that the report asks for, gold first, and the student; or the one of a mode alone.

    Raises:
        UsageError: none of them has this mode.
    """
    student = student_of(recipe)
    baselines = [mode for mode in ("gold", "black-box") if mode in recipe.evaluate.baselines and mode != student.mode]
    students = [*(student.model_copy(update={"mode": mode, "quantize": None}) for mode in baselines), student]
    chosen = [one for one in students if only in (None, one.mode)]
    if not chosen:
        raise UsageError(f"--only is {only!r}: the recipe's students are {', '.join(one.mode for one in students)}")
    return chosen


def dataset_of(recipe: Recipe, student: StudentSettings, progress: Progress = silent) -> Dataset:
    """What a student learns from: the teacher's labels, or the references, which are written where they are not yet.

    Raises:
        DatasetMissing: the prompts have not been labelled yet.
    """
    if student.mode != "gold":
        return recipe_dataset(recipe)
    return gold_dataset(recipe, progress)


def finetune_stage(recipe: Recipe, progress: Progress = silent, tell: Tell | None = None) -> StudentResult | None:
    """Fine-tune the teacher, where the recipe says so and it is not there yet (torch is imported only if it is not).

    `tell` is as of `distill_stage`.

    Raises:
        PromptError: a prompt has no reference.
        RecipeError, TeacherUnavailable, TrainingError: as `distill` does.
    """
    tuning = finetuning_of(recipe)
    if tuning is None:
        return None
    gold = make_gold(recipe, progress)
    place = tuning.folder(gold)
    card = place.finished_card()
    if card is not None:
        return StudentResult(place.with_current_key(card), str(place.path), trained=False)
    if _is_to_be_launched(tuning.student):
        card = _launched(recipe, tuning.student, place, ["finetune"], progress, tell)
        return StudentResult(card, str(place.path), trained=True)
    from stillhouse.student.training.train import distill

    card = distill(tuning.recipe, tuning.student, gold, progress, is_teacher=True)
    return StudentResult(card, str(place.path), trained=True)


def plan_stage(recipe: Recipe) -> tuple[Estimate, bool]:
    """What labelling would send, and whether the teacher is there; one that has still to be fine-tuned has said nothing.

    Raises:
        RecipeError, PromptError, TeacherUnavailable: as `check_plan` does; what `label` would refuse is refused here.
    """
    check_plan(recipe)
    try:
        check_finetuned(recipe, read_prompts=True)
    except TeacherUnavailable:
        unknown = TeacherSettings(kind="scripted", model=recipe.teacher.labelling_model)
        return estimate_labelling(recipe.model_copy(update={"teacher": unknown})), False
    return estimate_labelling(recipe), True


async def label_stage(recipe: Recipe, progress: Progress = silent, retry: Retry | None = None) -> LabelResult:
    """Label what has no answer yet, here or by those that `label.runner` names.

    Raises:
        RecipeError, WorkerLost: as `open_runner` does.
        TeacherUnavailable, BudgetSpent, StorageFailed: as `LabelJob.label_shard` does; what was answered is kept.
    """
    return await label(recipe, progress, retry, open_runner(recipe.label.runner))


def distill_stage(
    recipe: Recipe, student: StudentSettings, dataset: Dataset, progress: Progress = silent, tell: Tell | None = None
) -> StudentResult:
    """Train one student, where it is not there yet (torch is imported only if it is not).

    If `student.launch` is set, other processes train. `tell` is then called with the lines of their log; without it, they
    go to standard error.

    Raises:
        RecipeError, DatasetRefused, TrainingError: as `distill` and `launch` do.
    """
    place = student_folder(recipe, student, student.mode, dataset)
    card = place.finished_card()
    if card is not None:
        return StudentResult(place.with_current_key(card), str(place.path), trained=False)
    there = place.trained_card() is not None  # all of it but its quantised copy
    if _is_to_be_launched(student) and not there:
        theirs = recipe if student.mode == "gold" else of_version(recipe, dataset)
        card = _launched(theirs, student, place, ["distill", "--only", student.mode], progress, tell)
        return StudentResult(card, str(place.path), trained=True)
    from stillhouse.student.training.train import distill

    teacher = partial(open_live_teacher, recipe) if student.needs_live_teacher else None
    card = distill(recipe, student, dataset, progress, open_teacher=teacher)
    return StudentResult(card, str(place.path), trained=not there)


def _is_to_be_launched(student: StudentSettings) -> bool:
    return student.launch is not None and not is_launched()


def _launched(
    recipe: Recipe,
    student: StudentSettings,
    place: StudentFolder,
    command: Sequence[str],
    progress: Progress,
    tell: Tell | None,
) -> StudentCard:
    """The card of a student that other processes trained."""
    with place.lock():
        launch(recipe, student, place.work, [*command, "--no-flow"], tell or to_standard_error, progress)
    card = place.finished_card()
    if card is None:
        raise TrainingError(
            f"student.launch: the processes ended well, and {place.path} is not there: do all see the same disk and files?"
        )
    return card


def points_to_train(recipe: Recipe, only: str | None = None, progress: Progress = silent) -> list[PointTraining]:
    """The students of a sweep, each with what it learns from: one version of the dataset for all.

    Raises:
        DatasetMissing: the prompts have not been labelled yet.
        RecipeError: two of them are the same student.
        UsageError: none of them has the mode `only`.
    """
    trainings = []
    for point in points(recipe):
        if only in (None, point.student.mode):
            dataset = dataset_of(point.recipe, point.student, progress)
            own = point.recipe if point.student.mode == "gold" else of_version(point.recipe, dataset)
            trainings.append(PointTraining(replace(point, recipe=own), dataset))
    if not trainings:
        modes = dict.fromkeys(point.student.mode for point in points(recipe))
        raise UsageError(f"--only is {only!r}: the sweep's students are {', '.join(modes)}")
    refuse_same_students(trainings)
    return trainings


def distill_students(recipe: Recipe, progress: Progress = silent, only: str | None = None) -> list[StudentResult]:
    """Train a recipe's student and its baselines, or every student of its sweep, where they are not there yet.

    Raises:
        DatasetMissing, UsageError: as `students_to_train` and `points_to_train` do.
        RecipeError, DatasetRefused, TrainingError: as `distill_stage` does.
    """
    if recipe.sweep is not None:
        trainings = points_to_train(recipe, only, progress)
        return train_points(trainings, recipe.sweep.at_a_time, distill_stage, progress)
    wanted = [(one, dataset_of(recipe, one, progress)) for one in students_to_train(recipe, only)]
    return [distill_stage(recipe, student, dataset, progress) for student, dataset in wanted]


def evaluate_stage(recipe: Recipe, dataset: Dataset, progress: Progress = silent) -> EvaluationResult | SweepEvaluation:
    """Measure every model of the recipe, where the report is not there yet."""
    check_finetuned(recipe)
    if recipe.sweep is not None:
        return evaluate_sweep(recipe, dataset, progress)
    return evaluate(recipe, student_of(recipe), dataset, progress)


def run_stages(recipe: Recipe, progress: Progress = silent) -> RunResult:
    """The whole way, without Prefect."""
    runner = open_runner(recipe.label.runner)  # whoever is to label is there, before anything is trained
    finetuned = finetune_stage(recipe, progress)
    if recipe.needs_gold and finetuned is None:
        make_gold(recipe, progress)
    labelled = run_to_end(label(recipe, progress, runner=runner))
    recipe = of_version(recipe, labelled.dataset)
    students = distill_students(recipe, progress)
    return RunResult(finetuned, labelled, students, evaluate_stage(recipe, recipe_dataset(recipe), progress))
