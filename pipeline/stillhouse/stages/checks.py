"""Checks of a recipe before anything is sent, trained or written.

    check_run(recipe)       # for `stillhouse run`

Each command has its own function, which checks what the command will use and reports all faults together. Every command
checks that all kinds that the recipe names exist.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import stillhouse.student.losses
from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.evaluation.metrics.base import open_metrics
from stillhouse.labelling.batches.checks import check_batches
from stillhouse.labelling.budget import check_budget
from stillhouse.labelling.filtering import filters_of
from stillhouse.plugins import check_kind_exists
from stillhouse.prompts.checks import check_prompts, check_references
from stillhouse.quality.base import open_filters
from stillhouse.recipe.faults import Check, faults_of, raise_all, run_checks
from stillhouse.recipe.label import encoding_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.stages.finetune import before_finetuning, check_finetuned, check_finetuning
from stillhouse.stages.launch import check_launch
from stillhouse.stages.rounds.checks import check_on_policy
from stillhouse.stages.sweep_checks import check_sweep
from stillhouse.student.data.template_checks import check_student_template, check_teacher_template
from stillhouse.teachers.base import find_teacher_kind, open_teacher
from stillhouse.teachers.live import check_live_teacher, teacher_options

_LOG = logging.getLogger(__name__)


def student_of(recipe: Recipe) -> StudentSettings:
    """Return the recipe's student.

    Raises:
        RecipeError: the recipe has no student.
    """
    if recipe.student is None:
        raise RecipeError(
            "the recipe has none", setting="student", fix="add one, for instance {init: {from: teacher, layers: 10}}"
        )
    return recipe.student


# ---------------------------------------------------------------------------------------------------------- each command


def check_run(recipe: Recipe) -> None:
    """Check everything that could make `run` fail after it has started, except prompts that labelling reads first of all.

    Raises:
        RecipeError: a setting is wrong, or the recipe has no student.
        PromptError: a prompt lacks something that the recipe needs.
        TeacherUnavailable: a model that teacher or student starts from does not exist.
    """
    student_of(recipe)
    checks = [
        partial(_check_kinds, recipe),
        partial(_check_teacher, recipe),
        partial(check_teacher_template, recipe),
        partial(_check_students, recipe, _check_trainable),
        partial(_check_students, recipe, _check_template_of_student),
    ]
    if recipe.needs_gold:  # something may be trained or written before labelling reads the prompts
        run_checks(*checks, partial(check_prompts, recipe))
    else:
        _check_before_reading(recipe, *checks)


def check_finetune(recipe: Recipe) -> None:
    """Check that the teacher can be fine-tuned, before anything is written.

    Raises:
        RecipeError: the recipe has no `teacher.finetune`, or a setting is wrong.
        PromptError: a prompt lacks its reference.
        TeacherUnavailable: the model that the teacher starts from does not exist.
    """
    if recipe.teacher.finetune is None:
        raise RecipeError(
            "the recipe does not fine-tune its teacher",
            setting="teacher.finetune",
            value=None,
            fix="set it, for instance to {train: {num_train_epochs: 3}}, or continue with `stillhouse label`",
        )
    run_checks(
        partial(_check_kinds, recipe),
        partial(_check_teacher, recipe),
        partial(check_prompts, recipe),
        partial(check_teacher_template, recipe),
        partial(_check_trainable if recipe.learns_along else check_finetuning, recipe),
    )


def check_plan(recipe: Recipe) -> None:
    """Check what `check_labels` checks, but accept a teacher that has not been fine-tuned yet.

    Whether this machine can train the student is not checked. A start that is not on this machine is checked later, and so
    are the prompts, while the plan reads them, unless another check fails.

    Raises:
        PromptError: a prompt lacks something that the recipe needs.
        RecipeError: a kind, the teacher, the student's start, its tokenizer or its chat template is wrong, or the loss
            cannot use these labels.
        TeacherUnavailable: the teacher's model does not exist.
    """
    checks = [
        partial(_check_kinds, recipe),
        partial(_check_teacher, recipe),
        partial(check_teacher_template, recipe),
    ]
    if recipe.teacher.finetune is None:  # else check_finetuned reads the references, and checks them
        checks.append(partial(check_references, recipe))
    if recipe.student is not None:
        checks.append(partial(_check_students, recipe, _check_learner))
    _check_before_reading(recipe, *checks)


def check_labels(recipe: Recipe) -> None:
    """Check that the prompts can be labelled, and that the student could learn from the labels.

    The prompts themselves are checked while labelling reads them, before anything is sent, unless another check fails.

    Raises:
        PromptError: a prompt lacks something that the recipe needs.
        RecipeError: a setting of the teacher, the labels or the student is wrong.
        TeacherUnavailable: the teacher's model does not exist, or the teacher has not been fine-tuned yet.
    """
    run_checks(partial(check_plan, recipe), partial(check_finetuned, recipe, read_prompts=True))


def check_distill(recipe: Recipe) -> None:
    """Check that the student can be trained, and that its teacher has been fine-tuned.

    Raises:
        RecipeError: the recipe has no student, or a kind, its start, its loss or its training arguments are wrong.
        TeacherUnavailable: the model that the student starts from does not exist, or the teacher has not been fine-tuned.
    """
    student_of(recipe)
    run_checks(partial(check_finetuned, recipe), partial(check_student, recipe))


def check_evaluate(recipe: Recipe) -> None:
    """Check that the models can be measured.

    Raises:
        RecipeError: the recipe has no student, or names a kind that does not exist.
        TeacherUnavailable: the teacher has not been fine-tuned yet.
    """
    student_of(recipe)
    run_checks(partial(_check_kinds, recipe), partial(check_finetuned, recipe))


def check_student(recipe: Recipe) -> None:
    """Check that the student, or every student of a sweep, can be trained and the teacher fine-tuned.

    Raises:
        RecipeError: the recipe has no student, or a kind, its start, its loss or its training arguments are wrong.
        TeacherUnavailable: the model that the student starts from does not exist.
    """
    run_checks(partial(_check_kinds, recipe), partial(_check_students, recipe, _check_trainable))


# ----------------------------------------------------------------------------------------------------------- single checks


def _check_before_reading(recipe: Recipe, *checks: Check) -> None:
    """Run the checks that do not read every prompt. If one fails, check the prompts as well, to report all faults together.

    If none fails, `make_plan` checks the prompts while it reads them, so that they are read once.
    """
    found = [error for check in checks for error in faults_of(check)]
    if found:
        found += faults_of(partial(check_prompts, recipe))
    raise_all(found)


def _check_kinds(recipe: Recipe) -> None:
    """Check that all kinds exist, and the options of filters and metrics."""
    run_checks(
        partial(find_teacher_kind, recipe.teacher.kind),
        lambda: open_filters(filters_of(recipe)),
        partial(open_metrics, recipe.evaluate.metrics),
        *([partial(_check_students, recipe, _check_loss_kind)] if recipe.student is not None else []),
    )


def _check_loss_kind(recipe: Recipe) -> None:
    kind = student_of(recipe).loss.kind
    check_kind_exists("student.loss.kind", kind, stillhouse.student.losses, "stillhouse.losses")


def _check_teacher(recipe: Recipe) -> None:
    """Check that the teacher can be opened, and that the budget can be enforced."""
    if recipe.teacher.finetune is not None:  # it may not exist yet
        teacher_options(recipe)
        return
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    check_budget(recipe, teacher)
    if recipe.label.delivery != "online":
        check_batches(recipe, teacher)


def _check_students(recipe: Recipe, check: Callable[[Recipe], None]) -> None:
    """Check the student, or every student of a sweep."""
    if recipe.sweep is not None:
        check_sweep(recipe, check)
    else:
        check(recipe)


def _check_trainable(recipe: Recipe) -> None:
    """Check that the student can be trained on this machine."""
    from stillhouse.student.training.arguments import training_arguments

    student = student_of(recipe)
    run_checks(
        partial(_check_loss, recipe),
        partial(check_on_policy, recipe),
        partial(training_arguments, recipe, student, Path(recipe.students)),
        partial(check_launch, recipe, student),
        partial(check_finetuning, recipe),
        partial(_check_start, recipe),
    )


def _check_loss(recipe: Recipe) -> None:
    from stillhouse.student.training.objective import load_objective

    student = student_of(recipe)
    load_objective(student, encoding_of(recipe.label.soft) if student.needs_soft_labels else None)


def _check_start(recipe: Recipe) -> None:
    """Check that a student can be made from its start; each step relies on the ones before it."""
    from stillhouse.student.data.vocabulary import check_tokenizers
    from stillhouse.student.finished.quantize import check_quantizable
    from stillhouse.student.start.start_config import check_start
    from stillhouse.student.training.lora import check_adapters
    from stillhouse.student.training.packing import refuse_packed_encoder_decoder

    find_teacher_kind(recipe.teacher.kind)  # the following checks need a known kind
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
    """Check that the student can learn from the labels."""
    run_checks(partial(_check_loss, recipe), partial(_check_learner_start, recipe))


def _check_learner_start(recipe: Recipe) -> None:
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
        if error.setting == "teacher.model":  # nothing can be labelled either; `_check_teacher` raises the same error
            raise
        _LOG.warning("the student is not checked before labelling: %s", error)


def _check_template_of_student(recipe: Recipe) -> None:
    check_student_template(recipe, student_of(recipe))
