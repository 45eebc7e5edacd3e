"""The stage after a student's training, if the recipe has `on_policy`: the rounds, and the student of the best one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused
from stillhouse.labelling.engine import label
from stillhouse.labelling.runners.base import open_runner
from stillhouse.processes.event_loop import run_coroutine
from stillhouse.processes.ranks import first_process_first, is_first, wait_for_all
from stillhouse.progress import Progress, silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import RECIPE_FILE, TeacherIdentity, utc_now
from stillhouse.stages.rounds.recipes import on_policy_of
from stillhouse.stages.rounds.run import RoundResult, RoundSteps, best_round, figures_of, run_rounds
from stillhouse.storage.durable import fsync_files, write_atomically
from stillhouse.student.finished.card import write_cards
from stillhouse.student.finished.folder import StudentFolder, StudentResult, student_folder
from stillhouse.student.finished.quantize import add_int8
from stillhouse.teachers.base import open_teacher


def rounds_stage(
    recipe: Recipe,
    student: StudentSettings,
    labelled: Dataset,
    start: Path,
    steps: RoundSteps,
    progress: Progress = silent,
) -> StudentResult:
    """Run the rounds that are missing, and return the student of the best one.

    Args:
        recipe: the recipe, with `on_policy`.
        student: the student's settings.
        labelled: the teacher's own dataset.
        start: folder of the student that has learnt from it.
        steps: what scores and what trains.
        progress: called with the activity, the items done and the total.

    Raises:
        DatasetRefused: the recipe's teacher is not the one that labelled the dataset.
        StudentBusy: another run is training this recipe's students.
        TeacherUnavailable, BudgetSpent, StorageFailed: rollouts cannot be scored; what was scored is kept.
        TrainingError: a student cannot learn from its rollouts.
    """
    place = student_folder(recipe, student, "on-policy", labelled)
    card = place.finished_card()
    if card is not None:
        return StudentResult(card, str(place.path), trained=False)
    _refuse_other_teacher(recipe, labelled)
    is_trained = place.trained_card() is not None  # only its quantised copy is missing
    with place.lock():
        if not is_trained:
            rounds = run_rounds(recipe, start, labelled, steps, progress)
            if is_first():
                _publish(recipe, place, rounds, labelled)
        if place.wants_int8 and is_first():
            add_int8(place, recipe, student, labelled)
        wait_for_all()
    card = place.finished_card()
    assert card is not None
    return StudentResult(card, str(place.path), trained=not is_trained)


def start_of_rounds(
    recipe: Recipe, students: Sequence[StudentResult], dataset: Dataset, progress: Progress = silent
) -> Path:
    """Return the folder of the student that writes in the first round; an untrained one is made if it is missing.

    Args:
        recipe: the recipe, with `on_policy`.
        students: those that have been trained, the recipe's own last.
        dataset: the teacher's completions.
        progress: called with the activity, the items done and the total, while importance is measured.

    Raises:
        RecipeError, TrainingError: the untrained student cannot be made as the recipe says.
    """
    if on_policy_of(recipe).start is None:
        return Path(students[-1].folder)
    assert recipe.student is not None  # `on_policy` needs one
    from stillhouse.student.training.untrained import prepare_untrained

    with first_process_first():
        return prepare_untrained(recipe, recipe.student, dataset, progress).path


def score_rollouts(recipe: Recipe, progress: Progress) -> Dataset:
    """Have the teacher score the rollouts of a recipe made by `scoring_recipe`, and return the version."""
    return run_coroutine(label(recipe, progress, runner=open_runner(recipe.label.runner))).dataset


def _refuse_other_teacher(recipe: Recipe, labelled: Dataset) -> None:
    """Refuse a teacher whose model, tokenizer or template is not that of the dataset."""
    now, then = open_teacher(recipe.teacher, recipe.label, recipe.seed).identity, labelled.manifest.teacher
    for what, one, other in (
        ("model", _model(now), _model(then)),
        ("tokenizer", now.tokenizer_sha256, then.tokenizer_sha256),
        ("chat template", now.chat_template_sha256, then.chat_template_sha256),
    ):
        if one != other:
            raise DatasetRefused(
                f"dataset {labelled.manifest.label} was labelled by a teacher with another {what} ({other}) than the "
                f"recipe's ({one}), and a student can learn from one teacher only",
                fix="label again with this teacher, or use the one of the dataset",
            )


def _model(identity: TeacherIdentity) -> str:
    return identity.content_sha256 or f"{identity.model}@{identity.revision}"


def _publish(recipe: Recipe, place: StudentFolder, rounds: list[RoundResult], labelled: Dataset) -> None:
    """Copy the student of the best round to its final folder."""
    best = best_round(rounds)
    made = place.work / "model"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(best.student.folder, made)
    card = best.student.card.model_copy(
        update={
            "recipe": recipe.name,
            "variant": place.variant,
            "key": place.key,
            "rounds": figures_of(rounds, best),
            "created_at": utc_now(),
        }
    )
    write_cards(made, card, recipe, labelled.manifest)
    write_atomically(made / RECIPE_FILE, recipe.as_yaml().encode())
    fsync_files(made)
    place.publish(made, card)
