"""The student that the teacher's most important parts make, untrained.

    model, start = parts_of_teacher(recipe, student, teacher, labelled)

Layers are cut first, then widths, then the vocabulary; importance is always measured on the whole teacher.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from pipeline.config import Recipe
from pipeline.dataset.store import Dataset
from pipeline.progress import Progress, silent
from pipeline.student.stacks import Kept, kept_layers
from pipeline.student.start.layers import copy_layers
from pipeline.student.start.record import StackStart, Start
from pipeline.student_settings import StudentSettings


def parts_of_teacher(
    recipe: Recipe,
    student: StudentSettings,
    teacher: PreTrainedModel,
    labelled: Dataset | None,
    progress: Progress = silent,
) -> tuple[PreTrainedModel, Start]:
    """The untrained student of `student.init: {from: teacher, ...}`, and the record of what it was made of.

    Args:
        recipe: names the teacher.
        student: what is to be kept.
        teacher: its weights, in the data type that the student is to have.
        labelled: the teacher's completions; needed where `student.init.needs_dataset`.
        progress: is told how far measuring is.

    Raises:
        RecipeError: the teacher does not have these parts, or they cannot be cut out of it.
        TrainingError: the parts do not make a model.
    """
    init = student.init
    model = teacher
    stacks: tuple[StackStart, ...] = ()
    if init.layers is not None:
        kept = kept_layers(teacher.config, init.layers)
        stacks = tuple(_recorded(one) for one in kept)
        model = copy_layers(teacher, kept)
    return model, Start(
        teacher=recipe.teacher.labelling_model,
        dataset=labelled.manifest.label if labelled is not None else None,
        stacks=stacks,
    )


def _recorded(kept: Kept) -> StackStart:
    return StackStart(stack=kept.stack.name, depth=kept.stack.depth, kept=kept.layers)
