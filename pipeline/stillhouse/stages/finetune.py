"""A teacher that learns the task before it labels, and the dataset of references that it learns from.

    gold = make_gold(recipe)             # data/labels/<name>-gold: the prompts, with their references as completions
    tuning = finetuning_of(recipe)       # a recipe of its own, whose student becomes the teacher
    distill(tuning.recipe, tuning.student, gold, is_teacher=True)     ->  data/teachers/<name>/gold/

Everything that loads the teacher afterwards takes that folder (`TeacherSettings.labelling_model`). Until it is there, what
can be asked of its shape and its tokenizer is asked of its start (`before_finetuning`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset, versions
from stillhouse.errors import StillhouseError, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.labelling.plan import make_plan
from stillhouse.processes.event_loop import run_coroutine
from stillhouse.processes.ranks import first_process_first, is_first, processes
from stillhouse.progress import Progress, silent
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.stages.launch import check_launch
from stillhouse.student.finished.folder import StudentFolder, place_of, read_card, student_folder
from stillhouse.teachers.base import open_teacher

_NAMES = (  # settings of a student -> where they stand in a recipe whose teacher is fine-tuned
    (r"\bstudent\.(?=(train|max_length|freeze|packing|lora|early_stopping|head_chunk|launch)\b)", "teacher.finetune."),
    (r"\bstudent\.init\.config\b", "teacher.finetune.config"),
    (r"\bstudent\.init(\.model)?\b", "teacher.model"),
    (r"\bstudent\.trust_remote_code\b", "teacher.options.trust_remote_code"),
)


# ------------------------------------------------------------------------------------------------------------ references


def gold_recipe(recipe: Recipe) -> Recipe:
    """How the gold dataset is labelled; its plan is the same whatever else the recipe says of labels."""
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
    """The references of today as a dataset, a new version of it where they have changed; not inside an event loop.

    Raises:
        PromptError: a prompt cannot be read, or has no reference.
    """
    with _one_by_one():
        return _label_gold(recipe, progress) if is_first() else open_gold(recipe)


def gold_dataset(recipe: Recipe, progress: Progress = silent) -> Dataset:
    """The references as they were written last, or else those of today.

    Raises:
        PromptError: as `make_gold` does.
    """
    with _one_by_one():
        return open_gold(recipe) if has_gold(recipe) else _label_gold(recipe, progress)


def open_gold(recipe: Recipe) -> Dataset:
    """The references as they were written last.

    Raises:
        DatasetMissing: they have not been.
    """
    return open_dataset(dataset_folder(recipe.dataset.gold))


def has_gold(recipe: Recipe) -> bool:
    """Whether they have been."""
    return bool(versions(dataset_folder(recipe.dataset.gold)))


def _label_gold(recipe: Recipe, progress: Progress) -> Dataset:
    told = partial(progress, "Collecting the references")
    return run_coroutine(label(gold_recipe(recipe), lambda _, done, total: told(done, total))).dataset


def _one_by_one() -> AbstractContextManager[None]:
    """Where several processes train together, the first writes, and the others find what it wrote."""
    return first_process_first() if processes() > 1 else nullcontext()


def _gold_plan(recipe: Recipe) -> str:
    """The name of the references of today; nothing is written."""
    gold = gold_recipe(recipe)
    with make_plan(gold, open_teacher(gold.teacher, gold.label, gold.seed).identity) as plan:
        return plan.sha256


# ----------------------------------------------------------------------------------------------------------- the teacher


@dataclass(frozen=True)
class Finetuning:
    """A fine-tuning as a recipe, and the student in it that becomes the teacher."""

    recipe: Recipe
    student: StudentSettings

    def place(self, gold: Dataset) -> StudentFolder:
        """Where it comes to lie."""
        return student_folder(self.recipe, self.student, "gold", gold)


def finetuning_of(recipe: Recipe) -> Finetuning | None:
    """The fine-tuning that a recipe asks for."""
    teacher, settings = recipe.teacher, recipe.teacher.finetune
    if settings is None:
        return None
    trusted = teacher.options.get("trust_remote_code") is True
    student = settings.as_student(teacher.model, teacher.revision, trust_remote_code=trusted)
    own = {
        "name": settings.name or recipe.name,
        "seed": recipe.seed if settings.seed is None else settings.seed,
        "students": settings.root,
        "teacher": teacher.model_copy(update={"finetune": None}),
        "student": student,
        "evaluate": EvaluateSettings(baselines=()),
    }
    return Finetuning(recipe.model_copy(update=own), student)


@contextmanager
def told_of_the_teacher() -> Iterator[None]:
    """What is refused within names the settings of `teacher.finetune`, and not a student's."""
    try:
        yield
    except StillhouseError as error:
        message = str(error)
        for pattern, name in _NAMES:
            message = re.sub(pattern, name, message)
        raise type(error)(message) from error


