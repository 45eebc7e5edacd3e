"""Whether a model can learn from packed rows: several rows in one sequence that do not attend to each other.

    check_packing_of_models(settings, student, teacher)

`batches.py` packs. From position ids that restart and a missing attention mask, the models of transformers detect a packed
sequence, and mask attention between examples (`masking_utils.find_packed_sequence_indices`). Models that take no position
ids, or whose layers carry a state from token to token, do not; so packing is tested with the model in use, on a few tokens.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.errors import RecipeError, TrainingError
from stillhouse.models.head import split
from stillhouse.models.load import LanguageModel
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.student.data.batches import collator, pack_first_fit
from stillhouse.student.data.rows import Example
from stillhouse.student.start.start_config import student_config
from stillhouse.student.training.forward import LiveTeacher

_PROBE = ((3, 4), (1, 2), (2, 2), (1, 5))  # tokens of prompt and completion
_WIDTH = 8  # sequence length of the probe: two examples in one sequence, and padding in another


class Hidden(Protocol):
    """`stillhouse.models.head.Parts.hidden`, or a live teacher's."""

    def __call__(self, input_ids: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        """Return the hidden states that predict each completion token: (completion tokens, width)."""


def refuse_packed_encoder_decoder(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse `student.packing` if the student is an encoder-decoder, from its config alone.

    Raises:
        RecipeError: packing is on and the student is an encoder-decoder.
        TeacherUnavailable: the model that the student starts from cannot be found.
    """
    if not student.packing:
        return
    config = student_config(recipe, student)
    if config.is_encoder_decoder:
        raise RecipeError(
            f"the student is an encoder-decoder ({config.model_type}), and packing supports only causal models",
            setting=student.setting("packing"),
            value=True,
            fix=f"set it to false, and {student.setting('train.train_sampling_strategy')} to group_by_length, which needs "
            "little padding",
        )


def check_packing_of_models(
    student: StudentSettings, lm: LanguageModel, teacher: LiveTeacher | PreTrainedModel | None
) -> None:
    """Check packing for a student, and for the live teacher, or one that learns along, that gets the same batches.

    Raises:
        TrainingError: one of them gives packed examples other hidden states than it gives them alone.
    """
    setting = student.setting("packing")
    vocabulary = int(lm.model.get_input_embeddings().num_embeddings)
    check_packing(split(lm.model).hidden, vocabulary, lm.device, "student", setting)
    if isinstance(teacher, PreTrainedModel):
        rows = int(teacher.get_input_embeddings().num_embeddings)
        check_packing(split(teacher).hidden, rows, lm.device, "teacher", setting)
    elif teacher is not None:
        check_packing(teacher.hidden, teacher.vocabulary_size, lm.device, "teacher", setting)


@torch.no_grad()
def check_packing(
    hidden: Hidden, vocabulary_size: int, device: torch.device, role: str, setting: str = "student.packing"
) -> None:
    """Refuse a model that gives packed examples other hidden states than it gives them alone.

    Args:
        hidden: `hidden` of a model in evaluation mode.
        vocabulary_size: the model's vocabulary size.
        device: the model's device.
        role: "student" or "teacher", for the error.
        setting: path of `packing` in the recipe, for the error.

    Raises:
        TrainingError: the hidden states differ by more than rounding, or the model takes no position ids.
    """
    random = np.random.default_rng(0)
    rows = [[random.integers(vocabulary_size, size=tokens, dtype=np.int32) for tokens in row] for row in _PROBE]
    examples = [Example(prompt, completion, None) for prompt, completion in rows]
    order = [index for sequence in pack_first_fit([len(one) for one in examples], _WIDTH) for index in sequence]
    alone, packed = (
        {name: tensor.to(device) for name, tensor in batch.items()}
        for batch in (collator(0)([examples[index] for index in order]), collator(0, pack_to=_WIDTH)(examples))
    )
    try:
        expected, found = hidden(**alone).float(), hidden(**packed)
    except TypeError:  # its forward takes no `position_ids`
        raise _refusal(role, setting) from None
    precision = torch.finfo(found.dtype).eps ** 0.5  # rounding errors are far smaller
    apart = (found.float() - expected).norm(dim=-1) / expected.norm(dim=-1)  # (completion tokens,)
    if not bool((apart < precision).all()):
        raise _refusal(role, setting, f" (by up to {float(apart.max()):.1%})")


def _refusal(role: str, setting: str, difference: str = "") -> TrainingError:
    return TrainingError(
        f"the {role} does not separate rows that share a sequence: they have other hidden states{difference} than alone",
        setting=setting,
        value=True,
        fix="set it to false",
    )
