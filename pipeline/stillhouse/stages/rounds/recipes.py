"""The recipes of a round's steps, made from a recipe with `on_policy`.

scoring_recipe(recipe, rollouts)                # the teacher scores what the student wrote
training_recipe(recipe, 2, start, scored)       # the student of the second round
"""

from __future__ import annotations

from pathlib import Path

from stillhouse.dataset.store import Dataset
from stillhouse.errors import BudgetSpent, RecipeError
from stillhouse.recipe.label import LabelSettings, SoftSettings
from stillhouse.recipe.on_policy import OnPolicySettings
from stillhouse.recipe.prompts import CompletionOrigin, PromptSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import DataSettings, StudentSettings
from stillhouse.recipe.student_init import InitSettings
from stillhouse.student.rollouts import TOKENS

_ONE_PASS = {"num_train_epochs": 1}  # over a round's rows, unless `on_policy.train` says otherwise
_NO_CHECKPOINT = {"save_strategy": "no"}  # the only one would be written after the last step, just before the student
ROUNDS = "rounds"  # folder of the rounds, among the recipe's students


def on_policy_of(recipe: Recipe) -> OnPolicySettings:
    """Return the recipe's `on_policy`.

    Raises:
        RecipeError: the recipe has none.
    """
    if recipe.on_policy is None:
        raise RecipeError("the recipe has none", setting="on_policy", fix="add it, for instance {rounds: 4}")
    return recipe.on_policy


def rollouts_name(recipe: Recipe) -> str:
    """Return the name of the dataset of scored rollouts."""
    return f"{recipe.dataset.name}-rollouts"


def round_folder(recipe: Recipe, number: int) -> Path:
    """Return the folder of a round: its rollouts, its record and its student."""
    return Path(recipe.students) / recipe.name / ROUNDS / _round_name(number)


def scoring_label(recipe: Recipe) -> LabelSettings:
    """Return the label settings with which the teacher scores rollouts."""
    soft = on_policy_of(recipe).soft or recipe.label.soft or SoftSettings()
    return recipe.label.model_copy(
        update={"mode": "score", "samples": 1, "soft": soft, "response_format": None, "top_logprobs": None}
    )


def round_student(recipe: Recipe, settings: OnPolicySettings) -> StudentSettings:
    """Return the settings of a round's student, without its start and its rows."""
    assert recipe.student is not None
    general = {name: value for name, value in recipe.student.train.items() if name != "max_steps"}
    saves = recipe.student.early_stopping or any(name in general for name in ("save_strategy", "save_steps"))
    return recipe.student.model_copy(
        update={
            "loss": settings.loss or recipe.student.loss,
            "train": {**general, **_ONE_PASS, **({} if saves else _NO_CHECKPOINT), **settings.train},
            "quantize": None,
        }
    )


def scoring_recipe(recipe: Recipe, rollouts: Path, student_sha256: str, labelled: Dataset) -> Recipe:
    """Return the recipe with which the teacher scores rollouts, exactly as tokens.

    Args:
        recipe: the recipe, with `on_policy`.
        rollouts: the file of rollouts.
        student_sha256: content of the student that wrote them.
        labelled: the teacher's own dataset.

    Raises:
        BudgetSpent: labelling the dataset has spent the whole budget.
    """
    label = scoring_label(recipe)
    if label.budget_usd is not None:
        left = label.budget_usd - (labelled.manifest.totals.spent_usd or 0.0)
        if left <= 0:
            raise BudgetSpent(
                f"dataset {labelled.manifest.label} has spent all of it, so no rollout can be scored",
                setting="label.budget_usd",
                value=label.budget_usd,
                fix="set it higher, or remove on_policy",
            )
        label = label.model_copy(update={"budget_usd": left})
    origin = CompletionOrigin(
        student=student_sha256, dataset=labelled.manifest.label, teacher_share=on_policy_of(recipe).teacher_share
    )
    prompts = PromptSettings(
        source=str(rollouts), score_tokens=TOKENS, written_by=origin, last_turn="continue", holdout=0
    )
    return recipe.model_copy(
        update={
            "prompts": prompts,
            "references": None,
            "teacher": recipe.teacher.as_finetuned,  # rollouts need no reference
            "label": label,
            "quality": (),
            "dataset": recipe.dataset.model_copy(update={"name": rollouts_name(recipe), "version": None}),
            "student": None,
            "on_policy": None,
        }
    )


def training_recipe(recipe: Recipe, number: int, start: Path, scored: Dataset, labelled: Dataset) -> Recipe:
    """Return the recipe of a round's student, which starts from the student of the round before."""
    settings = on_policy_of(recipe)
    rollouts = scored.manifest.rows.get("train", 0)
    data = [DataSettings(dataset=scored.manifest.name, version=scored.manifest.version)]
    if (rows := settings.rows_from_dataset(rollouts)) > 0:
        data.append(DataSettings(dataset=labelled.manifest.name, version=labelled.manifest.version, rows=rows))
    own = {"init": InitSettings(model=str(start)), "data": tuple(data)}
    student = round_student(recipe, settings).model_copy(update=own)
    return recipe.model_copy(
        update={
            "name": _round_name(number),
            "seed": recipe.seed + number,
            "students": str(round_folder(recipe, number).parent),
            "student": student,
            "on_policy": None,
            "dataset": recipe.dataset.model_copy(update={"version": labelled.manifest.version}),
        }
    )


def student_of_round(recipe: Recipe) -> StudentSettings:
    """Return the student of a recipe made by `training_recipe`."""
    assert recipe.student is not None
    return recipe.student


def _round_name(number: int) -> str:
    return f"round-{number:03d}"
