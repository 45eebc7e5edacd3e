"""Write the untrained student: what training starts from, and a baseline of every report."""

from __future__ import annotations

import shutil

from stillhouse.dataset.store import Dataset
from stillhouse.progress import Progress, silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.storage.durable import make_folder
from stillhouse.student.finished.folder import StudentFolder, start_dataset, student_folder
from stillhouse.student.start.initialise import initialise
from stillhouse.student.start.start_config import check_start
from stillhouse.student.training.write_student import publish, student_card


def prepare_untrained(
    recipe: Recipe, student: StudentSettings, labelled: Dataset | None = None, progress: Progress = silent
) -> StudentFolder:
    """Write the untrained student, if it does not exist yet.

    Args:
        recipe: the recipe, which names the teacher.
        student: the student's settings.
        labelled: the teacher's completions; None: the recipe's dataset, if the start needs one.
        progress: called with the activity, the items done and the total, while importance is measured.

    Raises:
        RecipeError: the settings of the start are wrong or do not fit the teacher.
        TeacherUnavailable: the model that the student starts from cannot be found.
        TrainingError: the student cannot be built as the recipe says.
        DatasetMissing: the start needs the teacher's completions, and they have not been labelled.
        DatasetRefused: the dataset that the start needs is damaged, or has another tokenizer.
        StudentBusy: another run is training this recipe's students.
    """
    labelled = start_dataset(recipe, student, labelled)
    folder = student_folder(recipe, student, "untrained", None, labelled)
    if folder.finished_card():
        return folder
    check_start(recipe, student)  # before anything is written, the lock included
    with folder.lock():
        return write_untrained(recipe, student, labelled, progress)


def write_untrained(
    recipe: Recipe, student: StudentSettings, labelled: Dataset | None, progress: Progress
) -> StudentFolder:
    """Do the work of `prepare_untrained`; the caller holds the folder's lock."""
    folder = student_folder(recipe, student, "untrained", None, labelled)
    if folder.finished_card():
        return folder
    made = folder.work / "model"
    shutil.rmtree(made, ignore_errors=True)
    make_folder(folder.work)
    model = initialise(recipe, student, made, labelled, progress)
    publish(recipe, folder, made, student_card(recipe, folder, made, model))
    return folder
