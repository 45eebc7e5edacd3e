"""Build the untrained student from the teacher's most important parts.

    model, start = parts_of_teacher(recipe, student, files, teacher, labelled)

Layers are cut first, then widths, then the vocabulary; importance is always measured on the whole teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache

from transformers import PreTrainedModel

from stillhouse.dataset.store import Dataset
from stillhouse.models.files import ModelFiles
from stillhouse.models.load import choose_device, load_language_model
from stillhouse.progress import Progress, silent
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.student.start.activations import Activations, measure_activations
from stillhouse.student.start.choice import LayerMeasurer, choose_layers
from stillhouse.student.start.importance import MeasuredTeacher
from stillhouse.student.start.layers import copy_layers
from stillhouse.student.start.record import StackStart, Start
from stillhouse.student.start.rows import measured_rows
from stillhouse.student.start.stacks import Kept
from stillhouse.student.start.store import ImportanceStore
from stillhouse.student.start.widths import cut_widths


def parts_of_teacher(
    recipe: Recipe,
    student: StudentSettings,
    files: ModelFiles,
    teacher: PreTrainedModel,
    labelled: Dataset | None,
    progress: Progress = silent,
) -> tuple[PreTrainedModel, Start]:
    """Return the untrained student of `student.init: {from: teacher, ...}`, and the record of its parts.

    Args:
        recipe: the recipe, which names the folder for cached measurements.
        student: the student's settings, with the parts to keep.
        files: the teacher's files.
        teacher: the teacher's weights, in the data type of the student.
        labelled: the teacher's completions; needed if `student.init.needs_dataset`.
        progress: called with the activity, the items done and the total, while importance is measured.

    Raises:
        RecipeError: the teacher does not have these parts, or they cannot be cut out of it.
        TrainingError: the parts do not make a model, or no row is short enough to measure on.
    """
    init = student.init

    @cache  # the teacher is loaded for measuring at most once, and only if the store lacks something
    def measured() -> MeasuredTeacher:
        assert labelled is not None
        return _measured(files, labelled, student)

    store = ImportanceStore.of(recipe, student, files, labelled) if labelled is not None else None
    model = teacher
    kept: list[Kept] = []
    stacks: tuple[StackStart, ...] = ()
    widths: dict[str, tuple[int, int]] = {}
    measures = init.measures_layers or init.width is not None
    with store.lock(progress) if store is not None and measures else nullcontext():
        if init.layers is not None:
            measurer = LayerMeasurer(measured, store, progress) if store is not None else None
            kept, stacks = choose_layers(init, teacher.config, measurer)
            model = copy_layers(teacher, kept)
        if init.width is not None:
            assert store is not None  # `init.needs_dataset`
            model, widths = cut_widths(model, init.width, _activations(store, measured), kept)
    return model, Start(
        teacher=recipe.teacher.labelling_model,
        dataset=labelled.manifest.label if labelled is not None else None,
        rows=_rows(labelled, init.rows) if measures else 0,
        stacks=stacks,
        widths=widths,
    )


def _activations(store: ImportanceStore, measured: Callable[[], MeasuredTeacher]) -> Activations:
    """Return the activation statistics, measured if the store has none or their file is damaged."""
    with suppress(FileNotFoundError, ValueError):
        return Activations.load(store.widths)
    teacher = measured()
    activations = measure_activations(teacher.model, teacher.batches)
    activations.save(store.widths)
    return activations


def _measured(files: ModelFiles, labelled: Dataset, student: StudentSettings) -> MeasuredTeacher:
    """Load the whole teacher and the rows; in float32 on a CPU, where lower precision is slow, else in bfloat16."""
    device = choose_device("auto")
    lm = load_language_model(
        files.folder,
        dtype="float32" if device.type == "cpu" else "bfloat16",
        trust_remote_code=student.trust_remote_code,
    )
    return MeasuredTeacher(lm.model, measured_rows(labelled, lm, files, student))


def _rows(labelled: Dataset | None, asked: int) -> int:
    """Return the maximum number of rows to measure on: a small dataset has fewer than requested."""
    return asked if labelled is None else min(asked, labelled.manifest.rows.get("train", asked))