def check_finetuning(recipe: Recipe) -> None:
    """Refuse a fine-tuning that could not be done, from files and settings alone.

    Raises:
        RecipeError: its start, its config or its training arguments are wrong.
        TeacherUnavailable: the model that it starts from is not there.
    """
    tuning = finetuning_of(recipe)
    if tuning is None:
        return
    from stillhouse.student.start.start_config import check_start
    from stillhouse.student.training.arguments import training_arguments
    from stillhouse.student.training.lora import check_adapters
    from stillhouse.student.training.packing import refuse_packed_encoder_decoder

    with told_of_the_teacher():
        training_arguments(tuning.recipe, tuning.student, Path(tuning.recipe.students))
        check_launch(tuning.recipe, tuning.student)
        check_start(tuning.recipe, tuning.student)
        refuse_packed_encoder_decoder(tuning.recipe, tuning.student)
        check_adapters(tuning.recipe, tuning.student)


def before_finetuning(recipe: Recipe) -> Recipe:
    """The recipe with the teacher as it is before it is fine-tuned: of the same shape, with the same tokenizer.

    Where its weights are fresh (`finetune.config`) they are made now; the fine-tuning then starts from these.
    """
    tuning = finetuning_of(recipe)
    if tuning is None:
        return recipe
    if tuning.student.init.config is None:
        return recipe.model_copy(update={"teacher": tuning.recipe.teacher})
    place = student_folder(tuning.recipe, tuning.student, "untrained", None)
    with told_of_the_teacher(), _one_by_one():
        if place.finished() is None:
            from stillhouse.student.training.train import prepare_untrained

            prepare_untrained(tuning.recipe, tuning.student)
    start = tuning.recipe.teacher.model_copy(update={"model": str(place.path), "revision": None})
    return recipe.model_copy(update={"teacher": start})


def check_finetuned(recipe: Recipe, *, read_prompts: bool = False) -> None:
    """Refuse to go on with a teacher that is not fine-tuned yet, or was so with other settings or other references.

    Args:
        recipe: any.
        read_prompts: hold it against the references of today, and not against those of the gold dataset.

    Raises:
        TeacherUnavailable: it is.
    """
    tuning = finetuning_of(recipe)
    if tuning is None:
        return
    plan = open_gold(recipe).manifest.plan_sha256 if has_gold(recipe) and not read_prompts else _gold_plan(recipe)
    place = place_of(tuning.recipe, tuning.student, "gold", [plan])
    if place.finished() is not None:
        return
    found = read_card(place.path)
    was = f"was fine-tuned {found.created_at} with other settings or other references" if found else "is not there"
    raise TeacherUnavailable(
        f"teacher.finetune is set, and {place.path} {was}: run `stillhouse finetune` with the same recipe first, or "
        "`stillhouse run`, which begins with it. (A fine-tuned teacher is taken as it is where teacher.model is its folder "
        "and teacher.finetune is taken away.)"
    )
