"""Fine-tuning of the teacher before it labels, and the gold dataset (the references) that it learns from.

    gold = make_gold(recipe)             # data/labels/<name>-gold: the prompts, with their references as completions
    tuning = finetuning_of(recipe)       # a separate recipe, whose student becomes the teacher
    distill(tuning.recipe, tuning.student, gold, is_teacher=True)     ->  data/teachers/<name>/gold/

Everything that loads the teacher afterwards uses that folder (`TeacherSettings.labelling_model`). Until it exists, checks
of the teacher's shape and tokenizer use the model that it starts from (`before_finetuning`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset, versions
from stillhouse.errors import TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.labelling.plan import make_plan
from stillhouse.processes.event_loop import run_coroutine
from stillhouse.processes.ranks import first_process_first, is_first, processes
from stillhouse.progress import Progress, silent
from stillhouse.prompts.checks import PromptChecks
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.stages.launch import check_launch
from stillhouse.student.finished.folder import StudentFolder, finetuned_folder, read_card, student_folder
from stillhouse.teachers.base import open_teacher

# ------------------------------------------------------------------------------------------------------------ references


def gold_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe that labels the gold dataset; its plan does not depend on the recipe's other label settings."""
    return recipe.model_copy(
        update={
            "prompts": recipe.gold_prompts,
            "references": None,
            "teacher": TeacherSettings(kind="reference"),
            "label": LabelSettings(mode="score", max_rejected=recipe.label.max_rejected),
            "quality": (),
            "dataset": recipe.dataset.gold,
            "student": None,
        }
    )


def make_gold(recipe: Recipe, progress: Progress = silent) -> Dataset:
    """Return the current references as a dataset, in a new version if they have changed; not inside an event loop.

    Raises:
        PromptError: a prompt cannot be read, or has no reference.
    """
    with _first_process_first():
        return _label_gold(recipe, progress) if is_first() else open_gold(recipe)


def gold_dataset(recipe: Recipe, progress: Progress = silent) -> Dataset:
    """Return the gold dataset as last written; if there is none, write the current references.

    Raises:
        PromptError: a prompt cannot be read, or has no reference.
    """
    with _first_process_first():
        return open_gold(recipe) if has_gold(recipe) else _label_gold(recipe, progress)


def open_gold(recipe: Recipe) -> Dataset:
    """Return the gold dataset as last written.

    Raises:
        DatasetMissing: the gold dataset has not been written.
    """
    return open_dataset(dataset_folder(recipe.dataset.gold))


def has_gold(recipe: Recipe) -> bool:
    """Whether the gold dataset has been written."""
    return bool(versions(dataset_folder(recipe.dataset.gold)))


def _label_gold(recipe: Recipe, progress: Progress) -> Dataset:
    report = partial(progress, "Collecting the references")
    return run_coroutine(label(gold_recipe(recipe), lambda _, done, total: report(done, total))).dataset


def _first_process_first() -> AbstractContextManager[None]:
    """If several processes train together: let the first one write, and the others read what it wrote."""
    return first_process_first() if processes() > 1 else nullcontext()


def _gold_plan(recipe: Recipe) -> str:
    """Return the hash of the plan of the current references, after checking them; nothing is written."""
    gold = gold_recipe(recipe)
    checks = PromptChecks(recipe, "prompts" if recipe.references is None else "references")
    with make_plan(gold, open_teacher(gold.teacher, gold.label, gold.seed).identity, checks=checks) as plan:
        return plan.sha256


# ----------------------------------------------------------------------------------------------------------- the teacher


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning as a recipe, and the student in it that becomes the teacher."""

    of: Recipe  # the recipe whose teacher it makes
    recipe: Recipe
    student: StudentSettings

    def folder(self, gold: Dataset) -> StudentFolder:
        """Return the folder of the fine-tuned teacher."""
        return finetuned_folder(self.of, [gold.manifest.plan_sha256])


def finetuning_of(recipe: Recipe) -> Finetuning | None:
    """Return the fine-tuning that a recipe requests; None if it requests none."""
    tuning = recipe.finetuning
    if tuning is None or tuning.student is None:
        return None
    return Finetuning(recipe, tuning, tuning.student)


def check_finetuning(recipe: Recipe) -> None:
    """Refuse a fine-tuning that cannot work, from files and settings alone.

    Raises:
        RecipeError: its start, its config or its training arguments are wrong; settings are named as in `teacher.finetune`.
        TeacherUnavailable: the model that it starts from does not exist.
    """
    tuning = finetuning_of(recipe)
    if tuning is None:
        return
    from stillhouse.student.start.start_config import check_start
    from stillhouse.student.training.arguments import training_arguments
    from stillhouse.student.training.lora import check_adapters
    from stillhouse.student.training.packing import refuse_packed_encoder_decoder

    training_arguments(tuning.recipe, tuning.student, Path(tuning.recipe.students))
    check_launch(tuning.recipe, tuning.student)
    check_start(tuning.recipe, tuning.student)
    refuse_packed_encoder_decoder(tuning.recipe, tuning.student)
    check_adapters(tuning.recipe, tuning.student)


def before_finetuning(recipe: Recipe) -> Recipe:
    """Return the recipe with the teacher before fine-tuning: of the same shape, with the same tokenizer.

    Fresh weights (`finetune.config`) are created now; the fine-tuning then starts from them.
    """
    tuning = finetuning_of(recipe)
    if tuning is None:
        return recipe
    if tuning.student.init.config is None:
        return recipe.model_copy(update={"teacher": tuning.recipe.teacher})
    untrained = student_folder(tuning.recipe, tuning.student, "untrained", None)
    with _first_process_first():
        if untrained.finished_card() is None:
            from stillhouse.student.training.untrained import prepare_untrained

            prepare_untrained(tuning.recipe, tuning.student)
    start = tuning.recipe.teacher.model_copy(update={"model": str(untrained.path), "revision": None})
    return recipe.model_copy(update={"teacher": start})


def check_finetuned(recipe: Recipe, *, read_prompts: bool = False) -> None:
    """Refuse a teacher that has not been fine-tuned yet, or that was fine-tuned with other settings or references.

    Args:
        recipe: the recipe.
        read_prompts: compare with the current references instead of those of the gold dataset.

    Raises:
        TeacherUnavailable: the teacher has not been fine-tuned with these settings and references.
        PromptError: a prompt lacks something that the recipe needs; only with `read_prompts`.
    """
    tuning = finetuning_of(recipe)
    if tuning is None:
        return
    plan = open_gold(recipe).manifest.plan_sha256 if has_gold(recipe) and not read_prompts else _gold_plan(recipe)
    folder = finetuned_folder(recipe, [plan])
    if folder.finished_card() is not None:
        return
    found = read_card(folder.path)
    state = (
        f"{folder.path} was fine-tuned on {found.created_at} with other settings or other references"
        if found
        else f"the teacher has not been fine-tuned yet: {folder.path} does not exist"
    )
    raise TeacherUnavailable(
        state,
        setting="teacher.finetune",
        fix="run `stillhouse finetune` with the same recipe first, or `stillhouse run`, which starts with it; to use a "
        "fine-tuned teacher without this check, set teacher.model to its folder and remove teacher.finetune",
    )
