"""Refuse a recipe that could not be carried out before anything is sent, trained or written.

    check_run(recipe)       # of `stillhouse run`

Each command has one of its own, which looks at what that command would use, and tells all faults at once. Whatever the
command, every kind that the recipe names must be there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import stillhouse.student.losses
from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.evaluation.metrics.base import open_metrics
from stillhouse.labelling.budget import check_budget
from stillhouse.labelling.engine import filters_of
from stillhouse.plugins import check_kind_exists
from stillhouse.prompts.checks import check_prompts
from stillhouse.quality.base import open_filters
from stillhouse.recipe.faults import tell_all
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.load import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.stages.finetune import before_finetuning, check_finetuned, check_finetuning
from stillhouse.stages.launch import check_launch
from stillhouse.stages.sweep_checks import check_sweep
from stillhouse.student.data.template_checks import check_student_template, check_teacher_template
from stillhouse.teachers.base import find_teacher_kind, open_teacher
from stillhouse.teachers.live import check_live_teacher, teacher_options

_LOG = logging.getLogger(__name__)


def student_of(recipe: Recipe) -> StudentSettings:
    """The recipe's student.

    Raises:
        RecipeError: it has none.
    """
    if recipe.student is None:
        raise RecipeError("the recipe has no `student`: add one, for instance {init: {from: teacher, layers: 10}}")
    return recipe.student


# ---------------------------------------------------------------------------------------------------------- each command


def check_run(recipe: Recipe) -> None:
    """Refuse whatever could stop a run in its middle before it begins.

    Raises:
        RecipeError: something in it is wrong, or it has no student.
        PromptError: prompts lack what they need.
        TeacherUnavailable: a model that it starts from is not there.
    """
    student_of(recipe)
    tell_all(
        partial(_check_kinds, recipe),
        partial(_check_teacher, recipe),
        partial(check_prompts, recipe),
        partial(check_teacher_template, recipe),
        partial(_check_students, recipe, _check_trainable),
        partial(_check_students, recipe, _check_template_of_student),
    )


def check_finetune(recipe: Recipe) -> None:
    """Refuse a fine-tuning that could not be done before anything is written.

    Raises:
        RecipeError: the recipe has none, or something in it is wrong.
        PromptError: a prompt lacks its reference.
        TeacherUnavailable: the model that it starts from is not there.
    """
    if recipe.teacher.finetune is None:
        raise RecipeError(
            "the recipe has no `teacher.finetune`: add it, for instance {train: {num_train_epochs: 3}}, or go on with "
            "`stillhouse label`"
        )
    tell_all(
        partial(_check_kinds, recipe),
        partial(_check_teacher, recipe),
        partial(check_prompts, recipe),
        partial(check_teacher_template, recipe),
        partial(check_finetuning, recipe),
    )


def check_plan(recipe: Recipe) -> None:
    """Refuse what `check_labels` refuses, but for a teacher that has still to be fine-tuned.

    Whether this machine could train the student does not matter, and a start that is not at hand here is looked at later.

    Raises:
        PromptError: prompts lack what they need.
        RecipeError: something in it is wrong: a kind, the teacher, a loss that cannot be taken from such labels, the
            student's start, its tokenizer or its chat template.
        TeacherUnavailable: the teacher's model is not there.
    """
    checks = [
        partial(_check_kinds, recipe),
        partial(_check_teacher, recipe),
        partial(check_prompts, recipe),
        partial(check_teacher_template, recipe),
    ]
    if recipe.student is not None:
        checks.append(partial(_check_students, recipe, _check_learner))
    tell_all(*checks)


def check_labels(recipe: Recipe) -> None:
    """Refuse to label for a student that could not learn from the labels, or not be made at all.

    Raises:
        PromptError, RecipeError: as `check_plan` does.
        TeacherUnavailable: the teacher's model is not there, or has still to be fine-tuned.
    """
    tell_all(partial(check_plan, recipe), partial(check_finetuned, recipe, read_prompts=True))


def check_distill(recipe: Recipe) -> None:
    """Refuse a student that could not be trained, or whose teacher has still to be fine-tuned.

    Raises:
        RecipeError, TeacherUnavailable: as `check_student` does.
    """
    student_of(recipe)
    tell_all(partial(check_finetuned, recipe), partial(check_student, recipe))


def check_evaluate(recipe: Recipe) -> None:
    """Refuse a report that could not be made.

    Raises:
        RecipeError: the recipe has no student, or names a kind that is not there.
        TeacherUnavailable: the teacher has still to be fine-tuned.
    """
    student_of(recipe)
    tell_all(partial(_check_kinds, recipe), partial(check_finetuned, recipe))


def check_student(recipe: Recipe) -> None:
    """Refuse a student that could not be trained, or a teacher that could not be fine-tuned, before anything is sent.

    Of a sweep, every student is looked at.

    Raises:
        RecipeError: the recipe has no student, or a kind, its start, its loss or its training arguments are wrong.
        TeacherUnavailable: the model that it starts from is not there.
    """
    tell_all(partial(_check_kinds, recipe), partial(_check_students, recipe, _check_trainable))


# ----------------------------------------------------------------------------------------------------------- what is seen


def _check_kinds(recipe: Recipe) -> None:
    """Refuse a kind that is not there, and wrong options of filters and metrics."""
    tell_all(
        partial(find_teacher_kind, recipe.teacher.kind),
        lambda: open_filters(filters_of(recipe)),
        partial(open_metrics, recipe.evaluate.metrics),
        *([partial(_check_students, recipe, _check_loss_kind)] if recipe.student is not None else []),
    )


def _check_loss_kind(recipe: Recipe) -> None:
    kind = student_of(recipe).loss.kind
    check_kind_exists("student.loss.kind", kind, stillhouse.student.losses, "stillhouse.losses")


def _check_teacher(recipe: Recipe) -> None:
    """Refuse a teacher that cannot be opened, and a budget that could not be kept."""
    if recipe.teacher.finetune is not None:  # it may have to be made first
        teacher_options(recipe)
        return
    check_budget(recipe, open_teacher(recipe.teacher, recipe.label, recipe.seed))


def _check_students(recipe: Recipe, check: Callable[[Recipe], None]) -> None:
    """Check the student, or every student of a sweep."""
    if recipe.sweep is not None:
        check_sweep(recipe, check)
    else:
        check(recipe)


def _check_trainable(recipe: Recipe) -> None:
    """Refuse a student that could not be trained here."""
    from stillhouse.student.training.arguments import training_arguments

    student = student_of(recipe)
    tell_all(
        partial(_check_loss, recipe),
        partial(training_arguments, recipe, student, Path(recipe.students)),
        partial(check_launch, recipe, student),
        partial(check_finetuning, recipe),
        partial(_check_making, recipe),
    )


def _check_loss(recipe: Recipe) -> None:
    from stillhouse.student.training.objective import load_objective

    student = student_of(recipe)
    load_objective(student, encoding_of(recipe.label.soft) if student.needs_soft_labels else None)


def _check_making(recipe: Recipe) -> None:
    """Refuse a start that no student can be made from; each step needs what the one before it found right."""
    from stillhouse.student.data.vocabulary import check_tokenizers
    from stillhouse.student.finished.quantize import check_quantizable
    from stillhouse.student.start.start_config import check_start
    from stillhouse.student.training.lora import check_adapters
    from stillhouse.student.training.packing import refuse_packed_encoder_decoder

    find_teacher_kind(recipe.teacher.kind)  # nothing that follows can be said of a teacher of no kind
    student = student_of(recipe)
    recipe = before_finetuning(recipe)
    if student.needs_live_teacher:
        check_live_teacher(recipe)
    check_start(recipe, student)
    check_tokenizers(recipe, student)
    refuse_packed_encoder_decoder(recipe, student)
    check_adapters(recipe, student)
    check_quantizable(recipe, student)


def _check_learner(recipe: Recipe) -> None:
    """Refuse labels that the student could not learn from."""
    tell_all(partial(_check_loss, recipe), partial(_check_learner_files, recipe))


def _check_learner_files(recipe: Recipe) -> None:
    from stillhouse.student.data.vocabulary import check_tokenizers
    from stillhouse.student.start.start_config import check_start
    from stillhouse.student.training.packing import refuse_packed_encoder_decoder

    find_teacher_kind(recipe.teacher.kind)
    student = student_of(recipe)
    try:
        check_start(recipe, student)
        check_tokenizers(recipe, student)
        refuse_packed_encoder_decoder(recipe, student)
        check_student_template(recipe, student)
    except TeacherUnavailable as error:
        _LOG.warning("the student is not looked at before labelling: %s", error)


def _check_template_of_student(recipe: Recipe) -> None:
    check_student_template(recipe, student_of(recipe))
