"""Refuse a recipe that could not be carried out before anything is sent, trained or written.

    check_run(recipe)       # of `stillhouse run`

Each command has one of its own, which looks at what that command would use.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.config import Recipe
from pipeline.errors import RecipeError, TeacherUnavailable
from pipeline.evaluation.metrics.base import open_metrics
from pipeline.finetuning import before_finetuning, check_finetuned, check_finetuning
from pipeline.label_settings import encoding_of
from pipeline.launch import check_launch
from pipeline.live_teacher import check_live_teacher
from pipeline.prompt_checks import check_prompts
from pipeline.student_settings import StudentSettings
from pipeline.sweep_checks import check_sweep
from pipeline.teachers.base import find_kind

_LOG = logging.getLogger(__name__)


def student_of(recipe: Recipe) -> StudentSettings:
    """The recipe's student.

    Raises:
        RecipeError: it has none.
    """
    if recipe.student is None:
        raise RecipeError("the recipe has no `student`: add one, for instance {init: {from: teacher, layers: 10}}")
    return recipe.student


def check_run(recipe: Recipe) -> None:
    """Refuse whatever could stop a run in its middle before it begins.

    Raises:
        RecipeError, TeacherUnavailable: as `check_student` does.
        PromptError: prompts lack what they need.
    """
    student_of(recipe)
    check_prompts(recipe)
    check_student(recipe)


def check_finetune(recipe: Recipe) -> None:
    """Refuse a fine-tuning that could not be done before anything is written.

    Raises:
        RecipeError: the recipe has none, or it is wrong.
        PromptError: a prompt lacks its reference.
        TeacherUnavailable: the model that it starts from is not there.
    """
    if recipe.teacher.finetune is None:
        raise RecipeError(
            "the recipe has no `teacher.finetune`: add it, for instance {train: {num_train_epochs: 3}}, or go on with "
            "`stillhouse label`"
        )
    check_prompts(recipe)
    check_finetuning(recipe)


def check_distill(recipe: Recipe) -> None:
    """Refuse a student that could not be trained, or whose teacher has still to be fine-tuned.

    Raises:
        RecipeError, TeacherUnavailable: as `check_student` does.
    """
    student_of(recipe)
    check_finetuned(recipe)
    check_student(recipe)


def check_student(recipe: Recipe) -> None:
    """Refuse a student that could not be trained, or a teacher that could not be fine-tuned, before anything is sent.

    Of a sweep, every student is looked at.

    Raises:
        RecipeError: the recipe has no student, or its start, its loss, its training arguments or a metric are
            wrong.
        TeacherUnavailable: the model that it starts from is not there.
    """
    if recipe.sweep is not None:
        check_sweep(recipe, check_student)
        return
    from pipeline.student.arguments import training_arguments
    from pipeline.student.lora import check_adapters
    from pipeline.student.objective import open_objective
    from pipeline.student.packing import refuse_packed_encoder_decoder
    from pipeline.student.quantize import check_quantizable
    from pipeline.student.start_config import check_start
    from pipeline.student.vocabulary import check_tokenizers

    student = student_of(recipe)
    find_kind(recipe.teacher.kind)
    open_metrics(recipe.evaluate.metrics)
    open_objective(student, encoding_of(recipe.label.soft) if student.needs_soft_labels else None)
    training_arguments(recipe, student, Path(recipe.students))
    check_launch(recipe, student)
    check_finetuning(recipe)
    recipe = before_finetuning(recipe)
    if student.needs_live_teacher:
        check_live_teacher(recipe)
    check_start(recipe, student)
    check_tokenizers(recipe, student)
    refuse_packed_encoder_decoder(recipe, student)
    check_adapters(recipe, student)
    check_quantizable(recipe, student)


def check_labels(recipe: Recipe) -> None:
    """Refuse to label for a student that could not learn from the labels, or not be made at all.

    Whether this machine could train it does not matter, and a start that is not at hand here is looked at later.

    Raises:
        PromptError: prompts lack what they need.
        TeacherUnavailable: the teacher has still to be fine-tuned.
        RecipeError: the loss cannot be taken from such labels, or the student's start or tokenizer or a metric is wrong.
    """
    open_metrics(recipe.evaluate.metrics)
    check_prompts(recipe)
    check_finetuned(recipe, read_prompts=True)
    if recipe.sweep is not None:
        check_sweep(recipe, _check_learner)
    elif recipe.student is not None:
        _check_learner(recipe)


def _check_learner(recipe: Recipe) -> None:
    """Refuse labels that the student could not learn from."""
    from pipeline.student.objective import open_objective
    from pipeline.student.packing import refuse_packed_encoder_decoder
    from pipeline.student.start_config import check_start
    from pipeline.student.vocabulary import check_tokenizers

    student = student_of(recipe)
    open_objective(student, encoding_of(recipe.label.soft) if student.needs_soft_labels else None)
    try:
        check_start(recipe, student)
        check_tokenizers(recipe, student)
        refuse_packed_encoder_decoder(recipe, student)
    except TeacherUnavailable as error:
        _LOG.warning("the student is not looked at before labelling: %s", error)
