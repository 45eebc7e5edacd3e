"""A live teacher: it runs alongside the student in training and gives logits in the same step; no labels are stored.

    student: {labels: live, ...}      # the recipe is otherwise the same; label.soft may be null

The teacher's text still comes from a dataset; only its distributions are computed in every step, over the full vocabulary
instead of the k most likely tokens. This costs a teacher forward pass in every epoch; stored labels cost one in total.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillhouse.errors import RecipeError
from stillhouse.models.checks import refuse_untrusted_code
from stillhouse.models.find import can_load_in_process, teacher_files
from stillhouse.recipe.recipe import Recipe
from stillhouse.settings import parse_options
from stillhouse.teachers.transformers import TransformersOptions, load

if TYPE_CHECKING:
    from torch import Tensor

    from stillhouse.models.head import Parts
    from stillhouse.models.load import LanguageModel


class LiveTransformersTeacher:
    """A language model in this process, causal or encoder-decoder; the protocol is
    `LiveTeacher` in student/training/forward.py."""

    def __init__(self, parts: Parts, vocabulary_size: int) -> None:
        self._parts = parts
        self.vocabulary_size = vocabulary_size

    def hidden(self, input_ids: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """Return the hidden states that predict each completion token: (completion tokens, the teacher's width)."""
        return self._parts.hidden(input_ids, labels, **arguments)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project to logits: (positions, the teacher's width) -> (positions, the teacher's vocabulary) float32."""
        return self._parts.head(hidden)


def check_live_teacher(recipe: Recipe) -> None:
    """Refuse a teacher that cannot run alongside the student.

    Raises:
        RecipeError: the teacher's weights are not local, or its options are wrong.
        TeacherUnavailable: the model does not exist.
    """
    if not can_load_in_process(recipe.teacher):
        raise RecipeError(
            f"a live teacher runs in this process, and teacher.kind {recipe.teacher.kind!r} does not",
            setting="student.labels",
            value="live",
            fix="set teacher.kind to transformers and teacher.model to its folder or hub id, or student.labels to 'stored'",
        )
    trusted = teacher_options(recipe).trust_remote_code
    refuse_untrusted_code(teacher_files(recipe), "teacher.model", "teacher.options.trust_remote_code", trusted=trusted)


def open_live_teacher(recipe: Recipe) -> LiveTransformersTeacher:
    """Load the recipe's teacher on the device that the student trains on.

    Raises:
        RecipeError: the teacher's weights are not local, or its options are wrong.
        TeacherUnavailable: the model does not exist.
    """
    from stillhouse.models.head import split

    check_live_teacher(recipe)
    lm = load_teacher(recipe)
    return LiveTransformersTeacher(split(lm.model), int(lm.model.config.vocab_size))


def load_teacher(recipe: Recipe) -> LanguageModel:
    """Load the recipe's teacher into this process, as its options say.

    Raises:
        RecipeError: the options are wrong.
        TeacherUnavailable: the model does not exist.
    """
    lm = load(teacher_files(recipe), teacher_options(recipe))
    lm.model.requires_grad_(False)
    return lm


def teacher_options(recipe: Recipe) -> TransformersOptions:
    """Return the options for running the teacher in this process."""
    given = recipe.teacher.options if recipe.teacher.kind == "transformers" else {}  # a server's options do not apply
    return parse_options("teacher.options", given, TransformersOptions)
